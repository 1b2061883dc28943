"""The step from the last residual to one logit, made linear at a position by keeping the norm's denominator fixed.

``logit = direction . residual + constant``: exact at that residual, for any vector
that is a part of it. Both are proved against the model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui.records import LensError

from .layers import Decoder
from .unembed import Unembedding, apply_head, readout, softcap_of

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FinalStep:
    """The last norm and the unembedding at ``p`` residuals: what they make of them, and how.

    ``logits`` and ``model_logits`` ``(p, vocabulary)`` are before and after soft-capping, ``scaled`` ``(p, d_model)``
    is the norm's gain over its denominator there, ``centred`` says that the norm takes the mean away (layer norm),
    ``shift`` ``(d_model,)`` is the norm's bias, ``factor`` what the model multiplies its logits with.
    """

    unembedding: Unembedding
    logits: Array
    model_logits: Array
    softcap: float
    scaled: Array
    centred: bool
    shift: Array
    factor: float

    def directions(self, targets: Sequence[int]) -> tuple[Array, Array]:
        """For one target token at each position the direction ``(p, d_model)`` and the constant ``(p,)``."""
        rows, bias = _rows(self.unembedding.head, targets)
        direction = self.factor * rows * self.scaled
        if self.centred:
            direction = direction - direction.mean(axis=-1, keepdims=True)
        return direction, self.factor * (rows @ self.shift + bias)


def final_step(decoder: Decoder, unembedding: Unembedding, residual: mx.array) -> FinalStep:
    """The step at residuals ``(p, d_model)``; raises :class:`LensError` where it is not what it seems."""
    h = residual.astype(mx.float32)[None]
    norm = unembedding.norm
    normed = norm(h)
    zero, one = mx.zeros((1, 1, decoder.d_model)), mx.ones((1, 1, decoder.d_model))
    shift = _numbers(norm(zero))[0]
    level = _numbers(norm(one))[0] - shift
    centred = bool(np.abs(level).max() < 1e-3 * max(np.abs(unembedding.gain).max(), 1e-30))
    scaled = _scaled(_numbers(h), _numbers(normed) - shift, unembedding.gain.astype(np.float64), centred)
    ours, theirs = _numbers(apply_head(unembedding.head, normed)), _numbers(readout(decoder, h))
    cap = softcap_of(decoder)
    factor = _factor(ours, theirs, cap)
    logits = factor * ours
    expected = cap * np.tanh(logits / cap) if cap else logits
    if not np.allclose(expected, theirs, rtol=1e-3, atol=1e-3 * max(float(np.abs(theirs).max()), 1e-30)):
        raise LensError(
            "The model's logits are not its final norm and unembedding alone, so they cannot be taken apart."
        )
    return FinalStep(unembedding, logits, theirs, cap, scaled, centred, shift, factor)


def _scaled(h: Array, normed: Array, gain: Array, centred: bool) -> Array:
    """The norm's gain over its denominator at each position, the denominator read off what the norm gave."""
    lifted = gain * (h - h.mean(axis=-1, keepdims=True) if centred else h)
    share = (lifted * normed).sum(axis=-1) / np.maximum((lifted * lifted).sum(axis=-1), 1e-300)
    error = np.linalg.norm(normed - share[:, None] * lifted, axis=-1)
    if (error > 1e-3 * np.linalg.norm(normed, axis=-1)).any():
        raise LensError("The final norm of this model is no RMS or layer norm, so logits cannot be taken apart.")
    result: Array = gain * share[:, None]
    return result


def _factor(ours: Array, theirs: Array, cap: float) -> float:
    """What the model multiplies its logits with, by least squares where soft-capping has left them apart."""
    keep = np.abs(theirs) < 0.9 * cap if cap else np.ones(theirs.shape, dtype=bool)
    x, y = ours[keep], theirs[keep]
    if cap:
        y = np.arctanh(y / cap) * cap
    square = float((x * x).sum())
    factor = float((x * y).sum()) / square if square else 1.0
    return 1.0 if abs(factor - 1.0) < 1e-3 else factor


def _rows(head: Module, tokens: Sequence[int]) -> tuple[Array, Array]:
    """Rows of the unembedding (p, d_model) and its bias (p,), in float32 also where the layer is quantised."""
    at = mx.array(list(tokens))
    rows = head["weight"][at]
    if "scales" in head:
        biases = None if head.get("biases") is None else _widened(head["biases"][at])
        rows = mx.dequantize(
            rows,
            _widened(head["scales"][at]),
            biases,
            group_size=head.group_size,
            bits=head.bits,
            mode=getattr(head, "mode", "affine"),
        )
    bias: Any = head.get("bias")
    return _plain(rows), np.zeros(len(tokens)) if bias is None else _plain(bias[at])


def _widened(part: mx.array) -> mx.array:
    return part.astype(mx.float32) if mx.issubdtype(part.dtype, mx.floating) else part


def _plain(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def _numbers(array: mx.array) -> Array:
    result: Array = _plain(array)[0]
    return result
