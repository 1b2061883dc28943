"""The bundled vectors are whole, say what was measured of them, and the opening shows two of them at work."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from lens_tui import LensModel, demo, load_sae
from lens_tui.records import Arm
from lens_tui.records.vector_formats.own import read_one, write_one

D_MODEL = json.loads((demo.model_path() / "config.json").read_text(encoding="utf-8"))["hidden_size"]


def test_there_are_five_and_each_has_reached_what_it_ships_for() -> None:
    found = demo.vectors()
    assert len(found) == len({ready.name for ready in found}) == 5
    for ready in found:
        assert ready.steered >= 0.6
        assert max(ready.random, ready.baseline) <= 0.1
        assert ready.distinct >= 0.6
        assert ready.scale > 0
        assert ready.says.endswith(".")
        assert demo.ready_vector(ready.name) == demo.ready_vector(str(ready.path)) == ready
    assert demo.ready_vector("no such") is None


@pytest.mark.parametrize("ready", demo.vectors(), ids=lambda ready: str(ready.name))
def test_a_file_is_a_unit_vector_of_the_bundled_model_with_its_figures(ready: demo.ReadyVector) -> None:
    vector = read_one(ready.path, d_model=D_MODEL, model=demo.NAME)
    assert (vector.name, vector.layer, vector.site) == (ready.name, ready.layer, "resid_post")
    assert np.linalg.norm(vector.direction.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
    facts = vector.origin.facts
    figures = {name: getattr(ready, name) for name in ("scale", "target", "steered", "baseline", "random", "distinct")}
    assert {name: facts["measured"][name] for name in figures} == figures
    with safe_open(ready.path, framework="np") as file:
        assert len(file.metadata()["record"]) < 2000  # facts, none of the texts it was made from
    if vector.origin.kind == "feature":
        row = load_sae(str(demo.sae_paths()[facts["sae"]])).vector(facts["feature"]).direction
        assert float(row @ vector.direction) > 0.999
    else:
        assert len(facts["sha256"]) == 64


def test_a_vector_that_is_copied_keeps_its_figures(tmp_path: Path) -> None:
    first = read_one(demo.vectors()[0].path)
    copied = read_one(write_one(first, tmp_path / "copy.safetensors"))
    assert copied.origin == first.origin


def test_the_opening_shows_both_steers_at_work() -> None:
    starter = demo.starter()
    arms = []
    for steer in starter.steers:
        vector = (
            read_one(Path(steer.source))
            if steer.kind == "file"
            else load_sae(str(demo.sae_paths()[steer.sae])).vector(steer.feature)
        )
        arms.append(Arm(steer.name, (steer.row(steer.name, vector).intervention(),)))
    with LensModel(demo.NAME) as lens:
        run = lens.compare(starter.prompt, arms, replace(starter.sampling, max_tokens=40))
        for _ in run:
            pass
    texts = dict(zip(run.arms, run.texts, strict=True))
    kitchen = {"butter", "sauce", "saucepan", "eggs", "flour", "boil", "boiled", "fry", "crust", "flavor", "sugar"}
    found = {name: kitchen & set(re.findall(r"[a-z]+", text.lower())) for name, text in texts.items()}
    assert len(found["cookery"]) >= 3
    assert not found["baseline"]
    spoken = {name: re.findall(r"\b(?:User|Assistant):", text) for name, text in texts.items()}
    assert [name for name, found in spoken.items() if found] == ["dialogue"]
