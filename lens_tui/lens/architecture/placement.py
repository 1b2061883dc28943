"""Put a model on several processes: a slice of every layer on each (``tensor``), or some of its layers (``pipeline``).

By ``tensor`` mlx-lm's own ``shard`` cuts the projections, and the residual stream is whole in every process; what is a
slice (queries, keys, values, the heads' outputs) is gathered where it is asked for (:mod:`..hooks.points`).

By ``pipeline`` every process runs through all blocks, but computes its own alone. What the last block of a stage gives
goes to all, and so does what any block gives that something reads or changes: so whatever acts on the residual stream
acts in every process, on the same numbers. mlx-lm's own pipelines (``PipelineMixin``) hand the stream on unseen, which
is why they are not used; in exchange this needs nothing of an architecture but blocks that hand on one residual stream.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line

from .find import HEAD_COUNTS, Decoder, heads_of, new_cache
from .ranks import Shared
from .taps import Call, first_of, input_of, install, named, original_class, replace_first, taps_of

_KEY_WIDTH = 64
"""Of the keys that stand for those of another process's layer: a width that a cache can quantise too."""


def place(model: Module, decoder: Decoder, shared: Shared) -> Decoder:
    """Keep of a model, whose weights are not evaluated yet, what this process computes.

    Args:
        model: The model.
        decoder: Its blocks, proved on the whole model.
        shared: How it is shared, and which process this is.

    Returns:
        The decoder of the shared model.

    Raises:
        LensError: For a model that cannot be shared so.
    """
    (_slice if shared.mode == "tensor" else _stage)(model, decoder, shared)
    return replace(decoder, shared=shared)


# -- tensor ------------------------------------------------------------------


def _slice(model: Module, decoder: Decoder, shared: Shared) -> None:
    shard: Any = getattr(model, "shard", None)
    kind = type(model).__module__.rpartition(".")[2]
    if shard is None:
        raise LensError(
            f"mlx-lm has no tensor parallelism for {kind} models.", "Share it by layers, with shard='pipeline'."
        )
    counts = [(module, heads_of(module)) for block in decoder.layers for _, module in named(block)]
    for module, count in counts:
        for heads in (count, *(getattr(module, name, 0) for name in KEY_HEAD_COUNTS)):
            if isinstance(heads, int) and heads % shared.size:
                raise LensError(
                    f"{heads} heads of attention cannot be divided among {shared.size} processes.",
                    "Start a number of processes that divides them, or share it by layers, with shard='pipeline'.",
                )
    try:
        shard(shared.group)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise LensError(
            f"mlx-lm cannot divide this {kind} model among {shared.size} processes: {one_line(str(error), 160)}.",
            "Start another number of processes, or share it by layers, with shard='pipeline'.",
        ) from error
    for module, count in counts:
        if count:
            setattr(module, HEAD_COUNTS[0], count)  # what mlx-lm says from now on is a process's share


def sliced_end(module: Module) -> str:
    """``"input"`` or ``"output"``, where that is a slice in each process; empty for a module that is not divided."""
    kind = original_class(module).__name__
    if kind in ("AllToShardedLinear", "QuantizedAllToShardedLinear"):
        return "output"
    return "input" if kind in ("ShardedToAllLinear", "QuantizedShardedToAllLinear") else ""


KEY_HEAD_COUNTS = ("n_kv_heads", "num_key_value_heads", "num_kv_heads", "k_num_heads")


# -- pipeline ----------------------------------------------------------------


def stages_of(layers: int, size: int) -> list[range]:
    """The layers of each process, rank 0 first: as even as can be, the first ones with one more.

    Raises :class:`LensError` where there are fewer layers than processes.
    """
    if layers < size:
        raise LensError(f"{layers} layers cannot be divided among {size} processes.", "Start fewer.")
    base, extra = divmod(layers, size)
    ends = [rank * base + min(rank, extra) for rank in range(size + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def _stage(model: Module, decoder: Decoder, shared: Shared) -> None:
    kind = type(model).__module__.rpartition(".")[2]
    simple = decoder.passes == 1 and decoder.stream is None and decoder.view is None and not decoder.shares_keys
    if not simple or not decoder.closed or decoder.tuple_output:
        raise LensError(
            f"The blocks of {kind} models hand on more than a residual stream, so they cannot be shared by layers.",
            "Share it by slices, with shard='tensor', if mlx-lm can.",
        )
    if not all(hasattr(item, "update_and_fetch") for item in new_cache(model)):
        raise LensError(
            f"Some layers of {kind} models keep a state, not keys and values, so they cannot be shared by layers.",
            "Share it by slices, with shard='tensor', if mlx-lm can.",
        )
    stages = stages_of(decoder.n_layers, shared.size)
    for rank, stage in enumerate(stages):
        for layer in stage:
            block = decoder.layers[layer]
            following = decoder.layers[layer + 1] if layer + 1 < decoder.n_layers else None
            if rank != shared.rank:
                _empty(block)
            install(block, _Turn(decoder, shared, rank == shared.rank, layer == stage[-1], block, following))


def _empty(block: Module) -> None:
    """Drop a block's weights; all that it says of itself stays."""
    for _, module in named(block):
        for name in [name for name, value in module.items() if isinstance(value, mx.array)]:
            del module[name]


class _Turn:
    """Around a block: compute it in the process that has it, and give to all what all need."""

    def __init__(
        self, decoder: Decoder, shared: Shared, own: bool, last: bool, block: Module, following: Module | None
    ) -> None:
        self.own, self.last, self.shared = own, last, shared
        self.argument, self.dtype = decoder.argument, decoder.dtype
        self.blocks = [weakref.ref(item) for item in (block, following) if item is not None]

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: mx.array = input_of(args, kwargs, self.argument)
        output: Any = given
        if self.own:
            output = call(*args, **kwargs)
        else:
            _count(given, (*args, *kwargs.values()))
        if not (self.last or self._seen()):
            return output
        kind = mx.float32 if mx.float32 in (given.dtype, self.dtype) else self.dtype
        own = first_of(output).astype(kind) if self.own else mx.zeros(given.shape, dtype=kind)
        hidden = mx.distributed.all_sum(own, group=self.shared.group)
        # Begun at once: so every process takes part in the exchanges in one order, whatever it computes between them.
        begin: Any = mx.async_eval
        begin(hidden)
        return replace_first(output, hidden)

    def _seen(self) -> bool:
        """Whether something but this is around the block, or the one behind it: it may read what this one gives."""
        return any(block is not None and len(taps_of(block)) > 1 for block in (ref() for ref in self.blocks))


def _count(given: mx.array, values: tuple[Any, ...]) -> None:
    """Have a cache count the tokens of a layer whose keys and values are in another process."""
    for value in values:
        if hasattr(value, "update_and_fetch"):
            none = mx.zeros((given.shape[0], 1, given.shape[1], _KEY_WIDTH), dtype=given.dtype)
            value.update_and_fetch(none, none)
            return
