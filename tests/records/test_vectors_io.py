"""Vector files: exact, named, and nothing else than a vector gets in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lens_tui.records import LensError, Origin, SteeringVector, paths
from lens_tui.records.vector_formats import list_vectors
from lens_tui.records.vector_formats.own import FORMAT, read_one, write_one

VECTOR = SteeringVector.of(
    "Dogs & cats / \x1b[31m",
    np.tan(np.arange(1, 65)),
    5,
    site="mlp_out",
    model="demo",
    origin=Origin("prompts", {"positive": ["a", "ü"], "n": 3}),
    max_activation=7.25,
)


def test_a_vector_comes_back_to_the_last_bit() -> None:
    path = write_one(VECTOR)
    assert path == paths.vectors_folder() / "dogs-cats-31m.safetensors"
    found = read_one(path, d_model=64, model="demo")
    assert found.direction.tobytes() == VECTOR.direction.tobytes()
    for name in ("name", "layer", "site", "model", "norm", "max_activation"):
        assert getattr(found, name) == getattr(VECTOR, name)
    assert (found.origin.kind, dict(found.origin.facts)) == ("prompts", dict(VECTOR.origin.facts))
    assert not found.direction.flags.writeable


def test_any_safetensors_reader_opens_it() -> None:
    tensors = load_file(write_one(VECTOR))
    assert list(tensors) == ["direction"]
    assert np.linalg.norm(tensors["direction"]) == pytest.approx(1.0, abs=1e-6)


def test_names_do_not_collide_and_files_are_listed() -> None:
    first, second = write_one(VECTOR), write_one(VECTOR)
    assert first != second
    nameless = write_one(replace(VECTOR, name="日本"))
    assert nameless.name == "vector.safetensors"
    (paths.vectors_folder() / "bad.safetensors").write_bytes(b"junk")
    listed = list_vectors()
    assert [file.vector is None for file in listed] == [True, False, False, False]
    assert "cannot be read" in listed[0].problem


def test_another_width_or_model_is_refused() -> None:
    path = write_one(VECTOR)
    with pytest.raises(LensError, match="has width 64; the model's residual stream has 32"):
        read_one(path, d_model=32)
    with pytest.raises(LensError, match="was made for demo, not other"):
        read_one(path, model="other")


def record(**changes: Any) -> dict[str, str]:
    facts = {"name": "v", "layer": 1, "site": "resid_post", "model": "", "norm": 1.0, **changes}
    return {"format": FORMAT, "version": "1", "record": json.dumps(facts)}


UNIT = np.full(4, 0.5, np.float32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"direction": UNIT}, None, "not a vector of mlx-lens-tui"),
        ({"direction": UNIT}, {**record(), "format": "other"}, "not a vector of mlx-lens-tui"),
        ({"other": UNIT}, record(), "not a vector of mlx-lens-tui"),
        ({"direction": UNIT * np.nan}, record(), "not a unit direction"),
        ({"direction": UNIT * 3}, record(), "not a unit direction"),
        ({"direction": UNIT[None]}, record(), "no float32 direction"),
        ({"direction": UNIT.astype(np.float64)}, record(), "no float32 direction"),
        ({"direction": UNIT}, record(layer="x"), "layer is 'x'"),
        ({"direction": UNIT}, record(extra=1), "unknown key"),
        ({"direction": UNIT}, {**record(), "record": "{"}, "cannot be read"),
        ({"direction": UNIT}, {**record(), "record": "[]"}, "no float32 direction"),
    ],
)
def test_what_is_no_vector_is_refused(
    tensors: dict[str, Any], metadata: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(LensError, match=message):
        read_one(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_files_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    with pytest.raises(LensError, match=r"cannot be read|not a vector"):
        read_one(path)


def test_a_missing_and_an_oversized_file(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="There is no file"):
        read_one(tmp_path / "nothing")
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(LensError, match="larger than any steering vector"):
        read_one(path)


@pytest.mark.parametrize("name", ["caf\udce9", "e\u0301 \u202e\u200d\x1b\x9b\u2028 日本"])
def test_a_name_comes_back_character_for_character(tmp_path: Path, name: str) -> None:
    from lens_tui.records.vector_formats import load_vectors, save_vectors

    one = SteeringVector.of(name, [3.0, 4.0], 2, origin=Origin("prompts", {"positive": [name], "negative": ["x"]}))
    assert read_one(write_one(one)).name == name
    assert read_one(write_one(one, tmp_path / "one.safetensors")).origin.facts["positive"] == [name]
    several = save_vectors([one, SteeringVector.of("b", [1.0, 0.0], 3)], tmp_path / "two.safetensors")
    assert load_vectors(several)[0].name == name
