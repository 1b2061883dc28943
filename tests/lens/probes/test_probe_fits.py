"""Fits, folds and scores of probes, held against what is written out here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lens_tui import sparse_probe
from lens_tui.lens.probes.probe_fits import L2, Reduced, auc_of, dealt, fit_many, numbered, r2_of, stratified, strongest
from lens_tui.records import LensError


def data(n: int, width: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    return rng.normal(size=(n, width)) * 3 + 5 + y[:, None] * rng.normal(size=width), y


@pytest.mark.parametrize(("n", "width"), [(60, 7), (20, 50)])
def test_a_logistic_probe_is_where_the_gradient_is_nothing(n: int, width: int) -> None:
    x, y = data(n, width)
    (w,), (b,) = fit_many("logistic", Reduced.of(x), y[:, None])
    size = np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())
    z, on_z = (x - x.mean(axis=0)) / size, w * size
    p = 1 / (1 + np.exp(-(x @ w + b)))
    assert np.abs(z.T @ (p - y) / n + L2 * on_z).max() < 1e-8
    assert abs((p - y).mean()) < 1e-8


@pytest.mark.parametrize(("n", "width"), [(60, 7), (20, 50)])
def test_a_linear_probe_is_the_normal_equations(n: int, width: int) -> None:
    x, y = data(n, width)
    y = y + np.random.default_rng(1).normal(size=n)
    (w,), (b,) = fit_many("ridge", Reduced.of(x), y[:, None], 0.3)
    size = np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())
    z = (x - x.mean(axis=0)) / size
    expected = np.linalg.solve(z.T @ z / n + 0.3 * np.eye(width), z.T @ (y - y.mean()) / n) / size
    np.testing.assert_allclose(w, expected, atol=1e-9)
    assert b == pytest.approx(y.mean() - x.mean(axis=0) @ expected)


def test_a_mean_difference_is_nothing_in_the_middle() -> None:
    x, y = data(30, 5)
    (w,), (b,) = fit_many("mean_difference", Reduced.of(x), y[:, None])
    plus, minus = x[y == 1].mean(axis=0), x[y == 0].mean(axis=0)
    np.testing.assert_allclose(w, plus - minus)
    assert w @ (plus + minus) / 2 + b == pytest.approx(0.0, abs=1e-9)


def test_many_labellings_are_each_what_it_is_alone() -> None:
    x, y = data(40, 60)
    labels = np.stack([y, 1 - y, np.roll(y, 3), np.roll(y, 7)], axis=1)
    for kind in ("mean_difference", "logistic", "ridge"):
        w, b = fit_many(kind, Reduced.of(x), labels)
        for at in range(4):
            (one,), (bias,) = fit_many(kind, Reduced.of(x), labels[:, at : at + 1])
            np.testing.assert_allclose(x @ w[at] + b[at], x @ one + bias, atol=2e-4)


def test_auc_counts_pairs_and_halves_of_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (25, 3)).astype(float)
    labels = rng.integers(0, 2, (25, 3)).astype(float)
    for at, found in enumerate(auc_of(scores, labels)):
        plus, minus = scores[labels[:, at] == 1, at], scores[labels[:, at] == 0, at]
        pairs = [1.0 if a > b else 0.5 * (a == b) for a, b in itertools.product(plus, minus)]
        assert found == pytest.approx(np.mean(pairs))
    assert np.isnan(auc_of(scores[:, :1], np.ones((25, 1)))[0])
    assert r2_of(labels, labels)[0] == 1.0
    assert r2_of(np.repeat(labels.mean(axis=0)[None], 25, axis=0), labels)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_keep_groups_together_and_labels_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = numbered(rng.integers(0, 30, 150).tolist())
    labels = (groups % 3 == 0).astype(np.float64)
    folds = stratified(labels, groups, 5, seed, classes=True)
    assert all(len(set(folds[groups == group])) == 1 for group in range(groups.max() + 1))
    shares = [labels[folds == fold].sum() / labels.sum() for fold in range(5)]
    assert max(shares) - min(shares) < 0.2
    np.testing.assert_array_equal(folds, stratified(labels, groups, 5, seed, classes=True))
    assert (folds != stratified(labels, groups, 5, seed + 7, classes=True)).any()
    pairs = numbered([at // 2 for at in range(40)])
    even = stratified((np.arange(40) % 2).astype(np.float64), pairs, 5, seed, classes=True)
    assert [int((even == fold).sum()) for fold in range(5)] == [8] * 5


def test_few_examples_give_fewer_folds_and_too_few_are_refused() -> None:
    labels = np.array([1.0, 1, 0, 0, 0, 0])
    assert stratified(labels, np.arange(6), 5, 0, classes=True).max() == 1
    with pytest.raises(LensError, match="too few"):
        stratified(np.array([1.0, 0, 0, 0]), np.arange(4), 5, 0, classes=True)


def test_labels_are_dealt_within_pairs_or_by_whole_groups() -> None:
    pairs = numbered([at // 2 for at in range(20)])
    labels = (np.arange(20) % 2).astype(np.float64)
    drawn = dealt(labels, pairs, 50, 0)
    assert (drawn.reshape(10, 2, 50).sum(axis=1) == 1).all()
    assert 0.3 < (drawn != labels[:, None]).mean() < 0.7
    whole = dealt((pairs < 4).astype(np.float64), pairs, 50, 0)
    assert (whole.reshape(10, 2, 50).std(axis=1) == 0).all()
    assert (whole.sum(axis=0) == 8).all()


def test_a_sparse_probe_finds_the_features_and_its_null_is_half() -> None:
    rng = np.random.default_rng(2)
    y = np.arange(80) % 2
    features = np.maximum(rng.normal(size=(80, 40)), 0)
    features[:, [7, 19]] += y[:, None] * 2.0
    probe = sparse_probe(features, y, 2, permutations=40)
    assert probe.features == (7, 19)
    assert probe.held_out.value > 0.9
    assert probe.held_out.null_mean == pytest.approx(0.5, abs=0.06)
    assert probe.held_out.p == pytest.approx(1 / 41)
    assert probe == sparse_probe(features, y, 2, permutations=40)
    noise = sparse_probe(features[:, 20:], y, 2, permutations=40)
    assert noise.held_out.p is not None
    assert noise.held_out.p > 0.05
    np.testing.assert_array_equal(strongest(features, y, 2), [7, 19])


def test_chosen_on_what_is_held_out_noise_would_look_like_a_finding() -> None:
    """Features are chosen in each fold: with 500 of noise and 30 examples the score stays at chance."""
    rng = np.random.default_rng(4)
    values = [
        sparse_probe(rng.normal(size=(30, 500)), np.arange(30) % 2, 3, permutations=0, seed=at).held_out.value
        for at in range(6)
    ]
    assert abs(float(np.mean(values)) - 0.5) < 0.12


@pytest.mark.parametrize(
    ("labels", "words"), [([0, 2, 1, 1], "not all 0 or 1"), ([0, 1], "4 examples"), (["a"] * 4, "not numbers")]
)
def test_labels_that_are_none_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(LensError, match=words):
        sparse_probe(np.ones((4, 3)), labels, 1)
