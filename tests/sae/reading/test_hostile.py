"""Files of strangers: each is refused in one sentence, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import load_sae, sae_info
from lens_tui.records import LensError

from .makers import Array, numbers, write_json, write_safetensors, write_torch

NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def good() -> dict[str, Array]:
    w = numbers()
    return {name: w[name] for name in NAMES}


def refused(path: Path, words: str = "") -> None:
    with pytest.raises(LensError) as caught:
        load_sae(path)
    assert words in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert "\x1b" not in str(caught.value)


def with_header(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "params.safetensors", good())
    whole = path.read_bytes()
    for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)


def test_a_header_of_ten_gigabytes(tmp_path: Path) -> None:
    refused(with_header(tmp_path / "params.safetensors", b"{}", length=10 << 30), "header")
    refused(with_header(tmp_path / "params.safetensors", b"{}", length=2**64 - 1), "header")


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b'{"w_enc": 5}',
        b'{"w_enc": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}',
        b'{"w_enc": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}}',
        b'{"w_enc": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 99]}}',
        b'{"w_enc": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}',
        b'{"w_enc": {"dtype": "\\u001b[31mF99", "shape": [2], "data_offsets": [0, 8]}}',
        b"{" * 3000,
        b'{"a": ' * 100000,
        b"\xff\xfe",
    ],
)
def test_a_nonsensical_header(tmp_path: Path, header: bytes) -> None:
    refused(with_header(tmp_path / "params.safetensors", header, data=b"\0" * 16))


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_tensor(tmp_path: Path, missing: str) -> None:
    tensors = good()
    del tensors[missing]
    tensors["\x1b]0;evil\x07"] = np.zeros(2, np.float32)
    write_safetensors(tmp_path / "params.safetensors", tensors)
    refused(tmp_path, f"no tensor {missing}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("w_enc", lambda a: a[:, :-1]),
        ("w_dec", lambda a: a.T.copy()),
        ("b_enc", lambda a: a[:1]),
        ("b_dec", lambda a: a[None]),
        ("threshold", lambda a: a.reshape(2, -1)),
        ("w_enc", lambda a: a[0]),
        ("w_enc", lambda a: a[:, :0]),
    ],
)
def test_wrong_shapes(tmp_path: Path, name: str, change: Callable[[Array], Array]) -> None:
    tensors = good()
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    write_safetensors(tmp_path / "params.safetensors", tensors)
    refused(tmp_path, "shape")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w_enc", "b_enc", "threshold", "b_dec"])
def test_what_is_not_finite(tmp_path: Path, name: str, value: float) -> None:
    tensors = good()
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[3] = value
    write_safetensors(tmp_path / "params.safetensors", tensors)
    refused(tmp_path, f"{name} holds NaN or infinity")


def test_a_decoder_that_is_not_finite_is_refused_when_its_row_is_read(tmp_path: Path) -> None:
    tensors = good()
    tensors["w_dec"] = tensors["w_dec"].copy()
    tensors["w_dec"][7, 3] = np.nan
    write_safetensors(tmp_path / "params.safetensors", tensors)
    sae = load_sae(tmp_path)
    assert sae.directions([6]).shape == (1, 32)
    with pytest.raises(LensError, match="w_dec holds NaN"):
        sae.directions([7])


def test_configurations_that_are_none(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "params.safetensors", good())
    for text in (b"[]", b"{", b"\xff", b'"x"', b"[" * 100000):
        (tmp_path / "config.json").write_bytes(text)
        refused(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * (5 << 20))
    refused(tmp_path, "at most")


def test_text_in_a_configuration_cannot_style_a_screen(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "params.safetensors", good())
    write_json(tmp_path / "config.json", {"model_name": "a\x1b[31mb\u202e" * 50, "hf_hook_point_in": "\x1b]8;;x\x07"})
    info = sae_info(tmp_path)
    text = json.dumps([info.model_name, *info.provenance.values()], ensure_ascii=False)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(info.model_name) <= 120


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def pickled(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = pickled(tmp_path / "a" / "ae.pt", pickle.dumps({"W_enc": _Runs(mark)}, protocol=2))
    refused(path, "it was not run")
    assert not mark.exists()
    (tmp_path / "b").mkdir()
    bare = tmp_path / "b" / "ae.pt"
    bare.write_bytes(pickle.dumps(_Runs(mark)))
    refused(bare, "not a complete torch file")
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x02]q\x00.",
        b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb.",  # sets attributes on a global
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo index of two thousand million
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02\x82\x01.",  # an entry of copyreg's registry
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame that never ends
        b"(" * 1000,
    ],
)
def test_pickles_of_every_kind_of_nonsense(tmp_path: Path, data: bytes) -> None:
    refused(pickled(tmp_path / "ae.pt", data))


def test_a_tensor_outside_its_storage(tmp_path: Path) -> None:
    w = numbers()
    path = write_torch(tmp_path / "ae.pt", {"W_enc": w["w_enc"]})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:-4] if name.endswith("data/0") else data)
    refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refused(path, "compressed")


def test_a_torch_file_cut_short(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "ae.pt", {"W_enc": numbers()["w_enc"]})
    whole = path.read_bytes()
    for size in (0, 30, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        refused(path, "not a complete torch file")


def test_npz_files(tmp_path: Path) -> None:
    w = good()
    np.savez_compressed(tmp_path / "params.npz", W_enc=w["w_enc"])
    refused(tmp_path, "compressed")
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    refused(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=w["w_enc"])
    whole = (tmp_path / "params.npz").read_bytes()
    (tmp_path / "params.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "damaged")


def test_places_that_hold_no_sae(tmp_path: Path) -> None:
    refused(tmp_path, "not an SAE of a known format")
    (tmp_path / "inner").mkdir()
    with pytest.raises(LensError, match="inner"):
        load_sae(tmp_path)
    refused(tmp_path / "nothing", "There is no SAE at")
    (tmp_path / "x.bin").write_bytes(b"x")
    refused(tmp_path / "x.bin")
