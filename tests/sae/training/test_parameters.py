"""Normalisation, its folding, calibration and evaluation, against NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig
from lens_tui.sae.training.objective import (
    calibrated_threshold,
    encode_folded,
    fold,
    geometric_median,
    initial_parameters,
    normalizer,
    preactivations,
    reconstruct,
    tangent_rows,
    unit_rows,
)
from lens_tui.sae.training.trainer import measure

from .synthetic import PLACE, Synthetic


def sample(n: int = 500, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(n, d)) * 3 + rng.normal(size=d) * 20, np.float32)


@pytest.mark.parametrize("normalize", ["centered", "norm", "none"])
def test_folding_changes_nothing(normalize: str) -> None:
    config = TrainConfig(width=32, k=4, normalize=normalize)  # type: ignore[arg-type]
    x = sample()
    norm, b_dec = normalizer(mx.array(x), config)
    p = initial_parameters(config, b_dec)
    p["b_enc"] = mx.array(np.random.default_rng(1).normal(size=32).astype(np.float32))
    threshold = mx.array(np.random.default_rng(2).uniform(0.5, 1.0, 32).astype(np.float32))
    folded = fold(p, norm, threshold)
    pre = np.asarray(preactivations(p, norm(mx.array(x))), np.float64)
    normalised = np.where(pre > np.asarray(threshold), np.maximum(pre, 0), 0)
    scale = float(norm.scale)
    raw = np.asarray(encode_folded(folded, mx.array(x)))
    near = np.abs(pre - np.asarray(threshold)) < 1e-4  # rounding may decide there
    np.testing.assert_allclose(np.where(near, 0, raw / scale), np.where(near, 0, normalised), rtol=1e-5, atol=1e-5 * 5)
    x_hat = (raw / scale @ np.asarray(p["w_dec"]) + np.asarray(p["b_dec"])) * scale + np.asarray(norm.mean)
    np.testing.assert_allclose(np.asarray(reconstruct(folded, mx.array(x))), x_hat, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(folded["w_dec"]), axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("normalize", ["centered", "norm"])
def test_normalised_activations_have_mean_norm_sqrt_d(normalize: str) -> None:
    x = sample()
    norm, b_dec = normalizer(mx.array(x), TrainConfig(width=32, k=4, normalize=normalize))  # type: ignore[arg-type]
    x_n = np.asarray(norm(mx.array(x)))
    assert np.linalg.norm(x_n, axis=1).mean() == pytest.approx(8**0.5, rel=1e-5)
    raw_start = np.asarray(b_dec) * float(norm.scale) + np.asarray(norm.mean)
    np.testing.assert_allclose(raw_start, np.asarray(geometric_median(mx.array(x))), rtol=1e-5, atol=1e-4)


def test_geometric_median_is_not_moved_by_outliers() -> None:
    x = sample(400)
    clean = np.asarray(geometric_median(mx.array(x)))
    x[:8] += 1e5
    moved = np.asarray(geometric_median(mx.array(x)))
    assert np.abs(moved - clean).max() < 0.5 < np.abs(x.mean(0) - clean).max()

    def distance(point: np.ndarray) -> float:
        return float(np.linalg.norm(x - point, axis=1).sum())

    rng = np.random.default_rng(3)
    assert all(distance(moved) <= distance(moved + rng.normal(size=8) * 0.3) for _ in range(20))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    x = sample()
    x[3, 2] = value
    with pytest.raises(LensError, match="NaN or infinity"):
        normalizer(mx.array(x), TrainConfig(width=32, k=4))
    with pytest.raises(LensError, match="all the same"):
        normalizer(mx.ones((20, 8)), TrainConfig(width=32, k=4))


def test_rows_are_unit_and_gradients_tangent() -> None:
    rng = np.random.default_rng(4)
    w = unit_rows(mx.array(rng.normal(size=(5, 8)).astype(np.float32)))
    g = tangent_rows(mx.array(rng.normal(size=(5, 8)).astype(np.float32)), w)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(w), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(np.asarray(w) * np.asarray(g), axis=1), 0, atol=1e-5)


def test_calibration_meets_the_wanted_l0() -> None:
    config = TrainConfig(width=64, k=5)
    x = mx.array(sample(600))
    norm, b_dec = normalizer(x, config)
    p = initial_parameters(config, b_dec)
    threshold = float(calibrated_threshold(p, norm, x, 5))
    pre = np.asarray(preactivations(p, norm(x)))
    assert (pre > threshold).sum() == 5 * 600
    everything = float(calibrated_threshold(p, norm, x, 64))
    assert everything == 0.0  # a latent that does not fire is not made to


def test_evaluation_is_the_definition() -> None:
    source = Synthetic(rows=120)
    config = TrainConfig(width=40, k=4)
    x = np.concatenate([source.values(i)[~source.special()] for i in range(3)])
    norm, b_dec = normalizer(mx.array(x), config)
    folded = fold(initial_parameters(config, b_dec), norm, mx.array(1.5))
    result, density = measure(folded, source, PLACE, 2 * len(x) // 3 + 1, 7)
    assert (result.n_tokens, result.step) == (len(x), 7)
    pre = x.astype(np.float64) @ np.asarray(folded["w_enc"], np.float64) + np.asarray(folded["b_enc"])
    z = np.where(pre > np.asarray(folded["threshold"]), pre, 0)
    error = np.square(x - (z @ np.asarray(folded["w_dec"]) + np.asarray(folded["b_dec"]))).sum()
    fvu = error / np.square(x - x.mean(0)).sum()
    rate = (z > 0).mean(0)
    assert result.l0 == pytest.approx(rate.sum(), rel=1e-3)
    assert result.fvu == pytest.approx(fvu, rel=1e-3)
    assert result.dead == (rate == 0).mean()
    assert result.dense == (rate > 0.1).mean()
    np.testing.assert_allclose(density, rate, atol=2 / len(x))
    assert sum(result.density_counts) == (rate > 0).sum()
    assert result.loss_clean == 1.0
    assert result.loss_spliced == pytest.approx(1 + fvu, rel=1e-3)
    lost = 1 - fvu * np.square(x - x.mean(0)).sum() / np.square(x).sum()
    assert result.loss_recovered == pytest.approx(lost, rel=1e-3)
