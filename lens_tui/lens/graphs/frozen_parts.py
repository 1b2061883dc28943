"""Norms and attentions as the linear maps that they are once denominators and patterns are held fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from ..architecture.norms import gain_of, held_norm


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm whose denominators are held: ``scale`` ``(tokens, width)``, ``shift`` ``(width,)``.

    ``centred`` norms take the mean away first. ``gain`` ``(width,)`` is what ``scale`` has in it beside them.
    """

    scale: mx.array
    shift: mx.array
    centred: bool
    gain: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        """What the norm gives for ``(..., tokens, width)``, of the first tokens where there are fewer."""
        return self.linear(x) + self.shift

    def linear(self, x: mx.array) -> mx.array:
        """The same without the shift."""
        x = x - mx.mean(x, axis=-1, keepdims=True) if self.centred else x
        return x * self.scale[: x.shape[-2]]

    def back(self, cotangent: mx.array) -> mx.array:
        """The transposed map: cotangents of what it gives to those of what it reads."""
        found = cotangent * self.scale[: cotangent.shape[-2]]
        return found - mx.mean(found, axis=-1, keepdims=True) if self.centred else found

    @property
    def without_gain(self) -> FrozenNorm:
        """The norm before its gain and shift: what is divided by the denominator only."""
        safe = mx.where(self.gain == 0, 1.0, self.gain)
        return FrozenNorm(self.scale / safe, mx.zeros_like(self.shift), self.centred, mx.ones_like(self.gain))


def frozen_norm(module: Module, x: mx.array) -> FrozenNorm:
    """A norm held where it reads ``(tokens, width)``. Raises :class:`LensError` where it is no RMS or layer norm."""
    x = x.astype(mx.float32)
    gain = gain_of(module, x.shape[-1])
    held = held_norm(module, x[None], gain)
    scale, shift = (mx.array(part.astype(np.float32)) for part in (held.scale, held.shift))
    return FrozenNorm(scale, shift, held.centred, mx.array(gain))


@dataclass(frozen=True, eq=False)
class FrozenAttention:
    """An attention whose patterns ``(heads, tokens, tokens)`` are held: values, mixed by them, and projected.

    ``value`` and ``output`` are the model's own projections, quantised ones among them. Heads share values in blocks,
    or take turns (``turns``).
    """

    patterns: mx.array
    value: Module
    output: Module
    width: int
    value_width: int
    z_width: int
    turns: bool

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one."""
        heads = self.patterns.shape[0]
        size = self.z_width // heads
        return heads, self.value_width // size, size

    def __call__(self, x: mx.array) -> mx.array:
        """What it gives for ``(rows, tokens, width)``, biases included."""
        value, output = _called(self.value), _called(self.output)
        given: mx.array = output(self.mixed(value(x).astype(mx.float32)))
        return given.astype(mx.float32)

    def mixed(self, values: mx.array) -> mx.array:
        """Values ``(rows, tokens, value_width)`` as the output projection reads them, ``(rows, tokens, z_width)``."""
        rows, tokens, _ = values.shape
        heads, groups, size = self._sizes
        parts = values.reshape(rows, tokens, groups, size).transpose(2, 1, 0, 3).reshape(groups, tokens, rows * size)
        shared = mx.tile(parts, (heads // groups, 1, 1)) if self.turns else mx.repeat(parts, heads // groups, axis=0)
        found = self.patterns[:, :tokens, :tokens] @ shared
        return found.reshape(heads, tokens, rows, size).transpose(2, 1, 0, 3).reshape(rows, tokens, heads * size)

    def back(self, cotangent: mx.array) -> mx.array:
        """The transposed map without biases: cotangents ``(rows, tokens, width)`` of what it gives to what it reads."""
        rows, tokens, _ = cotangent.shape
        heads, groups, size = self._sizes
        mixed = pulled_back(self.output, self.z_width, cotangent)
        parts = mixed.reshape(rows, tokens, heads, size).transpose(2, 1, 0, 3).reshape(heads, tokens, rows * size)
        found = self.patterns[:, :tokens, :tokens].swapaxes(1, 2) @ parts
        by_group = (heads // groups, groups) if self.turns else (groups, heads // groups)
        summed = found.reshape(*by_group, tokens, rows, size).sum(axis=0 if self.turns else 1)
        values = summed.transpose(2, 1, 0, 3).reshape(rows, tokens, groups * size)
        return pulled_back(self.value, self.width, values)


def pulled_back(module: Module, width: int, cotangent: mx.array) -> mx.array:
    """Cotangents of what a projection gives to those of what it reads; exact for quantised weights as well.

    Nothing is computed forwards: the primal is never looked at.
    """
    called = _called(module)
    zeros = mx.zeros((*cotangent.shape[:-1], width))
    try:
        _, (found,) = mx.vjp(lambda x: called(x).astype(mx.float32), [zeros], [cotangent])
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LensError(f"A projection ({type(module).__name__}) of this model has no gradient: {reason}.") from error
    return found


def _called(module: Module) -> Any:
    return module
