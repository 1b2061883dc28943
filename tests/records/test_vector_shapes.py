"""What the axes and the keys of a vector file mean: told by shape and model, or asked for; nothing is flattened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.vector_formats import load_one, load_vectors, save_vectors, vector_file
from tests.sae.reading.makers import write_torch

N, D = 6, 32
RANDOM = np.random.default_rng(7)


def save(path: Path, values: Any) -> Path:
    """The same values as ``.pt``, ``.npy`` or ``.npz``, by the suffix."""
    if path.suffix == ".pt":
        return write_torch(path, values)
    if isinstance(values, dict):
        named: dict[str, Any] = {str(key): value for key, value in values.items()}
        np.savez(path, **named)
    else:
        np.save(path, values)
    return path


def same(vector: SteeringVector, row: Any) -> None:
    row = np.asarray(row, np.float64)
    np.testing.assert_allclose(vector.direction, row / np.linalg.norm(row), atol=1e-6)
    assert vector.norm == pytest.approx(np.linalg.norm(row), rel=1e-5)


def rows(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_rows_are_told_by_the_number_of_layers(tmp_path: Path, suffix: str) -> None:
    blocks, hidden = rows(N, D), rows(N + 1, D)
    path = save(tmp_path / f"blocks{suffix}", blocks)
    for at, vector in enumerate(load_vectors(path, n_layers=N, d_model=D)):
        assert vector.layer == at
        same(vector, blocks[at])
    path = save(tmp_path / f"hidden{suffix}", hidden)
    found = load_vectors(path, n_layers=N, d_model=D)
    assert [vector.layer for vector in found] == list(range(N))
    for vector in found:  # row 0 is the embedding, row L the output of block L - 1
        same(vector, hidden[vector.layer + 1])
        assert vector.origin.facts["row"] == vector.layer + 1
    same(load_one(path, layer=4, n_layers=N), hidden[5])
    with pytest.raises(LensError, match="has no vector for layer 6"):
        load_vectors(path, layer=N, n_layers=N)
    with pytest.raises(LensError, match="does not say whether the first is the embedding's") as caught:
        load_vectors(path, layer=1)
    assert "rows='blocks' or 'hidden_states'" in caught.value.hint
    same(load_vectors(path, layer=4, rows="blocks")[0], hidden[4])
    same(load_vectors(path, layer=4, rows="hidden_states")[0], hidden[5])
    with pytest.raises(LensError, match=r"shape \(7, 32\); the model has 9 layers"):
        load_vectors(path, n_layers=9)
    with pytest.raises(LensError, match="it has width 32; the model's residual stream has 64"):
        load_vectors(path, n_layers=N, d_model=64)


@pytest.mark.parametrize("name", ["evil_response_avg_diff", "evil_prompt_avg_diff", "evil_prompt_last_diff"])
def test_persona_vectors_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    hidden = rows(N + 1, D)
    path = save(tmp_path / f"{name}.pt", hidden)
    same(load_one(path, layer=3), hidden[4])
    same(load_one(path, layer=3, n_layers=N), hidden[4])
    with pytest.raises(LensError, match="the model has 7 layers"):
        load_one(path, layer=3, n_layers=N + 1)


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_positions_are_asked_for(tmp_path: Path, suffix: str) -> None:
    values = rows(5, N, D)
    path = save(tmp_path / f"v{suffix}", values)
    with pytest.raises(LensError, match=r"shape \(5, 6, 32\), with vectors of 5 positions") as caught:
        load_vectors(path, n_layers=N, d_model=D)
    assert "FILE:POSITION" in caught.value.hint
    for position in (0, 4, -1, -5):
        (found,) = load_vectors(path, layer=2, position=position, n_layers=N)
        same(found, values[position, 2])
        assert (found.site, found.origin.facts["position"]) == ("resid_post", position)
        same(load_one(f"{path}:{position}", layer=2, n_layers=N, d_model=D), values[position, 2])
    with pytest.raises(LensError, match="none of them 5"):
        load_vectors(path, position=5, n_layers=N)
    with pytest.raises(LensError, match="has 7 layers"):
        load_vectors(save(tmp_path / f"w{suffix}", rows(5, 9, D)), position=1, n_layers=7)
    turned = save(tmp_path / f"t{suffix}", values.transpose(1, 0, 2))
    same(load_one(f"{turned}:-1", layer=2, n_layers=N), values[-1, 2])
    hidden = save(tmp_path / f"h{suffix}", rows(5, N + 1, D))
    assert [vector.layer for vector in load_vectors(hidden, position=0, n_layers=N)] == list(range(N))
    single = save(tmp_path / f"s{suffix}", values[:1])
    same(load_one(single, layer=2, n_layers=N), values[0, 2])
    with pytest.raises(LensError, match="has no positions"):
        load_vectors(single, position=0, n_layers=N)
    with pytest.raises(LensError, match="A vector has shape") as caught:
        load_vectors(save(tmp_path / f"f{suffix}", rows(2, 2, N, D)), n_layers=N)
    assert "(2, 2, 6, 32)" in caught.value.message


def test_differences_of_means_of_arditi_et_al_are_inputs_of_blocks(tmp_path: Path) -> None:
    values = RANDOM.normal(size=(5, N, D)).astype(np.float32)
    found = load_one(f"{save(tmp_path / 'mean_diffs.pt', values)}:-1", layer=4, n_layers=N)
    assert (found.layer, found.site) == (4, "resid_pre")
    same(found, values[-1, 4])


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_entries_by_name_are_asked_for(tmp_path: Path, suffix: str) -> None:
    values = {"backtracking": rows(D), "deduction": rows(D)}
    path = save(tmp_path / f"v{suffix}", values)
    with pytest.raises(LensError, match="holds vectors named backtracking, deduction") as caught:
        load_vectors(path, n_layers=N)
    assert "FILE:NAME@LAYER" in caught.value.hint
    with pytest.raises(LensError, match="does not say which layer") as caught:
        load_one(f"{path}:deduction", n_layers=N)
    assert "0 to 5" in caught.value.hint
    found = load_one(f"{path}:deduction", layer=3, n_layers=N, d_model=D)
    assert (found.layer, found.origin.facts["name"], found.name) == (3, "deduction", "v deduction")
    same(found, values["deduction"])
    same(load_vectors(path, name="backtracking", layer=0)[0], values["backtracking"])
    with pytest.raises(LensError, match="no vector named 'x'"):
        load_vectors(f"{path}:x", layer=0)
    one = save(tmp_path / f"one{suffix}", {"backtracking": values["backtracking"]})
    same(load_one(one, layer=2), values["backtracking"])
    deep = save(tmp_path / f"deep{suffix}", {"a": rows(N + 1, D), "b": rows(N + 1, D)})
    assert load_one(f"{deep}:b", layer=2, n_layers=N).origin.facts["row"] == 3
    assert load_one(f"{path}:{'deduction'}", layer=1).origin.facts["path"] == str(path)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_numbers_that_count_from_1_and_hidden_states(tmp_path: Path, suffix: str) -> None:
    values = {at: rows(D) for at in range(1, N + 1)}
    found = load_vectors(save(tmp_path / f"one{suffix}", values), n_layers=N)
    assert [vector.layer for vector in found] == list(range(N))
    for vector in found:
        same(vector, values[vector.layer + 1])
    values[0] = rows(D)
    found = load_vectors(save(tmp_path / f"hidden{suffix}", values), n_layers=N)
    assert [vector.layer for vector in found] == list(range(N))
    same(found[0], values[1])
    found = load_vectors(save(tmp_path / f"from0{suffix}", {f"layer_{at}": rows(D) for at in range(N)}), n_layers=N)
    assert [vector.layer for vector in found] == list(range(N))
    with pytest.raises(LensError, match="is for layer 9; the model's layers are 0 to 5"):
        load_vectors(save(tmp_path / f"deep{suffix}", {"9": rows(D)}), n_layers=N)


def test_formats_that_count_from_0_are_never_shifted(tmp_path: Path) -> None:
    vector = SteeringVector.of("v", rows(D), N)
    for suffix in (".gguf", ".json"):
        with pytest.raises(LensError, match="is for layer 6; the model's layers are 0 to 5"):
            load_vectors(save_vectors(vector, tmp_path / f"v{suffix}"), n_layers=N)


def test_names_with_layers_in_torch_files(tmp_path: Path) -> None:
    values = {"evil_layer_2": rows(D), "evil_layer_4": rows(D), "kind_layer_2": rows(D)}
    path = write_torch(tmp_path / "v.pt", values)
    same(load_one(f"{path}:evil", layer=4), values["evil_layer_4"])
    same(load_one(f"{path}:kind"), values["kind_layer_2"])
    names = {"vector": rows(D)}
    path = write_torch(tmp_path / "w.pt", {**names, "layer": 3, "model": "x"})
    assert load_one(path).layer == 3
    nested = {"evil": {2: rows(D), 3: rows(D)}, "kind": {2: rows(D)}}
    path = write_torch(tmp_path / "n.pt", nested)
    same(load_one(f"{path}:evil", layer=3), nested["evil"][3])


def test_safetensors_of_others(tmp_path: Path) -> None:
    values = {"layer_1": rows(D), "layer_3": rows(D)}
    save_file(values, tmp_path / "v.safetensors")
    found = load_vectors(tmp_path / "v.safetensors", n_layers=N)
    assert [vector.layer for vector in found] == [1, 3]
    same(found[1], values["layer_3"])
    save_file({"layer_1": np.zeros(D, np.int64)}, tmp_path / "v.safetensors")
    with pytest.raises(LensError, match="not vectors"):
        load_vectors(tmp_path / "v.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".npz", ".npy", ".json"])
def test_every_format_says_where_it_was_read_and_no_file_says_it(tmp_path: Path, suffix: str) -> None:
    made = SteeringVector.of("v", rows(D), 2, origin=Origin("prompts", {"n": 3}))
    path = save_vectors(made, tmp_path / f"v{suffix}")
    found = load_one(path, layer=2)
    assert found.origin.facts["path"] == str(path)
    assert found.origin.facts["file"] == path.name
    assert found.origin.kind == ("prompts" if suffix == ".safetensors" else "file")
    again = save_vectors(found, tmp_path / "again.safetensors")
    assert str(tmp_path).encode() not in again.read_bytes()
    several = save_vectors([found, found], tmp_path / "several.safetensors")
    assert str(tmp_path).encode() not in several.read_bytes()
    with pytest.raises(LensError, match="holds 2 vectors"):
        load_one(several)


def test_what_stands_after_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npy"
    path.touch()
    assert vector_file(path) == (path, ())
    assert vector_file(f"{path}:x") == (path, ("x",))
    assert vector_file(f"{path}:x:-1") == (path, ("x", "-1"))
    assert vector_file("none:x") == (Path("none:x"), ())
    with pytest.raises(LensError, match="There is no file"):
        load_one("none.npy:x")
