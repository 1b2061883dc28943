"""One optimiser step: gradients, Adam, unit decoder rows, the idle counters. Compiled on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from lens_tui.records.training import TrainConfig

from .losses import losses
from .parameters import Normalizer, Parameters, tangent_rows, unit_rows

_IDLE_LIMIT = 1 << 30
_EPSILON = 1e-8

State = dict[str, Any]
"""``parameters``, Adam's moments ``m`` and ``v``, ``idle (f,)`` (tokens since each latent fired) and ``step``."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Lazy figures of one batch: squared error and variance (mean per dimension, normalised units), and mean L0."""

    error: mx.array
    variance: mx.array
    l0: mx.array


def initial_state(parameters: Parameters) -> State:
    """The state before the first step."""
    return {
        "parameters": parameters,
        "m": tree_map(mx.zeros_like, parameters),
        "v": tree_map(mx.zeros_like, parameters),
        "idle": mx.zeros(parameters["b_enc"].shape, mx.int32),
        "step": mx.array(0, mx.int32),
    }


def flatten_state(state: State) -> dict[str, mx.array]:
    """The state under flat names, ready for safetensors."""
    return dict(tree_flatten(state))


def unflatten_state(arrays: dict[str, mx.array]) -> State:
    """What ``flatten_state`` was given."""
    state: State = tree_unflatten(list(arrays.items()))
    return state


def learning_rate(config: TrainConfig, step: mx.array) -> mx.array:
    """Linear warm-up over the first ``warmup`` share of the steps, linear decay to 0 over the last ``decay`` share."""
    now = step.astype(mx.float32)
    up = (now + 1) / max(1.0, config.warmup * config.steps)
    down = (config.steps - now) / max(1.0, config.decay * config.steps)
    return config.learning_rate * mx.clip(mx.minimum(up, down), 0.0, 1.0)


def sparsity_ramp(config: TrainConfig, step: mx.array) -> mx.array:
    """How much of the L0 penalty counts at ``step``: from 0 to 1 over the ``l0_warmup`` share of the steps."""
    return mx.minimum((step.astype(mx.float32) + 1) / max(1.0, config.l0_warmup * config.steps), 1.0)


def adam(
    p: Parameters, gradient: Parameters, m: Parameters, v: Parameters, step: mx.array, config: TrainConfig
) -> tuple[Parameters, Parameters, Parameters]:
    """Adam with bias correction (Kingma and Ba 2015) as a pure function, so that the whole step can be one too.

    ``step`` counts from 0. Gives the new ``p``, ``m`` and ``v``.
    """
    b1, b2 = config.betas
    count = step.astype(mx.float32) + 1
    rate = learning_rate(config, step) / (1 - mx.power(b1, count))
    spread = mx.rsqrt(1 - mx.power(b2, count))
    m = {name: b1 * m[name] + (1 - b1) * gradient[name] for name in p}
    v = {name: b2 * v[name] + (1 - b2) * mx.square(gradient[name]) for name in p}
    new = {name: p[name] - rate * m[name] / (mx.sqrt(v[name]) * spread + _EPSILON) for name in p}
    return new, m, v


class Step:
    """``state, figures = step(state, x)`` for a batch ``(n, d)`` of raw activations. Lazy; changes nothing in place."""

    def __init__(self, config: TrainConfig, norm: Normalizer, compiled: bool | None = None) -> None:
        self._config, self._norm = config, norm
        if compiled is None:
            # On a CPU the time goes into matrix products: compiling would cost seconds and gain nothing.
            compiled = mx.default_device() == mx.Device(mx.gpu)
        self._run: Any = mx.compile(self._advance) if compiled else self._advance

    def __call__(self, state: State, x: mx.array) -> tuple[State, StepFigures]:
        """One step of training."""
        state, figures = self._run(state, x)
        return state, StepFigures(*figures)

    def _advance(self, state: State, raw: mx.array) -> tuple[State, tuple[mx.array, ...]]:
        config, p, idle = self._config, state["parameters"], state["idle"]
        x = self._norm(raw)
        ramp = sparsity_ramp(config, state["step"])

        def objective(weights: Parameters) -> tuple[mx.array, ...]:
            return tuple(losses(weights, x, idle, ramp, config))

        (_, error, l0, fired), gradient = mx.value_and_grad(objective)(p)
        gradient = {**gradient, "w_dec": tangent_rows(gradient["w_dec"], p["w_dec"])}
        p, m, v = adam(p, gradient, state["m"], state["v"], state["step"], config)
        p = {**p, "w_dec": unit_rows(p["w_dec"])}
        idle = mx.where(fired, 0, mx.minimum(idle + raw.shape[0], _IDLE_LIMIT))
        variance = mx.mean(mx.square(x - mx.mean(x, axis=0)))
        new = {"parameters": p, "m": m, "v": v, "idle": idle, "step": state["step"] + 1}
        return new, (error, variance, l0)
