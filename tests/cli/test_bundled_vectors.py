from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lens_tui import demo
from lens_tui.cli.sources import Vectors
from lens_tui.records import Add, LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.paths import vectors_folder
from lens_tui.records.vector_formats.own import read_one, write_one
from tests.fakes import unit_vector


def add(arm: str, model: str = demo.NAME) -> Add:
    lens = cast(Any, SimpleNamespace(n_layers=8, d_model=384))
    (item,) = Vectors(lens, "", model).arm(parse_arm(arm)).interventions
    assert isinstance(item, Add)
    return item


def test_an_arm_names_a_bundled_vector() -> None:
    for ready in demo.vectors():
        item = add(f"mine={ready.name}*{ready.scale:g}")
        assert (item.layer, item.scale) == (ready.layer, ready.scale)
        assert np.array_equal(item.vector.direction, read_one(ready.path).direction)
    assert add(f"{demo.vectors()[0].name}@2*3").layer == 2


def test_a_file_of_that_name_is_meant_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = demo.vectors()[0].name
    own = unit_vector("own", 1)
    write_one(own, tmp_path / name)
    assert np.array_equal(add(f"{name}*3").vector.direction, own.direction)


@pytest.mark.parametrize("model", [demo.NAME, "org/other"])
def test_a_vector_that_was_kept_is_named_as_a_bundled_one_is(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own, gate = unit_vector("own", 1), unit_vector("gate", 2)
    for vector in (own, gate):
        write_one(vector, vectors_folder() / f"{vector.name}.safetensors")
    item = add("own*3?gate>0.5", model)
    assert np.array_equal(item.vector.direction, own.direction)
    assert item.gate is not None
    assert item.gate.monitor.vector is not None
    assert np.array_equal(item.gate.monitor.vector.direction, gate.direction)


def test_a_kept_vector_does_not_stand_in_for_a_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ready = demo.vectors()[0]
    write_one(unit_vector("own", 1), vectors_folder() / f"{ready.name}.safetensors")
    assert np.array_equal(add(f"{ready.name}*3").vector.direction, read_one(ready.path).direction)


def test_what_is_neither_is_told_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LensError) as refused:
        add("nothing*3")
    assert all(f"{ready.name}*{ready.scale:g}" in refused.value.hint for ready in demo.vectors())
    with pytest.raises(LensError, match="no file"):
        add(f"{demo.vectors()[0].name}*3", model="org/other")
