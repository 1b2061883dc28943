"""One site of one block, as the module call that it is the input or the output of: how it is read and replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from ..architecture.norms import gain_of, held_norm
from ..architecture.ranks import Shared
from ..architecture.taps import Argument, first_of, input_of, replace_first, replace_input

Port = Literal["input", "output"]


@dataclass(frozen=True, eq=False)
class Point:
    """A site of one block: the module whose ``input`` or ``output`` it is, and its width.

    ``stream`` is the one of several residual streams (streams, batch, tokens, width)
    that the site is, ``None`` where the tensor is the residual itself. ``argument``
    says which of the module's arguments an ``input`` is, ``view`` which other one,
    or which other part of an output, is made from the residual and stale once that is changed.
    ``slices`` is given where each of several processes has a slice of the tensor, in the order of their ranks.
    """

    module: Module
    port: Port
    width: int
    stream: int | None = None
    argument: Argument = 0
    view: Argument | None = None
    slices: Shared | None = None

    @cached_property
    def plain(self) -> bool:
        """Whether the tensor is what the module gives, and nothing has to be made of it."""
        return type(self) is Point and self.port == "output" and self.stream is None and self.slices is None

    def read(self, value: Any) -> Any:
        """The tensor of the site (batch, tokens, width) in what the module was given or gave."""
        hidden = first_of(value)
        if self.slices is not None:
            return self.slices.gathered(hidden)
        return hidden if self.stream is None else hidden[self.stream]

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> mx.array:
        """The tensor of a site that is an output, once its module was called."""
        tensor: mx.array = self.read(output)
        return tensor

    def give(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], new: mx.array
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's arguments with the site's tensor replaced."""
        value = self._put(input_of(args, kwargs, self.argument), new)
        args, kwargs = replace_input(args, kwargs, value, self.argument)
        return (args, kwargs) if self.view is None else replace_input(args, kwargs, None, self.view)

    def write(self, output: Any, new: mx.array) -> Any:
        """What the module gave, with the site's tensor replaced."""
        written = replace_first(output, self._put(first_of(output), new))
        return written if self.view is None else (written[0], *[None for _ in written[1:]])

    def _put(self, value: mx.array, new: mx.array) -> mx.array:
        if self.slices is not None:
            return self.slices.part(new)
        if self.stream is None:
            return new
        return mx.concatenate([value[: self.stream], new[None], value[self.stream + 1 :]])


@dataclass(frozen=True, eq=False)
class NormedPoint(Point):
    """What a norm gives before its ``gain`` and ``shift``, both ``(width,)``: its input over what it divides by.

    No array of the model is that: it is read off the norm's input and output, and what is put in its place gets the
    gain and the shift. ``centred`` norms take the mean away first.
    """

    gain: mx.array = field(kw_only=True)
    shift: mx.array = field(kw_only=True)
    centred: bool = False

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> mx.array:
        """The norm's input times the one number a token that makes its output of it."""
        given, scaled = first_of(input_of(args, kwargs)).astype(mx.float32), first_of(output)
        plain = given - mx.mean(given, axis=-1, keepdims=True) if self.centred else given
        # In units of the input, so that a token's squares neither vanish nor overflow.
        plain = plain / mx.maximum(mx.max(mx.abs(plain), axis=-1, keepdims=True), 1e-30)
        lifted = plain * self.gain
        share = mx.sum(lifted * (scaled.astype(mx.float32) - self.shift), axis=-1, keepdims=True)
        share = share / mx.maximum(mx.sum(lifted * lifted, axis=-1, keepdims=True), 1e-30)
        found: mx.array = (plain * share).astype(scaled.dtype)
        return found

    def write(self, output: Any, new: mx.array) -> Any:
        """What the norm gives, of another tensor before its gain."""
        lifted = new.astype(mx.float32) * self.gain + self.shift
        return replace_first(output, lifted.astype(first_of(output).dtype))


def normed_point(point: Point, path: str) -> Point | str:
    """The site before the gain of the norm whose output a point is, or why it cannot be told."""
    width, module = point.width, point.module
    probe = mx.array(np.random.default_rng(0).normal(size=(1, 4, width)).astype(np.float32))
    try:
        gain = gain_of(module, width)
        held = held_norm(module, probe, gain)
    except (LensError, TypeError, ValueError):
        return f"{path} is neither an RMS norm nor a layer norm"
    arrays = mx.array(gain), mx.array(held.shift.astype(np.float32))
    mx.eval(*arrays)
    return NormedPoint(module, "output", width, gain=arrays[0], shift=arrays[1], centred=held.centred)
