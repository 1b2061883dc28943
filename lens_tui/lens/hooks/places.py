"""Which tokens of a forward an intervention acts on, from absolute positions; and what caches have been through."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, Positions
from lens_tui.records.gates import Monitor

Offset = int | mx.array
"""Absolute position of a forward's first token: one for the batch, or one for each row, shape (rows,)."""
Spans = tuple[tuple[str, int, int], ...]
Mask = bool | mx.array
"""True: every token; False: none; else a bool array (rows or 1, tokens, 1)."""


@dataclass(frozen=True, eq=False)
class Where:
    """What is known of one forward: where it starts, its tokens, and where the prompt ends.

    ``n_prompt`` is the number of prompt tokens (one, or one for each row), ``None``
    where it is not known: a forward that somebody else runs over a cache.
    ``offset`` is ``None`` where a recurrent cache, which counts no tokens, was filled unseen.
    ``spans`` maps a role to half-open spans of absolute positions of the prompt;
    ``thinking`` says of each generated token, (rows, tokens), whether the model is thinking.
    Where rows are different prompts, ``row_spans`` holds each row's spans, and ``real``
    (rows, tokens, 1) says which tokens are not padding (``None``: all of them). ``readings`` are those of monitors,
    as the forward comes to them; ``opened``, where it is asked for, is given the mask of each gated record, by its id,
    layer and site. ``attended`` has what a layer's heads attend to, where a pattern is edited, once it is known.
    """

    offset: Offset | None
    length: int
    ids: mx.array | None = None
    n_prompt: Offset | None = None
    bos: int | None = None
    spans: Spans | None = None
    thinking: mx.array | None = None
    row_spans: tuple[Spans | None, ...] | None = None
    real: mx.array | None = None
    readings: dict[Monitor, mx.array] = field(default_factory=dict)
    opened: dict[tuple[str, int, str], mx.array] | None = None
    attended: dict[int, Any] = field(default_factory=dict)


def touched(positions: Positions, where: Where) -> Mask:
    """The tokens of this forward that ``positions`` names. Raises :class:`LensError` if that is not known."""
    kind = positions.kind
    if kind == "all":
        return True
    if where.offset is None:
        raise LensError(
            f"Positions {kind!r} cannot be determined: the cache was filled before anything was hooked "
            "and counts no tokens.",
            "Start with an empty cache.",
        )
    if kind == "not_bos":
        return _not_bos(where)
    if kind == "role":
        return _role(positions.role, where)
    return _within(_bounds(positions, where), where)


def _within(bounds: list[tuple[Any, Any]], where: Where) -> Mask:
    """The tokens inside any of the half-open ranges of absolute positions."""
    if isinstance(where.offset, int) and all(isinstance(item, int) for pair in bounds for item in pair):
        return _static(bounds, where.offset, where.length)
    at = absolute(where)
    mask: mx.array | None = None
    for start, stop in bounds:
        part = (at >= _column(start)) & (at < _column(stop))
        mask = part if mask is None else mask | part
    return False if mask is None else mask[..., None]


def sources_at(positions: Positions, at: mx.array, where: Where) -> mx.array:
    """Which of the absolute positions ``at``, of any shape, are named: tokens that others attend to."""
    if positions.kind == "role" and where.row_spans is not None:
        return mx.concatenate([_one_row(positions, at, where, row) for row in range(len(where.row_spans))])
    bounds = _role_bounds(positions.role, where) if positions.kind == "role" else _bounds(positions, where)
    found = mx.zeros(at.shape, dtype=mx.bool_)
    for start, stop in bounds:
        found = found | ((at >= _column(start)) & (at < _column(stop)))
    return found


def _one_row(positions: Positions, at: mx.array, where: Where, row: int) -> mx.array:
    """One row of a batch of different prompts; one without that role names nothing."""
    assert where.row_spans is not None
    end = int(np.array(where.n_prompt)[row]) if isinstance(where.n_prompt, mx.array) else where.n_prompt
    spans = where.row_spans[row] or ()
    mine = at[min(row, len(at) - 1)][None]
    if positions.role != "assistant" and positions.role not in {name for name, *_ in spans}:
        return mx.zeros(mine.shape, dtype=mx.bool_)
    return sources_at(positions, mine, replace(where, spans=spans, n_prompt=end, row_spans=None))


def absolute(where: Where) -> mx.array:
    """Absolute positions of the forward's tokens, shape (1 or rows, tokens)."""
    steps = mx.arange(where.length)[None]
    assert where.offset is not None
    return steps + (where.offset if isinstance(where.offset, int) else where.offset[:, None])


def reach(positions: Positions, n_prompt: int, last: int) -> bool:
    """Whether anything in absolute positions ``[0, last]`` can be touched, as far as is known beforehand."""
    if positions.kind in ("all", "not_bos", "role", "generated", "last"):
        return True
    bounds = _bounds(positions, Where(0, 1, n_prompt=n_prompt))
    return any(int(start) <= last and int(stop) > max(0, int(start)) for start, stop in bounds)


def reaches_scored(
    positions: Positions, ids: Sequence[int], n_prompt: int, bos: int | None, spans: Spans | None = None
) -> bool:
    """Whether any token is touched that a scored one follows: what the last one gives predicts nothing of the text.

    Args:
        positions: Which tokens are touched.
        ids: The text.
        n_prompt: Where the prompt ends and scoring begins.
        bos: The id of the BOS token.
        spans: The chat roles of the prompt.
    """
    mask = touched(positions, Where(0, len(ids) - 1, mx.array([list(ids[:-1])]), n_prompt, bos, spans))
    return mask if isinstance(mask, bool) else bool(mask.any().item())


_END = 1 << 30


def _bounds(positions: Positions, where: Where) -> list[tuple[Any, Any]]:
    """Half-open ranges of absolute positions."""
    kind = positions.kind
    if kind == "indices":
        return [(at, at + 1) for at in (_from_end(index, where) for index in positions.indices)]
    if kind == "slice":
        stop = _END if positions.stop is None else _from_end(positions.stop, where)
        return [(_from_end(positions.start, where), stop)]
    end = _prompt_end(positions, where)
    if kind == "prompt":
        return [(0, end - 1)]
    return [(end - 1, _END if kind == "generated" else end)]


def _from_end(index: int, where: Where) -> Any:
    return index if index >= 0 else _prompt_end(Positions("indices", (index,)), where) + index


def _prompt_end(positions: Positions, where: Where) -> Any:
    if where.n_prompt is None:
        raise LensError(
            f"Positions {positions.kind!r} cannot be determined: a forward over a cache does not say "
            "where the prompt ends.",
            "Generate with this model's own generate, stream or compare, or give absolute positions from the start.",
        )
    return where.n_prompt


def _static(bounds: list[tuple[int, int]], offset: int, length: int) -> Mask:
    """The mask of a forward whose place is known in Python: decoding needs no array at all."""
    hits = [any(start <= offset + step < stop for start, stop in bounds) for step in range(length)]
    if all(hits) or not any(hits):
        return all(hits)
    return mx.array(hits)[None, :, None]


def _not_bos(where: Where) -> Mask:
    if where.bos is None:
        return True
    if where.ids is None:
        raise LensError(
            "Positions 'not_bos' cannot be determined here: the forward was given embeddings, not token ids.",
            "Give absolute positions instead.",
        )
    return (where.ids != where.bos)[..., None]


def _role(role: str, where: Where) -> Mask:
    if where.row_spans is not None:
        return _role_by_rows(role, where, where.row_spans)
    bounds = _role_bounds(role, where)
    if role == "thinking" and where.thinking is not None:
        return where.thinking[..., None]
    return _within(bounds, where)


def _role_bounds(role: str, where: Where) -> list[tuple[Any, Any]]:
    """Half-open ranges of absolute positions of a role, where every row has the same prompt."""
    if where.spans is None or where.n_prompt is None:
        raise LensError(
            f"Positions of role {role!r} cannot be determined: the prompt was not made from chat messages.",
            "Give generate, stream or compare a prompt that goes through the chat template.",
        )
    bounds: list[tuple[Any, Any]] = [(start, stop) for name, start, stop in where.spans if name == role]
    if role == "assistant":
        bounds.append((where.n_prompt, _END))
    if not bounds and role != "thinking":
        known = ", ".join(sorted({span[0] for span in where.spans}))
        raise LensError(f"The prompt has no {role!r} part.", f"It has: {known}.")
    return bounds


def _role_by_rows(role: str, where: Where, rows: tuple[Spans | None, ...]) -> Mask:
    """Like :func:`_role`, where every row is another prompt; a row without the role is not touched."""
    at = mx.broadcast_to(absolute(where), (len(rows), where.length))
    masks = []
    for row, spans in enumerate(rows):
        mask = mx.zeros((where.length,), dtype=mx.bool_)
        for name, start, stop in spans or ():
            if name == role:
                mask = mask | ((at[row] >= start) & (at[row] < stop))
        masks.append(mask)
    found = mx.stack(masks)
    if role == "assistant":
        found = found | (at >= _column(where.n_prompt))
    if role == "thinking" and where.thinking is not None:
        found = found | where.thinking
    return found[..., None]


def follow_thinking(ids: mx.array, inside: mx.array, markers: tuple[int, int]) -> tuple[mx.array, mx.array]:
    """Whether each row's next token (rows, 1) is between the thinking markers, and whether the one after it will be.

    ``inside`` (rows, 1) is that before the token; the markers themselves are not thinking.
    """
    start, end = markers
    opens, closes = ids == start, ids == end
    return inside & ~opens & ~closes, (inside | opens) & ~closes


def _column(value: Any) -> Any:
    return value[:, None] if isinstance(value, mx.array) else value


Fingerprint = tuple[object, ...]
MIXED: Fingerprint = ("mixed",)
"""The mark of a cache that was filled under one plan after another: equal to no plan's."""


class CacheLedger:
    """Notes on the caches that forwards were seen to use; a cache is known by its first layer's object."""

    def __init__(self) -> None:
        self._marks: weakref.WeakKeyDictionary[Any, Fingerprint] = weakref.WeakKeyDictionary()
        self._counts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self, caches: Sequence[Any], length: int, fingerprint: Fingerprint) -> Offset | None:
        """A forward of ``length`` tokens begins: where it starts, ``None`` if that cannot be known."""
        if not caches:
            return 0
        offset = self.offset(caches)
        filled = offset is None or not isinstance(offset, int) or offset > 0
        before = self._marks.get(caches[0], ())
        self._marks[caches[0]] = fingerprint if not filled or before == fingerprint else MIXED
        if isinstance(offset, int):
            self._counts[caches[0]] = offset + length
        return offset

    def offset(self, caches: Sequence[Any]) -> Offset | None:
        """Absolute position of the next token.

        Of the first layer's cache that counts tokens; purely recurrent ones count
        none, so what was seen to go in is counted here.
        """
        found = counted(caches)
        if found is not None or not caches:
            return found if found is not None else 0
        if caches[0] in self._counts:
            return self._counts[caches[0]]
        return 0 if _empty(caches) else None

    def note(self, caches: Sequence[Any], count: int, fingerprint: Fingerprint) -> None:
        """These caches hold ``count`` tokens that went in under these interventions."""
        if caches:
            self._marks[caches[0]] = fingerprint
            self._counts[caches[0]] = count

    def check(self, caches: Sequence[Any], fingerprint: Fingerprint) -> int:
        """Tokens that a cache holds, if it was filled under these interventions. Raises :class:`LensError`."""
        offset = self.offset(caches)
        if not isinstance(offset, int):
            raise LensError("This prompt cache does not say how many tokens it holds.", "Start with an empty cache.")
        if offset and self._marks.get(caches[0], ()) != fingerprint:
            raise LensError(
                "The prompt cache was filled under other interventions than the ones in force now.",
                "Fill a new cache, or apply the same interventions as before.",
            )
        return offset


def caches_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The KV caches that a model call was given, whatever the argument is called; empty if none."""
    for value in (kwargs.get("cache"), *args[1:], *kwargs.values()):
        if isinstance(value, (list, tuple)) and value:
            held = [item for item in value if item is not None]
            if not held or _is_cache(held[0]):
                return held
    return []


def _is_cache(item: Any) -> bool:
    # Of its class: to ask the cache itself for its state cuts keys and values out of what it holds, two slices a layer
    # in every token's graph.
    return hasattr(type(item), "state") or "state" in getattr(item, "__dict__", ())


def counted(caches: Sequence[Any]) -> Offset | None:
    """The offset of the first cache that has one, composite ones (``CacheList``) opened."""
    for item in caches:
        inner = getattr(item, "caches", None)
        offset = counted(inner) if isinstance(inner, (list, tuple)) else getattr(item, "offset", None)
        if isinstance(offset, int):
            return offset
        if isinstance(offset, mx.array):
            return offset + 0  # caches may move their offset in place
    return None


def _empty(caches: Sequence[Any]) -> bool:
    try:
        return all(item.empty() for item in caches)
    except (NotImplementedError, AttributeError):
        return False
