"""The losses and their gradients against NumPy, and against finite differences where they are smooth."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui.records.training import TrainConfig
from lens_tui.sae.training import objective as module
from lens_tui.sae.training.objective import (
    Parameters,
    adam,
    auxiliary_loss,
    batch_threshold,
    jumprelu,
    learning_rate,
    losses,
)

D, F, N = 6, 16, 40
Arrays = dict[str, NDArray[np.float64]]


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    w_dec = rng.normal(size=(F, D))
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    return {
        "w_enc": rng.normal(size=(D, F)),
        "w_dec": w_dec,
        "b_enc": rng.normal(size=F) * 0.1,
        "b_dec": rng.normal(size=D) * 0.1,
        "log_threshold": rng.normal(size=F) * 0.2,
    }


def on_device(p: Arrays) -> Parameters:
    return {name: mx.array(value.astype(np.float32)) for name, value in p.items()}


def batch(seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(N, D))


def selected(p: Arrays, x: NDArray[np.float64], config: TrainConfig) -> NDArray[np.float64]:
    """The activations, written independently: by sorting in NumPy."""
    pre = (x - p["b_dec"]) @ p["w_enc"] + p["b_enc"]
    if config.architecture == "jumprelu":
        return np.where(pre > np.exp(p["log_threshold"]), pre, 0)
    z = np.zeros_like(pre)
    if config.architecture == "topk":
        for row, out in zip(pre, z, strict=True):
            best = np.argsort(row)[-config.k :]
            out[best] = np.maximum(row[best], 0)
    else:
        best = np.argsort(pre, axis=None)[-config.k * len(x) :]
        z.reshape(-1)[best] = np.maximum(pre.reshape(-1)[best], 0)
    return z


def total(p: Arrays, x: NDArray[np.float64], idle: NDArray[np.int32], config: TrainConfig) -> float:
    """The whole objective by NumPy (ramp 1)."""
    z = selected(p, x, config)
    errors = [np.square(z[:, :m] @ p["w_dec"][:m] + p["b_dec"] - x).mean() for m in (*config.matryoshka, F)]
    loss = float(np.mean(errors))
    left = x - (z @ p["w_dec"] + p["b_dec"])
    dead = np.flatnonzero(idle > config.dead_after)
    if config.aux_coefficient and len(dead):
        pre = np.maximum((x - p["b_dec"]) @ p["w_enc"][:, dead] + p["b_enc"][dead], 0)
        for row in pre:
            row[np.argsort(row)[: -config.aux_k]] = 0
        loss += config.aux_coefficient * float(np.square(left - pre @ p["w_dec"][dead]).mean())
    if config.architecture == "jumprelu":
        share = (z > 0).sum(1).mean() / config.k
        loss += config.l0_coefficient * float(share if config.l0_linear else (share - 1) ** 2)
    return loss


def config(architecture: Any, **settings: Any) -> TrainConfig:
    return TrainConfig(width=F, k=3, architecture=architecture, aux_k=2, dead_after=10, **settings)


IDLE = np.where(np.arange(F) % 4 == 0, 50, 0).astype(np.int32)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("settings", [{}, {"matryoshka": (3, 9)}, {"l0_linear": True}, {"aux_coefficient": 0.0}])
def test_the_objective_is_the_formula(architecture: str, settings: dict[str, Any]) -> None:
    c, p, x = config(architecture, **settings), weights(), batch()
    found = losses(on_device(p), mx.array(x.astype(np.float32)), mx.array(IDLE), mx.array(1.0), c)
    assert float(found.total) == pytest.approx(total(p, x, IDLE, c), rel=1e-5)
    z = selected(p, x, c)
    assert float(found.l0) == pytest.approx((z > 0).sum(1).mean(), abs=1e-6)
    assert np.array_equal(np.asarray(found.fired), (z > 0).any(0))
    assert float(found.error) == pytest.approx(np.square(z @ p["w_dec"] + p["b_dec"] - x).mean(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_gradients_by_finite_differences(architecture: str) -> None:
    """Without AuxK, whose target is held constant, the objective is smooth between switches of the selection."""
    c, p, x = config(architecture, aux_coefficient=0.0, matryoshka=(5,)), weights(2), batch(3)
    p.pop("log_threshold")

    def objective(q: Parameters) -> mx.array:
        return losses(q, mx.array(x.astype(np.float32)), mx.array(IDLE), mx.array(1.0), c).total

    gradient = mx.grad(objective)(on_device(p))
    rng = np.random.default_rng(4)
    for name, value in p.items():
        for _ in range(6):
            place = tuple(int(rng.integers(n)) for n in value.shape)
            up, down = ({k: v.copy() for k, v in p.items()} for _ in range(2))
            up[name][place] += 1e-6
            down[name][place] -= 1e-6
            slope = (total(up, x, IDLE, c) - total(down, x, IDLE, c)) / 2e-6
            assert float(np.asarray(gradient[name])[place]) == pytest.approx(slope, rel=2e-3, abs=2e-5), name


def test_jumprelu_gradients_are_the_straight_through_estimators() -> None:
    rng = np.random.default_rng(5)
    pre, log_t = rng.normal(size=(N, F)) + 1, rng.normal(size=F) * 0.2
    up_z, up_gate = rng.normal(size=(N, F)), rng.normal(size=(N, F))
    bandwidth = 0.4

    def dotted(a: mx.array, t: mx.array) -> mx.array:
        z, gate = jumprelu(a, t, bandwidth)
        return mx.sum(z * mx.array(up_z.astype(np.float32))) + mx.sum(gate * mx.array(up_gate.astype(np.float32)))

    given = mx.array(pre.astype(np.float32)), mx.array(log_t.astype(np.float32))
    to_pre, to_log_t = mx.grad(dotted, argnums=(0, 1))(*given)
    threshold = np.exp(log_t)
    fires = pre > threshold
    kernel = (np.abs(pre - threshold) < bandwidth / 2) / bandwidth
    assert kernel.any()
    np.testing.assert_allclose(np.asarray(to_pre), up_z * fires, atol=1e-6)
    by_hand = (-(threshold * up_z + up_gate) * kernel).sum(0) * threshold  # times dt/dlog t
    np.testing.assert_allclose(np.asarray(to_log_t), by_hand, rtol=1e-4, atol=1e-4)


def test_auxk_takes_the_longest_dead_and_leaves_the_living_alone() -> None:
    c = TrainConfig(width=F, k=3, aux_k=2, aux_slots=3, dead_after=10)
    p, x = on_device(weights()), mx.array(batch().astype(np.float32))
    idle = np.zeros(F, np.int32)
    idle[[2, 5, 7, 11, 13]] = [90, 20, 70, 80, 30]  # the three longest: 2, 11, 7
    error = mx.array(np.random.default_rng(6).normal(size=(N, D)).astype(np.float32))

    def aux(q: Parameters) -> mx.array:
        return auxiliary_loss(q, x, error, mx.array(idle), c)

    gradient = mx.grad(aux)(p)
    touched = np.flatnonzero(np.abs(np.asarray(gradient["w_dec"])).sum(1))
    assert set(touched) == {2, 7, 11}
    assert np.abs(np.asarray(gradient["b_dec"])).max() == 0
    assert float(auxiliary_loss(p, x, error, mx.zeros((F,), mx.int32), c)) == 0.0


def test_batch_threshold_of_a_wide_batch_is_that_of_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = np.random.default_rng(7).normal(size=(64, 32)).astype(np.float32)
    for limit, rows in ((1 << 21, 64), (32 * 16, 16), (1, 1)):
        monkeypatch.setattr(module, "_SELECTION_LIMIT", limit)
        found = float(batch_threshold(mx.array(pre), 5))
        assert found == np.sort(pre[:rows], axis=None)[-5 * rows]


def test_adam_is_mlx_adam_and_the_rate_warms_up_and_decays() -> None:
    c = TrainConfig(width=F, k=3, batch=10, tokens=200, learning_rate=0.01, warmup=0.2, decay=0.5)
    rates = [float(learning_rate(c, mx.array(i))) for i in range(c.steps)]
    by_hand = [0.01 * min(1.0, (i + 1) / 4, (20 - i) / 10) for i in range(20)]
    np.testing.assert_allclose(rates, by_hand, rtol=1e-5)
    p = on_device(weights())
    theirs = optim.Adam(lambda step: learning_rate(c, step), betas=list(c.betas), bias_correction=True)
    mine, m, v = p, {n: mx.zeros_like(a) for n, a in p.items()}, {n: mx.zeros_like(a) for n, a in p.items()}
    other: Any = dict(p)
    for i in range(5):
        gradient = on_device(weights(10 + i))
        mine, m, v = adam(mine, gradient, m, v, mx.array(i), c)
        other = theirs.apply_gradients(gradient, other)
    for name in p:
        np.testing.assert_allclose(np.asarray(mine[name]), np.asarray(other[name]), rtol=1e-5, atol=1e-6)


def test_bfloat16_products_keep_float32_gradients_close() -> None:
    p, x = on_device(weights()), mx.array(batch().astype(np.float32))

    def objective(q: Parameters, c: TrainConfig) -> mx.array:
        return losses(q, x, mx.array(IDLE), mx.array(1.0), c).total

    fine = mx.grad(objective)(p, config("topk"))
    coarse = mx.grad(objective)(p, config("topk", compute="bfloat16"))
    for name in ("w_enc", "w_dec", "b_dec"):
        assert coarse[name].dtype == mx.float32
        a, b = np.asarray(fine[name]), np.asarray(coarse[name])
        assert np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.98, name
