"""Prove by tiny forward passes that a list of modules is a model's decoder.

Blocks are not computed. The first pass only notes who is called with what, all
of it lazy. The others put numbers in place of what each block gives, so what
the next block reads, and the logits, are a few operations away: enough to see
that each block reads what the one before it gave and that nothing but the last
one's output makes the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from .proxy import Argument, Call, first_of, install, replace_first, uninstall

PROBE_SHAPE = (2, 3)
STUB_SHAPE = (1, 2)
"""Smaller than the probe: these passes compute the logits, and a CPU takes its time over a large vocabulary."""
Give = Callable[[int, mx.array], mx.array]


@dataclass
class Seen:
    """A call of a block: its number in the list, the arrays it was given by place or name, its output.

    ``arguments`` and ``output`` hold the very objects, ``given`` and ``hidden`` aliases: a model may go on to
    change an array in place.
    """

    index: int
    arguments: dict[Argument, Any]
    given: dict[Argument, mx.array]
    output: Any
    hidden: Any


@dataclass
class Observation:
    """The calls of a forward pass, in order, and its logits; nothing is evaluated."""

    calls: list[Seen] = field(default_factory=list)
    logits: Any = None


@dataclass(frozen=True)
class Proof:
    """What was proved of a list of blocks; the fields are those of :class:`~lens_tui.lens.layers.Decoder`."""

    d_model: int
    vocab_size: int
    dtype: mx.Dtype
    tuple_output: bool
    passes: int
    stream: int | None
    argument: Argument
    view: Argument | None
    closed: bool


def observe(
    model: Module, layers: Sequence[Module], give: Give | None = None, shape: tuple[int, int] = PROBE_SHAPE
) -> Observation:
    """Run a tiny forward pass, unevaluated, and note each call of a block with its input and output.

    ``give(call, hidden)`` replaces the hidden state that the call with this number gave. ``shape`` is (batch, tokens).
    """
    seen = Observation()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
                named = _named(args, kwargs)
                given = {key: _alias(value) for key, value in named.items() if isinstance(value, mx.array)}
                output = call(*args, **kwargs)
                if give is not None:
                    output = replace_first(output, give(len(seen.calls), first_of(output)))
                seen.calls.append(Seen(index, named, given, output, _alias(first_of(output))))
                return output

            install(layer, tap)
            stack.callback(uninstall, layer, tap)
        seen.logits = first_of(model(mx.zeros(shape, dtype=mx.int32)))
    return seen


def prove(model: Module, layers: Sequence[Module]) -> Proof | str:
    """What the blocks are, or the reason why they are not a decoder."""
    try:
        seen = observe(model, layers)
        reason = _objection(seen, layers)
        return reason or _chained(model, layers, seen)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"a forward pass fails: {first}"


def _objection(seen: Observation, layers: Sequence[Module]) -> str | None:
    """Why the calls are not those of a decoder's blocks, or ``None``."""
    count, order = len(layers), [call.index for call in seen.calls]
    if not order:
        return f"a forward pass never calls the {count} blocks themselves, at most their parts"
    if order != list(range(count)) * (len(order) // count):
        return f"a forward pass calls the {count} blocks {len(order)} times, but not all in order"
    shapes = [_shape(call.hidden) for call in seen.calls]
    stream = _active(layers[0])
    for number, shape in enumerate(shapes):
        if len(shape) == 4 and stream is not None and shape[1:3] == PROBE_SHAPE and 0 <= stream < shape[0]:
            continue
        if len(shape) == 4:
            return f"block {order[number]} gives {shape}: several residual streams with no active one"
        if len(shape) != 3 or shape[:2] != PROBE_SHAPE:
            return f"block {order[number]} gives {shape or 'no array'}, not (batch, tokens, d_model)"
    if len({shape[-1] for shape in shapes}) != 1 or len({len(shape) for shape in shapes}) != 1:
        return f"the blocks give different shapes: {sorted(set(shapes))}"
    if not isinstance(seen.logits, mx.array) or seen.logits.ndim != 3:
        return "the model does not give logits (batch, tokens, vocabulary)"
    return None


def _chained(model: Module, layers: Sequence[Module], seen: Observation) -> Proof | str:
    """The proof, if each block reads what the one before it gave and the logits follow from the last one."""
    last = len(seen.calls) - 1
    stream = _active(layers[0]) if seen.calls[0].hidden.ndim == 4 else None

    def run(other: Callable[[int], bool]) -> Observation:
        return observe(model, layers, lambda call, hidden: _stub(hidden, call, other(call), stream), STUB_SHAPE)

    first, second, third = run(lambda _: False), run(lambda call: call < last), run(lambda call: call == last)
    shape = first.calls[0].hidden.shape
    common = {key for key, array in first.calls[0].given.items() if array.shape == shape}
    for number in range(1, last + 1):
        common = _changed(first.calls[number], second.calls[number], common)
        if not common:
            return f"block {seen.calls[number].index} does not read what the block before it gives"
    if not common:
        return "the one block is given no residual"
    if bool(mx.array_equal(first.logits, third.logits)):
        return "the logits do not depend on what the last block gives"
    view = _second_view(seen.calls)
    if view is not None and seen.calls[0].arguments.get(view) is not None:
        return f"the blocks hand on a second view of the residual ({view}), which a change would not reach"
    hidden = seen.calls[-1].hidden
    return Proof(
        d_model=int(hidden.shape[-1]),
        vocab_size=int(seen.logits.shape[-1]),
        dtype=hidden.dtype,
        tuple_output=isinstance(seen.calls[-1].output, (tuple, list)),
        passes=len(seen.calls) // len(layers),
        stream=stream,
        argument=min(common, key=str),
        view=view,
        closed=stream is None and bool(mx.array_equal(first.logits, second.logits, equal_nan=True)),
    )


def _active(block: Module) -> int | None:
    """The active one of a block's residual streams (AltUp: Baykal et al. 2023; Gemma 3n), ``None`` without any."""
    for holder in (getattr(block, "config", None), getattr(block, "args", None), block):
        value = getattr(holder, "altup_active_idx", None)
        if isinstance(value, int):
            return value
    return None


def _stub(hidden: mx.array, call: int, other: bool, stream: int | None) -> mx.array:
    """Numbers in place of what a call gave, or other ones; of several streams only the active one differs."""

    def made(variant: int) -> mx.array:
        values = np.random.default_rng((call, variant)).normal(size=hidden.shape)
        return mx.array(values.astype(np.float32)).astype(hidden.dtype)

    if not other or stream is None:
        return made(int(other))
    one, two = made(0), made(1)
    return mx.concatenate([one[:stream], two[stream][None], one[stream + 1 :]])


def _second_view(calls: Sequence[Seen]) -> Argument | None:
    """The argument in which a block is given what the one before it made of its output for it, normed for instance.

    Only what every block makes anew counts; values that the first one makes and
    the others pass on (RWKV 7) are no view of the residual.
    """
    for before, after in pairwise(calls[1:]):
        if not isinstance(before.output, (tuple, list)):
            return None
        made = [item for item in before.output[1:] if _shape(item) == _shape(before.hidden)]
        fresh = [item for item in made if not any(item is other for other in before.arguments.values())]
        for key, value in after.arguments.items():
            if any(value is item for item in fresh):
                return key
    return None


def _shape(hidden: Any) -> tuple[int, ...]:
    return tuple(hidden.shape) if isinstance(hidden, mx.array) else ()


def _changed(one: Seen, two: Seen, among: set[Argument]) -> set[Argument]:
    """The arguments that differ between two calls: the ones that carry the residual."""
    pairs = {key: (one.given.get(key), two.given.get(key)) for key in among}
    return {key for key, (a, b) in pairs.items() if a is not None and b is not None and not bool(mx.array_equal(a, b))}


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Argument, Any]:
    listed: list[tuple[Argument, Any]] = [*enumerate(args), *kwargs.items()]
    return dict(listed)


def _alias(value: Any) -> Any:
    """The same array as another object: a model may go on to change the one it holds in place."""
    return value.astype(value.dtype) if isinstance(value, mx.array) else value
