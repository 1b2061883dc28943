"""Vectors from pairs, tokens and other vectors: every number against plain numpy on activations read one by one."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens import vectors
from lens_tui.lens.vectors import contrast
from lens_tui.records import LensError, SteeringVector

from . import numpy_models, tiny
from .numpy_models import Array

random = np.random.default_rng(0)
# Pairs of different lengths, told apart by what the last three tokens are.
POSITIVE = [[1, *random.integers(10, 90, 3 + n % 4).tolist(), 3, 4, 5] for n in range(8)]
NEGATIVE = [[*row[:-3], 6, 7, 8] for row in POSITIVE]


def numpy_activations(reference: Any, model: Any, layer: int, over: str) -> tuple[Array, Array]:
    rows = []
    for ids in (*POSITIVE, *NEGATIVE):
        seen: dict[int, Array] = {}

        def keep(at: int, site: str, x: Array, seen: dict[int, Array] = seen) -> Array:
            if site == "resid_post":
                seen[at] = x
            return x

        reference(model, tuple(ids), keep)
        rows.append(seen[layer][-1] if over == "last" else seen[layer][1:].mean(axis=0))
    return np.stack(rows[:8]), np.stack(rows[8:])


def same_line(found: SteeringVector, expected: Any, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(found.direction, expected / np.linalg.norm(expected), atol=atol)


@pytest.mark.parametrize("over", ["last", "all"])
@pytest.mark.parametrize(("make", "reference"), [(tiny.llama, numpy_models.llama), (tiny.gemma3, numpy_models.gemma3)])
def test_methods_against_numpy(make: Any, reference: Any, over: Any) -> None:
    model = make()
    lens = LensModel.from_model(model, name="m")
    plus, minus = numpy_activations(reference, model, 2, over)
    made = contrast(lens, "v", POSITIVE, NEGATIVE, layers=[2, -1], over=over)
    same_line(made.at(2), plus.mean(0) - minus.mean(0))
    assert made.at(2).norm == pytest.approx(np.linalg.norm(plus.mean(0) - minus.mean(0)), rel=1e-5)
    assert [vector.layer for vector in made.vectors] == [2, 3]
    assert made.best.layer == made.ranking[0].layer
    for method, rows in (("pca_diff", plus - minus), ("pca_center", np.concatenate([plus - minus, minus - plus]) / 2)):
        axis = np.linalg.svd(rows - rows.mean(0))[2][0]
        ahead = np.sign(((plus - minus) @ axis > 0).sum() - 3.9)
        found = contrast(lens, "v", POSITIVE, NEGATIVE, layers=2, method=method, over=over).vectors[0]  # type: ignore[arg-type]
        same_line(found, axis * ahead, 2e-4)
        assert found.norm == pytest.approx(1.0)
        assert ((plus - minus) @ found.direction > 0).sum() >= 4
    facts = found.origin.facts
    assert (facts["method"], facts["over"], len(facts["sha256"]), facts["positive"]) == (method, over, 64, POSITIVE)
    assert facts["gap"] == pytest.approx(float((plus - minus).mean(0) @ found.direction), rel=1e-4)


@pytest.mark.parametrize("bits", [0, 4])
def test_low_precision_reads_what_capture_reads(bits: int) -> None:
    lens = LensModel.from_model(tiny.llama(bits=bits, dtype=mx.bfloat16))
    made = contrast(lens, "v", POSITIVE, NEGATIVE, layers=1)
    each = [np.array(lens.residuals(ids, 1).astype(mx.float32))[-1] for ids in (*POSITIVE, *NEGATIVE)]
    expected = np.mean(each[:8], axis=0) - np.mean(each[8:], axis=0)
    assert np.dot(made.vectors[0].direction, expected / np.linalg.norm(expected)) > 0.999


def test_logistic_regression_is_at_its_minimum() -> None:
    plus, minus = random.normal(size=(2, 12, 30))
    plus = plus + 0.4
    w, loss = vectors.logistic(plus, minus)
    x = np.concatenate([plus, minus])
    x = x - x.mean(0)
    x /= np.sqrt((x**2).sum(1).mean())
    y = np.repeat([1.0, -1.0], 12)
    assert np.linalg.norm(w) == pytest.approx(1.0)

    def at(weights: Array, b: float) -> float:
        terms = np.log1p(np.exp(-y * (x @ weights + b)))
        return float(terms.mean() + 0.005 * (weights**2).sum())

    # Convex, so a plain gradient descent comes to the same place.
    weights, b = np.zeros(30), 0.0
    for _ in range(20000):
        p = 1 / (1 + np.exp(y * (x @ weights + b)))
        weights -= 2.0 * (-(x * (y * p)[:, None]).mean(0) + 0.01 * weights)
        b -= 2.0 * float(-(y * p).mean())
    assert loss == pytest.approx(at(weights, b), abs=1e-9)
    np.testing.assert_allclose(w, weights / np.linalg.norm(weights), atol=1e-5)


def test_separation_by_counting() -> None:
    plus, minus = np.array([3.0, 1.0, 0.5, 2.0]), np.array([1.0, 1.0, -1.0, 2.5])
    found = vectors.separation(plus, minus, midpoint=1.0)
    assert found.pairs == (1 + 0.5 + 1 + 0) / 4
    wins = sum((a > b) + 0.5 * (a == b) for a in plus for b in minus)
    assert found.auc == wins / 16
    assert found.accuracy == (1 + 0.5 + 0 + 1 + 0.5 + 0.5 + 1 + 0) / 8
    spread = np.sqrt((plus.var() + minus.var()) / 2)
    assert found.d_prime == pytest.approx((plus.mean() - minus.mean()) / spread)


def test_held_out_pairs_are_never_in_the_fit() -> None:
    # Each pair differs along an axis of its own: seen, it separates perfectly; held out, not at all.
    plus, minus = np.eye(10), np.zeros((10, 10))
    folds = np.arange(10)
    seen = vectors.separation((plus @ plus.mean(0)), (minus @ plus.mean(0)))
    held = vectors.cross_validated("mean_difference", plus, minus, folds)
    assert (seen.auc, held.pairs) == (1.0, 0.5)


def test_layers_are_ranked_by_what_held_out_pairs_say() -> None:
    lens = LensModel.from_model(tiny.llama())
    made = contrast(lens, "v", POSITIVE, NEGATIVE)
    assert [vector.layer for vector in made.vectors] == [0, 1, 2, 3]
    scores = [(score.held_out.auc, score.held_out.d_prime) for score in made.ranking if score.held_out]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert scores[0][0] > 0.95
    single = contrast(lens, "v", POSITIVE[:1], NEGATIVE[:1], layers=[0, 1])
    assert all(score.held_out is None for score in single.ranking)


def test_what_cannot_be_made_is_one_sentence() -> None:
    lens = LensModel.from_model(tiny.llama())
    cases: tuple[tuple[Any, str], ...] = (
        (lambda: contrast(lens, "v", POSITIVE, NEGATIVE[:2]), "not 8 and 2"),
        (lambda: contrast(lens, "v", POSITIVE[:1], NEGATIVE[:1], method="pca_diff"), "at least 2 pairs"),
        (lambda: contrast(lens, "v", POSITIVE, NEGATIVE, method="umap"), "no method 'umap'"),  # type: ignore[arg-type]
        (lambda: contrast(lens, "v", POSITIVE, POSITIVE, layers=0), "is zero"),
        (lambda: contrast(lens, "v", POSITIVE, NEGATIVE, layers=9), "no layer 9"),
        (lambda: contrast(lens, "v", POSITIVE, NEGATIVE, layers=[]), "no layer to make"),
    )
    for call, message in cases:
        with pytest.raises(LensError, match=message):
            call()
    assert lens.registry.installed == ()


def test_chat_pairs_and_blocks_around_the_call() -> None:
    from lens_tui import demo

    lens = LensModel(str(demo.model_path()))
    texts = ["I like cats.", "The sun is warm."], ["I hate cats.", "The rain is cold."]
    made = contrast(lens, "v", *texts, layers=1)
    with lens.steer(0, np.ones(lens.d_model), 5.0):
        again = contrast(lens, "v", *texts, layers=1)
        lens.forward("x")
    assert again.vectors[0].direction.tobytes() == made.vectors[0].direction.tobytes()


def test_token_vectors() -> None:
    model = tiny.gemma3()
    lens = LensModel.from_model(model)
    w = numpy_models.weights_of(model)
    row = w["model.embed_tokens.weight"][17]
    same_line(vectors.from_token(lens, 17, 2), row * (1 + w["model.norm.weight"]))
    same_line(vectors.from_token(lens, 17, 2, convention="raw"), row)
    found = vectors.from_token(lens, 17, 2, kind="embedding")
    assert found.norm == pytest.approx(np.linalg.norm(row) * 8, rel=1e-5)
    assert (found.origin.kind, found.origin.facts["token"]) == ("token", 17)
    with pytest.raises(LensError, match="no token 97"):
        vectors.from_token(lens, 97, 0)


def test_arithmetic() -> None:
    a = SteeringVector.of("a", random.normal(size=16) * 3, 2, model="m")
    b = SteeringVector.of("b", random.normal(size=16), 2)
    total = vectors.combine("c", [(1.0, a), (-2.0, b)])
    expected = a.direction * a.norm - 2 * b.direction * b.norm
    same_line(total, expected, 1e-6)
    assert total.norm == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    assert total.model == "m"
    same_line(vectors.combine("c", [(1.0, a), (1.0, b)], unit=True), a.direction + b.direction, 1e-6)
    c = SteeringVector.of("c", random.normal(size=16), 2)
    left = vectors.without("d", a, b, c)
    assert max(abs(left.direction @ b.direction), abs(left.direction @ c.direction)) < 1e-6
    other = SteeringVector.of("o", np.ones(16), 3)
    cases: tuple[tuple[Any, str], ...] = (
        (lambda: vectors.combine("c", [(1.0, a), (-1.0, a)]), "is zero"),
        (lambda: vectors.combine("c", [(1.0, a), (1.0, other)]), "belong to different places"),
        (lambda: vectors.without("d", a, a), "Nothing of 'a' is left"),
    )
    for call, message in cases:
        with pytest.raises(LensError, match=message):
            call()
