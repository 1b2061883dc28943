"""Directions from contrasting texts at every layer, from tokens and from others, as jobs and against NumPy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lens_tui import LensModel, contrast
from lens_tui.records import SteeringVector
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.folders import D_MODEL, N_LAYERS
from tests.worker.drive import Driver, only

POSITIVE = ("The dog ran home.", "A dog barked at it.", "Dogs like the park.", "My dog is old.")
NEGATIVE = ("The cat sat there.", "A cat slept on it.", "Cats like the sun.", "My cat is old.")


def mean_of(lens: LensModel, text: str, layer: int) -> NDArray[np.float64]:
    """The mean residual of a text's tokens but BOS."""
    h: NDArray[np.float64] = np.array(lens.residuals(text, layer), dtype=np.float64)
    return np.asarray(h[1:].mean(axis=0))


def test_all_layers_with_their_ranking_and_the_one_that_is_chosen(loaded: Driver, tiny: Path) -> None:
    ranked = only(loaded.done(jobs.VectorFromPrompts("dog", POSITIVE, NEGATIVE, None)), ev.LayersRanked)
    assert ranked.n_pairs == 4
    assert sorted(row.vector.layer for row in ranked.layers) == list(range(N_LAYERS))
    aucs = [row.auc or 0.0 for row in ranked.layers]
    assert aucs == sorted(aucs, reverse=True)
    lens = LensModel(str(tiny))
    library = contrast(lens, "dog", POSITIVE, NEGATIVE, over="all")
    assert [row.vector.layer for row in ranked.layers] == [score.layer for score in library.ranking]
    for row in ranked.layers:
        layer = row.vector.layer
        gap = np.mean([mean_of(lens, text, layer) for text in POSITIVE], axis=0)
        gap -= np.mean([mean_of(lens, text, layer) for text in NEGATIVE], axis=0)
        np.testing.assert_allclose(row.vector.direction, gap / np.linalg.norm(gap), atol=1e-5)
        assert row.gap == pytest.approx(np.linalg.norm(gap), rel=1e-4)
    chosen = ranked.layers[1].vector
    made = only(loaded.done(jobs.VectorGiven(chosen)), ev.VectorMade)
    assert made.vector is chosen
    assert made.residual_norm is not None
    assert len(made.promoted) == len(made.suppressed) == 10


@pytest.mark.parametrize("method", ["pca_diff", "pca_center", "logistic"])
def test_a_method_at_one_layer(loaded: Driver, tiny: Path, method: str) -> None:
    job = jobs.VectorFromPrompts("dog", POSITIVE, NEGATIVE, 1, "last", method)
    made = only(loaded.done(job), ev.VectorMade).vector
    library = contrast(LensModel(str(tiny)), "dog", POSITIVE, NEGATIVE, layers=1, method=method)  # type: ignore[arg-type]
    np.testing.assert_allclose(made.direction, library.best.direction, atol=1e-5)
    assert made.origin.facts["method"] == method


def test_pairs_of_a_file(loaded: Driver, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pairs = [{"positive": one, "negative": other} for one, other in zip(POSITIVE, NEGATIVE, strict=True)]
    file.write_text("\n".join(map(json.dumps, pairs)))
    typed = only(loaded.done(jobs.VectorFromPrompts("dog", POSITIVE, NEGATIVE, 2)), ev.VectorMade).vector
    read = only(loaded.done(jobs.VectorFromPrompts("dog", (), (), 2, path=str(file))), ev.VectorMade).vector
    assert read.direction.tobytes() == typed.direction.tobytes()


def test_sets_that_are_no_pairs(loaded: Driver) -> None:
    said = loaded.failed(jobs.VectorFromPrompts("dog", POSITIVE, NEGATIVE[:1], None))
    assert "4 texts toward and 1 away are not pairs" in said.message
    assert (
        "not pairs" in loaded.failed(jobs.VectorFromPrompts("d", POSITIVE, NEGATIVE[:1], 1, "all", "logistic")).message
    )
    assert "no method 'sum'" in loaded.failed(jobs.VectorFromPrompts("d", POSITIVE, NEGATIVE, 1, "all", "sum")).message
    assert "over 'half'" in loaded.failed(jobs.VectorFromPrompts("d", POSITIVE, NEGATIVE, 1, "half")).message
    one = only(loaded.done(jobs.VectorFromPrompts("d", POSITIVE[:1], NEGATIVE[:1], None)), ev.LayersRanked)
    assert {row.auc for row in one.layers} == {None}  # nothing can be held out of one pair


def test_a_tokens_rows(loaded: Driver, tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    rows, gain = weights["model.embed_tokens.weight"].astype(np.float64), weights["model.norm.weight"]
    made = only(loaded.done(jobs.VectorFromToken("id:300", 2)), ev.VectorMade).vector
    np.testing.assert_allclose(made.direction, rows[300] * gain / np.linalg.norm(rows[300] * gain), atol=1e-5)
    made = only(loaded.done(jobs.VectorFromToken("id:300", 2, "embedding", "x")), ev.VectorMade).vector
    np.testing.assert_allclose(made.direction, rows[300] / np.linalg.norm(rows[300]), atol=1e-5)
    assert (made.name, made.layer) == ("x", 2)
    assert "kind 'row'" in loaded.failed(jobs.VectorFromToken("id:1", 2, "row")).message
    assert "id: and a number" in loaded.failed(jobs.VectorFromToken("id:x", 2)).hint
    loaded.failed(jobs.VectorFromToken("several words of text", 2))


def test_sums_and_one_without_the_others(loaded: Driver) -> None:
    rng = np.random.default_rng(3)
    a, b = (SteeringVector.of(name, rng.normal(size=D_MODEL) * size, 1) for name, size in (("a", 3.0), ("b", 0.5)))
    wide_a, wide_b = (vector.direction.astype(np.float64) for vector in (a, b))

    def made(job: jobs.VectorFromVectors) -> SteeringVector:
        return only(loaded.done(job), ev.VectorMade).vector

    terms = ((1.0, a), (-0.5, b))
    for unit, expected in ((True, wide_a - 0.5 * wide_b), (False, a.norm * wide_a - 0.5 * b.norm * wide_b)):
        found = made(jobs.VectorFromVectors("s", terms, unit=unit))
        np.testing.assert_allclose(found.direction, expected / np.linalg.norm(expected), atol=1e-6)
        assert found.norm == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    left = made(jobs.VectorFromVectors("w", terms, less=True))
    rest = wide_a - (wide_a @ wide_b) / (wide_b @ wide_b) * wide_b
    np.testing.assert_allclose(left.direction, rest / np.linalg.norm(rest), atol=1e-6)
    assert "nothing to leave out" in loaded.failed(jobs.VectorFromVectors("w", terms[:1], less=True)).message
    other = ((1.0, a), (1.0, replace(b, layer=2)))
    assert "belong to different places" in loaded.failed(jobs.VectorFromVectors("s", other)).message
