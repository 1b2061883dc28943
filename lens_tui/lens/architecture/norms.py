"""What a norm of a model is: its gain, its bias and what it divides by, read off what it gives whatever its form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui.records import FloatArray, LensError

Array = NDArray[np.float64]


def gain_of(norm: Module, width: int) -> FloatArray:
    """What the norm multiplies each component by: read off its output on a vector of ±1, whatever form it has.

    The vector has mean 0 and mean square 1 (d_model is even), so neither RMS nor
    layer norm scales it, and half the difference of two signs drops a bias.
    """
    signs = np.where(np.arange(width) % 2 == 0, 1.0, -1.0).astype(np.float32)
    x = mx.array(signs)[None, None]
    gain = np.array(((norm(x) - norm(-x)) / 2).astype(mx.float32))[0, 0] * signs
    result: FloatArray = gain.astype(np.float32)
    return result


@dataclass(frozen=True, eq=False)
class HeldNorm:
    """A norm with its denominators as they were at ``p`` residuals: linear but for its ``shift`` ``(d_model,)``.

    ``scale`` ``(p, d_model)`` is the gain over the denominator; ``centred`` says that the mean is taken away first.
    """

    scale: Array
    centred: bool
    shift: Array


def held_norm(norm: Module, h: mx.array, gain: FloatArray) -> HeldNorm:
    """The norm at residuals ``(1, p, width)``, float32, whose gain is known (:func:`gain_of`).

    Raises :class:`LensError` for what is neither an RMS norm nor a layer norm.
    """
    called: Any = norm
    zero, one = mx.zeros((1, 1, h.shape[-1])), mx.ones((1, 1, h.shape[-1]))
    shift = numbers_of(called(zero))[0]
    level = numbers_of(called(one))[0] - shift
    centred = bool(np.abs(level).max() < 1e-3 * max(np.abs(gain).max(), 1e-30))
    scale = gain_over_denominator(numbers_of(h), numbers_of(called(h)) - shift, gain.astype(np.float64), centred)
    return HeldNorm(scale, centred, shift)


def gain_over_denominator(h: Array, normed: Array, gain: Array, centred: bool) -> Array:
    """The norm's gain over its denominator at each position, the denominator read off what the norm gave."""
    lifted = gain * (h - h.mean(axis=-1, keepdims=True) if centred else h)
    share = (lifted * normed).sum(axis=-1) / np.maximum((lifted * lifted).sum(axis=-1), 1e-300)
    error = np.linalg.norm(normed - share[:, None] * lifted, axis=-1)
    if (error > 1e-3 * np.linalg.norm(normed, axis=-1)).any():
        raise LensError(
            "A norm of this model is neither an RMS norm nor a layer norm, so logits cannot be taken apart."
        )
    result: Array = gain * share[:, None]
    return result


def doubles_of(array: mx.array) -> Array:
    """The numbers of an array in float64."""
    return np.array(array.astype(mx.float32), dtype=np.float64)


def numbers_of(array: mx.array) -> Array:
    """Those of the first row of a batch."""
    result: Array = doubles_of(array)[0]
    return result
