"""Attention patterns edited: read off the layer's own attention, and changed by what the difference does to its heads.

No architecture's scores are written here again. Attention is linear in its values: with unit vectors in the place of
the values of tokens ``j, j+1, ...`` a layer hands its own pattern to the output projection, after its rotary embedding,
norms, window, mask, soft-capping and sinks. Keys and values pass the layer's cache, so that is where they are taken
from and put; a layer without one is given a cache that keeps nothing. What came is held, in every forward, against what
the layer really hands on: pattern times values must be that, else the layer is refused. An edit adds
``(edited - pattern) @ values`` to ``attn_z``, so that one that changes nothing leaves every bit as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import EditPattern, LensError

from ..architecture.find import heads_of
from ..architecture.taps import Call, original_class
from .places import Mask, Where, absolute, sources_at, touched

LIMIT_BYTES = 1 << 31
COUNTED = ("KVCache", "RotatingKVCache", "BatchKVCache", "BatchRotatingKVCache")
"""Caches of which it is known which token each of their columns is."""


@dataclass(eq=False)
class Attended:
    """What the heads of a layer attend to in a forward, all float32.

    ``weights`` (rows, heads, tokens, sources), ``values`` (rows, heads, sources, head_dim), ``sources`` (1 or rows,
    sources) and ``queries`` (1 or rows, tokens) the absolute positions; ``sink``: the rest of each row's 1 goes to one.
    """

    weights: mx.array
    values: mx.array
    sources: mx.array
    queries: mx.array
    sink: bool


@dataclass(eq=False)
class Rehearsal:
    """One attention while it is called several times: the sites it came past, and what it handed on meanwhile."""

    layer: int
    module: Module
    known: dict[tuple[int, str], mx.array] = field(default_factory=dict)
    seen: mx.array | None = None
    done: bool = False

    def withholds(self, key: tuple[int, str], h: mx.array) -> bool:
        """Whether nothing is to act at a site now: it has acted there already, or the pattern is being read."""
        if not self.done and key == (self.layer, "attn_z"):
            self.seen = h
            return True
        return key in self.known

    def keep(self, key: tuple[int, str], h: mx.array) -> None:
        """What was made of a site inside, which later calls are given again."""
        self.known[key] = h


class _Kept:
    """A layer's cache, or none, that takes keys and values once however often it is called."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        offset = 0 if cache is None else getattr(cache, "offset", 0)
        self.offset = offset + 0  # caches may move theirs in place
        self.fetched: tuple[Any, Any] | None = None
        self.instead: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """All keys and values so far, the values replaced by ``instead``."""
        if self.fetched is None:
            self.fetched = (keys, values) if self.cache is None else self.cache.update_and_fetch(keys, values)
        return self.fetched[0], self.fetched[1] if self.instead is None else self.instead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def rehearsed(
    rehearsal: Rehearsal, where: Where, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Read the pattern into ``where.attended`` by calls of an attention; what is left to call, for its output.

    Args:
        rehearsal: Of this attention.
        where: Of the forward.
        call: The attention.
        args: What the forward calls it with.
        kwargs: And by name.

    Returns:
        A function of the same arguments that goes on with the same keys and values, and the named arguments.

    Raises:
        LensError: With the reason where the pattern cannot be had, or is not what the layer computes.
    """
    name = f"The attention of layer {rehearsal.layer} ({type(rehearsal.module).__name__})"
    try:
        bound = inspect.signature(original_class(rehearsal.module).__call__).bind(rehearsal.module, *args, **kwargs)
    except TypeError:
        raise _refused(name, "it cannot be called again with other values") from None
    if "cache" not in bound.signature.parameters:
        raise _refused(name, "it takes no cache, in which its keys and values could be seen")
    kept = _Kept(bound.arguments.get("cache"))
    if kept.cache is not None and type(kept.cache).__name__ not in COUNTED:
        raise _refused(name, f"it is not known which tokens are where in its cache ({type(kept.cache).__name__})")
    bound.arguments["cache"] = kept

    def again(*_: Any, **__: Any) -> Any:
        return call(*bound.args[1:], **bound.kwargs)

    try:
        again()
    except (TypeError, AttributeError) as error:  # it looks into its cache: compressed keys, a state
        raise _refused(name, "it keeps something else than keys and values") from error
    handed, heads = rehearsal.seen, heads_of(rehearsal.module)
    if handed is None or kept.fetched is None or not heads:
        raise _refused(name, "its keys and values are not its own, or go past no cache")
    where.attended[rehearsal.layer] = _attended(name, rehearsal, kept, handed, heads, where, again)
    kept.instead, rehearsal.done = None, True
    return again, kwargs


def _attended(
    name: str, rehearsal: Rehearsal, kept: _Kept, handed: mx.array, heads: int, where: Where, again: Call
) -> Attended:
    """The pattern by calls with unit vectors for values, held against what the layer handed on."""
    assert kept.fetched is not None
    values = kept.fetched[1]
    if not isinstance(values, mx.array) or values.ndim != 4:
        raise _refused(name, "its cache is quantised or compressed")
    rows, groups, count, width = values.shape
    length = handed.shape[1]
    if handed.shape[2] != heads * width or heads % groups or handed.shape[0] != rows:
        raise _refused(name, "what it hands on is not its heads one after the other")
    if 4 * rows * heads * length * count > LIMIT_BYTES:
        raise LensError(
            f"The patterns of layer {rehearsal.layer} over {count} tokens take more than 2 GiB.",
            "Use a shorter text, or fewer rows.",
        )
    pieces = []
    for start in range(0, count, width):
        unit = np.zeros((count, width), dtype=np.float32)
        inside = np.arange(start, min(start + width, count))
        unit[inside, inside - start] = 1.0
        kept.instead = mx.broadcast_to(mx.array(unit), (rows, groups, count, width))
        again()
        assert rehearsal.seen is not None
        pieces.append(rehearsal.seen.astype(mx.float32).reshape(rows, length, heads, width))
    weights = mx.concatenate(pieces, axis=-1)[..., :count].transpose(0, 2, 1, 3)
    each = mx.repeat(values.astype(mx.float32), heads // groups, axis=1)
    _prove(name, weights, each, handed, where)
    at = _positions(name, kept.cache, count, absolute(where))
    return Attended(weights, each, at, absolute(where), any("sink" in str(part) for part in rehearsal.module))


def _prove(name: str, weights: mx.array, values: mx.array, handed: mx.array, where: Where) -> None:
    """Raise :class:`LensError` where pattern times values is not what the layer hands on."""
    given = handed.astype(mx.float32)
    off = joined(weights @ values) - given
    if where.real is not None:
        off, given = (mx.where(where.real, part, 0.0) for part in (off, given))
    sums = weights.sum(axis=-1)
    if where.real is not None:
        sums = mx.where(where.real[..., 0][:, None], sums, 0.0)
    measured = mx.stack([mx.linalg.norm(off) / mx.maximum(mx.linalg.norm(given), 1e-30), weights.min(), sums.max()])
    error, least, most = (float(value) for value in np.array(measured))
    eps = float(mx.finfo(handed.dtype).eps)
    if not error <= max(1e-4, 4.0 * eps):
        raise _refused(name, f"its weights times its values are not what it hands on (off by {error:.0%}); a gate?")
    if least < -1e-6 or most > 1.0 + max(1e-3, eps):
        raise _refused(name, "its weights are negative, or add up to more than 1, so it does more than attend")


def _positions(name: str, cache: Any, count: int, queries: mx.array) -> mx.array:
    """The absolute position of each column of a cache, (1 or rows, columns); negative for padding."""
    if cache is None:
        return mx.arange(count)[None]
    if getattr(cache, "keep", 0) and int(cache.offset) > count:
        raise _refused(name, f"it is not known which tokens are where in its cache ({type(cache).__name__})")
    # The newest token stands before the place that is written next; older ones before it, round and round.
    age = (getattr(cache, "_idx", count) - 1 - mx.arange(count)) % count
    return queries[:, -1:] - age[None]


def joined(heads: mx.array) -> mx.array:
    """(rows, heads, tokens, width) as (rows, tokens, heads * width)."""
    rows, _, length, _ = heads.shape
    return heads.transpose(0, 2, 1, 3).reshape(rows, length, -1)


def _refused(name: str, why: str) -> LensError:
    return LensError(f"{name} has no pattern that can be edited: {why}.", "Take the head away (AblateHeads) instead.")


@dataclass(frozen=True, eq=False)
class PatternEdit:
    """A record in force: ``chosen`` (heads,) says which heads, ``table`` (heads, tokens, sources) their new rows."""

    record: EditPattern
    chosen: mx.array
    table: mx.array | None

    def change(self, where: Where, mask: Mask) -> mx.array:
        """The change of ``attn_z`` in a forward: ``(edited - pattern) @ values``.

        Later edits of this layer start from what this one leaves at the tokens it acts on, ``mask``.
        """
        attended: Attended = where.attended[self.record.layer]
        before, new = attended.weights, self.edited(attended, where)
        attended.weights = new if isinstance(mask, bool) else mx.where(mask[:, None], new, before)
        return joined((new - before) @ attended.values)

    def edited(self, attended: Attended, where: Where) -> mx.array:
        """The weights as the record has them, (rows, heads, tokens, sources)."""
        new = self._cut(attended, where) if self.table is None else self._replaced(attended, self.table, where)
        return mx.where(self.chosen[:, None, None], new, attended.weights)

    def _cut(self, attended: Attended, where: Where) -> mx.array:
        weights = attended.weights
        gone = sources_at(self.record.sources, attended.sources, where)[:, None, None]
        kept = mx.where(gone, 0.0, weights)
        if not self.record.renormalise:
            return kept
        left, total = (part.sum(axis=-1, keepdims=True) for part in (kept, weights))
        # A softmax without those scores. What a sink takes is what is missing to 1, and stays in the sum.
        whole = left + mx.maximum(1.0 - total, 0.0) if attended.sink else left / mx.maximum(total, 1e-30)
        return mx.where(left > 0, kept / mx.where(left > 0, whole, 1.0), 0.0)

    def _replaced(self, attended: Attended, table: mx.array, where: Where) -> mx.array:
        weights, (_, n_rows, n_sources) = attended.weights, table.shape
        named = touched(self.record.positions, where)
        named = mx.ones((1, 1), dtype=mx.bool_) if named is True else named
        if named is False:
            return weights
        found, lost = [], []
        for row in range(max(len(attended.queries), len(attended.sources))):
            queries, sources = (part[min(row, len(part) - 1)] for part in (attended.queries, attended.sources))
            inside = (sources >= 0) & (sources < n_sources) & (sources <= queries[:, None])
            lines = mx.zeros_like(queries) if n_rows == 1 else mx.clip(queries, 0, n_rows - 1)
            new = table[:, lines][:, :, mx.clip(sources, 0, n_sources - 1)]
            new = mx.where(inside, new, 0.0)
            whole = mx.take_along_axis(
                mx.cumsum(table, axis=-1)[:, lines], mx.clip(queries, 0, n_sources - 1)[None, :, None], axis=-1
            )
            given = (queries >= 0) & ((queries < n_rows) | (n_rows == 1))
            here = named[min(row, len(named) - 1)].reshape(-1) & given
            lost.append(((mx.abs(whole[..., 0] - new.sum(axis=-1)) > 1e-5) & here).any())
            found.append(mx.where(given[:, None], new, weights[min(row, len(weights) - 1)]))
        if mx.stack(lost).any().item():
            raise LensError(
                f"{self.record.id!r} has weights on tokens that layer {self.record.layer} has let go of: it sees a "
                "window of them.",
                "Give weights on later tokens, or other positions.",
            )
        return mx.stack(found)


def edit_pattern(record: EditPattern) -> PatternEdit:
    """A checked record as it acts."""
    heads = record.heads or tuple(range(record.count))
    chosen = mx.array(np.isin(np.arange(record.count), heads))
    table = None
    if record.weights is not None:
        whole = np.zeros((record.count, *record.shape[1:]), dtype=np.float32)
        whole[list(heads)] = record.weights.reshape(record.shape)
        table = mx.array(whole)
        mx.eval(table)
    mx.eval(chosen)
    return PatternEdit(record, chosen, table)
