"""The weights of an SAE in training, how they start, and how normalisation is folded into them at the end.

In training an SAE sees ``x_n = (x - mean) / scale``. Weights are a plain dict of float32
arrays: ``w_enc (d, f)``, ``w_dec (f, d)`` with unit rows, ``b_enc (f,)``, ``b_dec (d,)`` and, for
JumpReLU, ``log_threshold (f,)``. The pre-activation is ``(x_n - b_dec) @ w_enc + b_enc``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig

Parameters = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Normalizer:
    """``x_n = (x - mean) / scale``: ``mean`` has shape ``(d,)``, ``scale`` is a scalar array, both float32."""

    mean: mx.array
    scale: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        """Normalised float32 activations."""
        return (x.astype(mx.float32) - self.mean) * (1.0 / self.scale)


def scalar(x: mx.array) -> float:
    """The value of an array with one element."""
    value: Any = x.item()
    return float(value)


def geometric_median(x: mx.array, iterations: int = 50) -> mx.array:
    """The point with the least summed distance to the rows of ``x (n, d)``, by Weiszfeld's iteration, float32 ``(d,)``.

    It stands for the mean where a few positions have huge norms, which would drag the mean along.
    """
    x = x.astype(mx.float32)
    point = mx.mean(x, axis=0)
    floor = 1e-6 * mx.mean(mx.linalg.norm(x - point, axis=-1)) + 1e-12
    for _ in range(iterations):
        weight = 1.0 / mx.maximum(mx.linalg.norm(x - point, axis=-1, keepdims=True), floor)
        point = mx.sum(weight * x, axis=0) / mx.sum(weight)
        mx.eval(point)
    return point


def normalizer(sample: mx.array, config: TrainConfig) -> tuple[Normalizer, mx.array]:
    """The normaliser that a sample ``(n, d)`` of raw activations asks for, and the ``b_dec`` to start from.

    Raises ``LensError`` when the sample is not finite or does not vary.
    """
    d = sample.shape[-1]
    x = sample.astype(mx.float32)
    if not bool(mx.all(mx.isfinite(x)).item()):
        raise LensError("The activations to train on hold NaN or infinity.", "Check the model at this layer and site.")
    median = geometric_median(x[: 1 << 14])
    zero, one = mx.zeros((d,)), mx.array(1.0)
    if config.normalize == "none":
        return Normalizer(zero, one), median
    centre = median if config.normalize == "centered" else zero
    scale = mx.mean(mx.linalg.norm(x - centre, axis=-1)) / d**0.5
    mx.eval(centre, scale)
    if not scalar(scale) > 0:
        raise LensError("The activations to train on are all the same.", "Check the layer, the site and the text.")
    return Normalizer(centre, scale), (median - centre) / scale


def initial_parameters(config: TrainConfig, b_dec: mx.array) -> Parameters:
    """Random unit decoder rows, the encoder their transpose, and the given ``b_dec``."""
    d = b_dec.shape[0]
    w_dec = unit_rows(mx.random.normal((config.width, d), key=mx.random.key(config.seed)))
    p = {"w_enc": w_dec.T, "w_dec": w_dec, "b_enc": mx.zeros((config.width,)), "b_dec": b_dec}
    if config.architecture == "jumprelu":
        p["log_threshold"] = mx.full((config.width,), mx.log(mx.array(config.initial_threshold or 1.0)))
    return {name: mx.contiguous(value) for name, value in p.items()}


def unit_rows(w: mx.array) -> mx.array:
    """Rows scaled to length 1."""
    return w / mx.maximum(mx.linalg.norm(w, axis=-1, keepdims=True), 1e-12)


def tangent_rows(gradient: mx.array, w: mx.array) -> mx.array:
    """The gradient without its part along each unit row of ``w``: that part would only change the row's length."""
    return gradient - mx.sum(gradient * w, axis=-1, keepdims=True) * w


def preactivations(p: Parameters, x: mx.array, dtype: mx.Dtype = mx.float32) -> mx.array:
    """``(x - b_dec) @ w_enc + b_enc`` for normalised ``x (n, d)``; the product is computed in ``dtype``."""
    # Taking b_dec through the encoder once is cheaper than a gradient of every row of x.
    bias = p["b_enc"] - p["b_dec"] @ p["w_enc"]
    return x.astype(dtype) @ p["w_enc"].astype(dtype) + bias.astype(dtype)


def fold(p: Parameters, norm: Normalizer, threshold: mx.array) -> Parameters:
    """The same SAE for raw activations, as a JumpReLU SAE: ``relu(x @ w_enc + b_enc)`` where above ``threshold``.

    ``threshold`` is normalised, a scalar or ``(f,)``. Activations come out multiplied by ``norm.scale``,
    so that they are in residual-stream units on unit decoder rows.
    """
    b_dec = p["b_dec"] * norm.scale + norm.mean
    return {
        "w_enc": p["w_enc"],
        "w_dec": p["w_dec"],
        "b_enc": p["b_enc"] * norm.scale - b_dec @ p["w_enc"],
        "b_dec": b_dec,
        "threshold": mx.broadcast_to(threshold * norm.scale, p["b_enc"].shape) + 0.0,
    }


def encode_folded(folded: Parameters, x: mx.array) -> mx.array:
    """Activations ``(n, f)`` of raw ``x (n, d)`` under folded weights, float32."""
    pre = x.astype(mx.float32) @ folded["w_enc"] + folded["b_enc"]
    return mx.where(pre > folded["threshold"], mx.maximum(pre, 0), 0)


def decode_folded(folded: Parameters, z: mx.array) -> mx.array:
    """The reconstruction ``(n, d)`` in raw units."""
    return z @ folded["w_dec"] + folded["b_dec"]
