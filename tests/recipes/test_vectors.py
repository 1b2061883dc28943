from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from lens_tui import LensModel
from lens_tui.records import Add, BatchRow, Sampling, SteeringVector
from lens_tui.records.vector_formats.own import read_one
from recipes import candidates, classifier, measure_vectors, ship_vectors
from recipes.candidates import Candidate
from recipes.export import export
from recipes.measure_vectors import Figures, Point, smallest
from recipes.openings import NEUTRAL, STORIES
from recipes.passages import draw
from recipes.tokens import load_tokens
from recipes.train import Run

TOWARD = Candidate("herd", "farm", "Toward farms.")
AWAY = replace(TOWARD, name="no farm", away=True)


@pytest.fixture(scope="module")
def lens(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    root = tmp_path_factory.mktemp("model")
    trained, held = load_tokens(recipe.root / "tokens", "train"), load_tokens(recipe.root / "tokens", "held_out")
    Run(root / "lm", recipe.settings, trained, held, say=lambda _: None).advance(2)
    made = export(root / "lm", recipe.settings.shape, recipe.root / "tokenizer", root / "f32", "float32")
    return LensModel(str(made))


@pytest.fixture(scope="module")
def known(recipe: SimpleNamespace) -> classifier.Classifier:
    return classifier.train(recipe.domains)


def row(text: str, ids: tuple[int, ...]) -> BatchRow:
    return BatchRow(0, (1,), Sampling(), text=text, token_ids=ids)


def point(multiple: float, steered: float, random: float = 0.0, distinct: float = 0.9, plain: float = 0.0) -> Point:
    given = (Figures(share, value, {}) for share, value in ((steered, distinct), (random, 1.0), (plain, 1.0)))
    return Point(multiple * 30, multiple, *given)


def test_the_smallest_scale_that_works_is_chosen() -> None:
    few, loud, common, dull, good, late = (
        point(0.2, 0.5),
        point(0.3, 0.9, random=0.2),
        point(0.4, 0.9, plain=0.2),
        point(0.5, 0.9, distinct=0.5),
        point(0.6, 0.8),
        point(0.7, 1.0),
    )
    assert smallest([late, good, dull, common, loud, few]) is good
    assert smallest([few, loud, common, dull]) is None
    assert few.meets(measure_vectors.Limits(0.5, 0.1, 0.6))


def test_figures_count_texts_in_the_target(known: classifier.Classifier) -> None:
    rows = [row("cow barn hay", (1, 2, 3)), row("mast sail rope", (1, 1, 1, 1)), row("cow", (5,)), row("?", (7, 8))]
    toward = measure_vectors.figures(known, TOWARD, rows)
    assert toward.share == 2 / 4
    assert toward.distinct == pytest.approx((1.0 + 1 / 3 + 1.0) / 3)  # a single token has no pair
    assert toward.domains == {"farm": 0.5, "ship": 0.25, "": 0.25}
    assert measure_vectors.figures(known, AWAY, rows).share == 1 / 4


def test_a_mean_difference_keeps_no_text(recipe: SimpleNamespace, lens: LensModel) -> None:
    (toward,) = candidates.from_passages(lens, TOWARD, recipe.domains, (1,), 8)
    (away,) = candidates.from_passages(lens, AWAY, recipe.domains, (1,), 8)
    within = draw(recipe.domains[1].train, 8, most=1)
    without = [t for d in (recipe.domains[0], recipe.domains[2]) for t in draw(d.train, 4, most=1)]
    means = [
        np.mean([np.array(lens.residuals(text, 1))[1:].mean(axis=0) for text in side], axis=0)
        for side in (within, without)
    ]
    expected = means[0] - means[1]
    np.testing.assert_allclose(toward.direction, expected / np.linalg.norm(expected), atol=2e-5)
    np.testing.assert_allclose(away.direction, -toward.direction, atol=1e-6)
    assert toward.origin.facts["positive"] == away.origin.facts["negative"] == "8 passages of farm"
    assert not any(text[:40] in str(toward.origin.facts) for text in (*within, *without))
    assert len(toward.origin.facts["sha256"]) == 64
    assert toward.origin.facts["sha256"] != away.origin.facts["sha256"]


def test_a_row_is_what_its_opening_gives_alone(lens: LensModel, known: classifier.Classifier) -> None:
    vector = SteeringVector.of("herd", np.random.default_rng(0).normal(size=lens.d_model), 1)
    writer = measure_vectors.Writer(lens, tokens=6, rows=4)
    asked = [(seed, text, vector if seed else None, 3.0 * seed) for seed, text in enumerate(NEUTRAL[:6])]
    for (seed, text, _, scale), found in zip(asked, writer.write(asked), strict=True):
        item = (Add(id="v", layer=1, vector=vector, scale=scale),) if seed else ()
        alone = lens.stream(text, raw=True, sampling=Sampling(max_tokens=6, temp=0.7, seed=seed), interventions=item)
        assert [token.token_id for token in alone] == list(found.token_ids)


def test_vectors_are_measured_at_the_scale_that_was_chosen(
    lens: LensModel, known: classifier.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str, SteeringVector | None, float]] = []

    def write(self: Any, some: Any) -> list[BatchRow]:
        asked.extend(some)
        herd = [vector is not None and vector.name == "herd" and scale > 5 for _, _, vector, scale in some]
        return [row("cow barn" if on else "mast sail", tuple(range(9))) for on in herd]

    monkeypatch.setattr(measure_vectors.Writer, "write", write)
    vector = SteeringVector.of("herd", np.ones(lens.d_model), 1)
    bench = measure_vectors.Bench(measure_vectors.Writer(lens), known)
    bench.norms[1] = 10.0
    weak = replace(vector, name="weak")
    reports = list(
        measure_vectors.measure(bench, [(TOWARD, vector), (TOWARD, weak)], (0.4, 0.6, 0.8), say=lambda _: None)
    )
    assert [(report["scale"], report.get("works")) for report in reports] == [(6.0, True), (None, None)]
    assert [point["steered"]["share"] for point in reports[0]["curve"]] == [0.0, 1.0, 1.0]
    held = reports[0]["measured"]
    assert (held["steered"]["share"], held["random"]["share"], held["distinct_ratio"]) == (1.0, 0.0, 1.0)
    plain = [text for _, text, vector, _ in asked if vector is None]
    assert plain == list(NEUTRAL)  # once each: half for choosing, half for measuring
    chance = {(text, vector.origin.facts["seed"]) for _, text, vector, _ in asked if vector and vector.name == "random"}
    assert len(chance) == len(NEUTRAL)


def test_openings_are_all_different() -> None:
    assert len({*NEUTRAL, *STORIES}) == 80
    first = measure_vectors.openings(AWAY, 20, fresh=False)
    second = measure_vectors.openings(AWAY, 20, fresh=True)
    assert [text for _, text in (*first, *second)] == list(STORIES)


def test_what_ships_is_read_back_with_its_figures(lens: LensModel, tmp_path: Path) -> None:
    names = [Candidate("verse", "poetry", ""), Candidate("grown-up", "stories", "", away=True)]
    values = np.random.default_rng(1).normal(size=(4, lens.d_model))
    vectors = [SteeringVector.of(c.name, values[2 * i + k], k) for i, c in enumerate(names) for k in (0, 1)]
    paths = candidates.save(iter(vectors), tmp_path / "made")
    assert [path.name for path in paths][2] == "grown-up_layer_0.safetensors"
    read = candidates.read(tmp_path / "made")
    assert {pair[0].domain for pair in read} == {"poetry", "stories"}

    def report(name: str, layer: int, multiple: float, works: bool, chosen_on: float = 0.8) -> dict[str, Any]:
        measured, scale = point(multiple, 0.9, 0.05).report(), multiple * 30
        curve = [{"scale": scale / 2, "steered": {"share": 0.1}}, {"scale": scale, "steered": {"share": chosen_on}}]
        return {"name": name, "layer": layer, "scale": scale, "works": works, "measured": measured, "curve": curve}

    rows = [report("verse", 0, 0.5, True), report("verse", 1, 0.3, False), {"name": "verse", "scale": None}]
    rows += [report("grown-up", 0, 0.9, True), report("grown-up", 1, 0.8, True)]
    often = [report("verse", 0, 0.5, True, 0.95), report("verse", 1, 0.4, True, 0.9)]
    assert ship_vectors.best(often, "verse")["layer"] == 0
    facts = {"count": 20, "tokens": 80, "vectors": rows}
    entries = ship_vectors.ship(facts, read, tmp_path / "out", ("verse", "grown-up"))
    assert [(made["name"], made["layer"], made["scale"], made["target"]) for made in entries] == [
        ("verse", 0, 15.0, "poetry"),
        ("grown-up", 1, 24.0, "not stories"),
    ]
    assert json.loads((tmp_path / "out" / "vectors.json").read_text()) == entries
    shipped = read_one(tmp_path / "out" / "grown-up.safetensors")
    assert np.array_equal(shipped.direction, vectors[3].direction)
    assert shipped.origin.facts["measured"]["random"] == 0.05
    with safe_open(tmp_path / "out" / "verse.safetensors", framework="np") as file:
        assert "continuations" in file.metadata()["record"]
    assert "| verse | 0 | 15 | poetry | 90% | 0% | 5% | 0.90 |" in ship_vectors.table(entries)
    with pytest.raises(ValueError, match="no layer"):
        ship_vectors.best(rows[1:3], "verse")
