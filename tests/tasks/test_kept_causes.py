"""A kept map says whether the model is still the one it was made with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lens_tui import LensModel
from lens_tui.records import ModelInfo
from lens_tui.records.cause_plan import PatchPlan
from lens_tui.records.store import Store
from lens_tui.tasks.causes import answer, keep_cause, kept_causes, open_cause
from lens_tui.tasks.made_with import model_stamp
from tests.folders import llama_folder


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, int, ModelInfo]:
    lens = LensModel(str(llama_folder(tmp_path / "tiny")))
    found = answer(lens, PatchPlan("Once upon a time", "Once upon a page", "id:5", "id:9", by="head"))
    with Store(tmp_path / "h.db") as store:
        number = keep_cause(store, lens.info, found).kept
    return tmp_path / "h.db", number, lens.info


def changed(kept: tuple[Path, int, ModelInfo], model: ModelInfo | None) -> str:
    opened = open_cause(kept[0], kept[1], model)
    assert opened is not None
    return opened[1]


def test_what_has_changed_is_said(kept: tuple[Path, int, ModelInfo]) -> None:
    database, number, model = kept
    assert changed(kept, model) == ""
    assert "not loaded" in changed(kept, None)
    assert changed(kept, replace(model, name="moved")) == ""  # the same files
    other = replace(model, name="other", path=str(llama_folder(database.parent / "other", seed=1)))
    assert changed(kept, other) == "of another model: tiny"
    assert "without the adapter" in changed(kept, replace(model, adapter="/a"))
    assert "held otherwise" in changed(kept, replace(model, weights="float32 for speed"))
    file = next(Path(model.path).glob("*.safetensors"))
    weights = load_file(file)
    name = max(weights, key=lambda key: weights[key].size)
    save_file({**weights, name: weights[name] + np.float32(0.01)}, file, {"format": "mlx"})
    assert "have changed since" in changed(kept, model)
    assert [each.id for each in kept_causes(database)] == [number]
    assert kept_causes(database, without=frozenset({number})) == []
    assert kept_causes(database.with_name("none.db")) == []


def test_a_stamp_is_of_the_files_and_not_of_their_times(tmp_path: Path, kept: tuple[Path, int, ModelInfo]) -> None:
    model = kept[2]
    stamp = model_stamp(model)
    for file in Path(model.path).iterdir():
        file.touch()
    assert model_stamp(model) == stamp != ""
    assert model_stamp(replace(model, path=str(tmp_path / "nowhere"))) == ""
    large = Path(model.path) / "more.safetensors"
    large.write_bytes(bytes(3 << 20))
    one = model_stamp(model)
    large.write_bytes(bytes((3 << 20) - 1) + b"1")
    assert len({stamp, one, model_stamp(model)}) == 3
