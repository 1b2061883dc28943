"""Vector files of other tools: read from files written by other means, and written so that other readers agree."""

from __future__ import annotations

import base64
import io
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zstandard

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.vector_formats import load_vectors, save_vectors
from lens_tui.records.vector_formats.arrays import named
from tests.sae.reading.makers import write_torch

D = 48
ROWS = {layer: (np.random.default_rng(layer).normal(size=D) * (layer + 1)).astype(np.float32) for layer in (1, 3, 10)}
VECTORS = tuple(SteeringVector.of(f"v{at}", row, at, model="m", origin=Origin("given")) for at, row in ROWS.items())


def check(found: tuple[SteeringVector, ...], rows: dict[int, Any], tolerance: float = 1e-6) -> None:
    assert [vector.layer for vector in found] == sorted(rows)
    for vector in found:
        row = np.asarray(rows[vector.layer], np.float64)
        assert vector.norm == pytest.approx(np.linalg.norm(row), rel=tolerance)
        np.testing.assert_allclose(vector.direction, row / np.linalg.norm(row), atol=tolerance)
        assert vector.site == "resid_post"


def as_float(vector: SteeringVector) -> Any:
    return vector.direction.astype(np.float64) * vector.norm


@pytest.mark.parametrize("suffix", [".gguf", ".json", ".npz", ".safetensors"])
def test_every_format_brings_back_layers_directions_and_lengths(suffix: str, tmp_path: Path) -> None:
    found = load_vectors(save_vectors(VECTORS, tmp_path / f"v{suffix}"), d_model=D)
    check(found, ROWS)
    if suffix == ".safetensors":
        assert [one.direction.tobytes() for one in found] == [one.direction.tobytes() for one in VECTORS]
        assert [one.name for one in found] == ["v1", "v3", "v10"]
    else:
        assert all(one.origin.kind == "file" and len(one.origin.facts["sha256"]) == 64 for one in found)
    (third,) = load_vectors(tmp_path / f"v{suffix}", layer=3)
    assert third.layer == 3
    with pytest.raises(LensError, match="no vector for layer 7"):
        load_vectors(tmp_path / f"v{suffix}", layer=7)


def test_mlx_reads_our_control_vectors_and_we_read_those_mlx_writes(tmp_path: Path) -> None:
    path = save_vectors(VECTORS, tmp_path / "ours.gguf")
    loaded: Any = mx.load(str(path), format="gguf", return_metadata=True)
    tensors, metadata = loaded
    assert metadata["general.architecture"] == "controlvector"
    assert int(np.array(metadata["controlvector.layer_count"])) == 3
    assert metadata["controlvector.model_hint"] == "m"
    for layer, row in ROWS.items():
        np.testing.assert_allclose(np.array(tensors[f"direction.{layer}"]), row, rtol=1e-5, atol=1e-6)
    theirs = tmp_path / "theirs.gguf"
    for dtype, tolerance in ((mx.float32, 1e-6), (mx.float16, 2e-3)):
        arrays = {f"direction.{layer}": mx.array(row).astype(dtype) for layer, row in ROWS.items()}
        mx.save_gguf(str(theirs), arrays, {"general.architecture": "controlvector", "controlvector.model_hint": "mi"})
        found = load_vectors(theirs)
        check(found, ROWS, tolerance)
        assert found[0].origin.facts["model_hint"] == "mi"


def vllm(path: Path, rows: Any, layers: list[int], *, compress: bool = True, **changes: Any) -> Path:
    data = rows.tobytes()
    packed = zstandard.ZstdCompressor(level=1).compress(data) if compress else data
    entry = {"data": base64.b64encode(packed).decode(), "dtype": str(rows.dtype), "shape": list(rows.shape)}
    entry |= {"original_dtype": "torch.float32"} | ({"compression": "zstd"} if compress else {})
    entry |= changes.pop("entry", {})
    whole = {"activations": entry, "layer_indices": layers, "scale": 2.0, "norm_match": True, "position_indices": None}
    path.write_text(json.dumps(whole | changes))
    return path


def test_vllm_lens_files_of_every_storage(tmp_path: Path) -> None:
    rows, path = np.stack(list(ROWS.values())), tmp_path / "v.json"
    layers = list(ROWS)
    found = load_vectors(vllm(path, rows, layers))
    check(found, ROWS)
    assert (found[0].origin.facts["scale"], found[0].origin.facts["norm_match"]) == (2.0, True)
    check(load_vectors(vllm(path, rows, layers, compress=False)), ROWS)
    check(load_vectors(vllm(path, rows[:, None], layers)), ROWS)
    check(load_vectors(vllm(path, rows.astype(np.float16), layers)), ROWS, 2e-3)
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    cut = (bits.astype(np.uint32) << 16).view(np.float32)
    entry = {"original_dtype": "torch.bfloat16"}
    check(load_vectors(vllm(path, bits.view(np.int16), layers, entry=entry)), dict(zip(ROWS, cut, strict=True)))
    written = json.loads(save_vectors(VECTORS, path).read_text())
    raw = zstandard.ZstdDecompressor().decompress(base64.b64decode(written["activations"]["data"]))
    np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(3, D), rows, rtol=1e-5)
    assert (written["scale"], written["norm_match"], written["layer_indices"]) == (1.0, False, layers)


def test_numpy_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    np.save(one, ROWS[3])
    with pytest.raises(LensError, match="does not say which layer"):
        load_vectors(one)
    check(load_vectors(one, layer=5), {5: ROWS[3]})
    np.save(two, np.stack(list(ROWS.values())).astype(np.float64))
    check(load_vectors(two, n_layers=3), dict(enumerate(ROWS.values())))
    path = save_vectors(VECTORS[0], tmp_path / "w.npy")
    np.testing.assert_allclose(np.load(path), ROWS[1], rtol=1e-5)
    arrays: dict[str, Any] = {f"blocks.{at}": row for at, row in ROWS.items()}
    np.savez_compressed(tmp_path / "z.npz", **arrays)
    check(load_vectors(tmp_path / "z.npz"), ROWS)


def torch_object(path: Path, values: dict[str, Any]) -> Path:
    """A ``SteeringVector`` of steering-vectors as ``torch.save`` writes it: pickled by its place."""
    module = types.ModuleType("steering_vectors.steering_vector")
    kind: Any = type("SteeringVector", (), {"__module__": module.__name__})
    module.SteeringVector = kind  # type: ignore[attr-defined]
    sys.modules["steering_vectors"], sys.modules[module.__name__] = types.ModuleType("steering_vectors"), module
    try:
        made = kind()
        made.__dict__.update(values)
        return write_torch(path, made)
    finally:
        del sys.modules["steering_vectors"], sys.modules[module.__name__]


def test_steering_vectors_objects_without_their_library(tmp_path: Path) -> None:
    path = torch_object(tmp_path / "sv.pt", {"layer_activations": ROWS, "layer_type": "decoder_block"})
    check(load_vectors(path), ROWS)
    assert "steering_vectors" not in sys.modules
    path = torch_object(tmp_path / "sv.pt", {"layer_activations": ROWS, "layer_type": "mlp"})
    assert {vector.site for vector in load_vectors(path)} == {"mlp_out"}
    path = torch_object(tmp_path / "sv.pt", {"layer_activations": ROWS, "layer_type": "input_layernorm"})
    with pytest.raises(LensError, match="not a site of this library"):
        load_vectors(path)


def test_bare_tensors_of_caa_take_the_layer_from_the_name(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "vec_layer_15_Llama-2-7b-chat-hf.pt", ROWS[1])
    (found,) = load_vectors(path)
    check((found,), {15: ROWS[1]})
    assert found.origin.facts["model_hint"] == "Llama-2-7b-chat-hf"
    path = write_torch(tmp_path / "mine.pt", ROWS[1][None], "BFloat16Storage")
    check(load_vectors(path, layer=2), {2: (ROWS[1].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)})
    with pytest.raises(LensError, match="does not say which layer"):
        load_vectors(path)


def test_torch_files_of_tensors_by_layer(tmp_path: Path) -> None:
    check(load_vectors(write_torch(tmp_path / "d.pt", {str(at): row for at, row in ROWS.items()})), ROWS)
    check(load_vectors(write_torch(tmp_path / "d.pt", {f"layer_{at}": row for at, row in ROWS.items()})), ROWS)


def test_names_of_caa_files() -> None:
    assert named("vec_layer_15_Llama-2-7b-chat-hf") == (15, "Llama-2-7b-chat-hf")
    assert named("vec_layer_7") == (7, "")
    assert named("vector") == (None, "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.zeros(D, np.float32), "is zero and has no direction"),
        (np.full(D, np.nan, np.float32), "holds NaN"),
        (np.array([np.inf] * D, np.float32), "holds NaN or infinity"),
    ],
)
def test_zero_and_nan_are_one_sentence(row: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", row)
    mx.save_gguf(str(tmp_path / "v.gguf"), {"direction.1": mx.array(row)}, {"general.architecture": "controlvector"})
    for path in (tmp_path / "v.npy", vllm(tmp_path / "v.json", row[None], [1]), tmp_path / "v.gguf"):
        with pytest.raises(LensError, match=message):
            load_vectors(path, layer=1)


def test_another_width_or_model(tmp_path: Path) -> None:
    path = save_vectors(VECTORS, tmp_path / "v.safetensors")
    with pytest.raises(LensError, match="has width 48; the model's residual stream has 64"):
        load_vectors(path, d_model=64)
    with pytest.raises(LensError, match="was made for m, not other"):
        load_vectors(path, model="other")


def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    twice = (VECTORS[0], VECTORS[0])
    inner = SteeringVector.of("v", ROWS[1], 1, site="mlp_out")
    for name, vectors, message in (
        ("v.gguf", twice, "layer 1 is there twice"),
        ("v.json", [inner], "not mlp_out"),
        ("v.npy", list(VECTORS), "holds one vector"),
        ("v.pt", list(VECTORS), "not written as"),
        ("v.gguf", [], "no vector to save"),
    ):
        with pytest.raises(LensError, match=message):
            save_vectors(vectors, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    check_twice = load_vectors(save_vectors(twice, tmp_path / "v.safetensors"))
    assert len(check_twice) == 2


@pytest.mark.parametrize("suffix", [".gguf", ".json", ".npz", ".npy", ".safetensors"])
def test_a_file_cut_or_changed_anywhere_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    path = save_vectors(VECTORS if suffix != ".npy" else VECTORS[0], tmp_path / f"v{suffix}")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for cut in random.integers(0, len(whole) - 1, 25):
        path.write_bytes(whole[:cut])
        with pytest.raises(LensError):
            load_vectors(path, layer=1)
    for at in random.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_vectors(path, layer=1)
        except LensError:
            continue


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "sprung"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "v.npy").write_bytes(buffer.getvalue())
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("layer_1.npy", buffer.getvalue())
    with zipfile.ZipFile(tmp_path / "v.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(), 2))
    for name in ("v.npy", "v.npz", "v.pt"):
        with pytest.raises(LensError):
            load_vectors(tmp_path / name, layer=1)
    assert not (tmp_path / "sprung").exists()


def test_a_frame_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    bomb = base64.b64encode(zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))).decode()
    path = vllm(tmp_path / "v.json", ROWS[1][None], [1], entry={"data": bomb})
    with pytest.raises(LensError, match="bytes for shape"):
        load_vectors(path)


def test_unknown_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"hello")
    for name, message in (("x.txt", "not a vector file of a known format"), ("y.gguf", "There is no file")):
        with pytest.raises(LensError, match=message):
            load_vectors(tmp_path / name)
