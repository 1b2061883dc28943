"""Prefixes kept for reuse: KV caches of prompts, known by their tokens and by the interventions they were filled under.

The store is mlx-lm's. Its key is what acted on the tokens kept, so a plain cache is
never continued under steering that would have touched it, nor a steered one without:
equal keys and equal tokens mean equal caches. Caches that cannot be rewound
(recurrent layers, full sliding windows) are kept as snapshots and continued from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, Positions

from .program import Key
from .registry import Entry, acts
from .tokens import EncodedPrompt

PLAIN: tuple[object, ...] = ()
Sums = dict[Key, NDArray[np.float64]]
"""A row's dose by site: sums over touched tokens (4,), as ``Meter`` keeps them."""


class PrefixDoses:
    """The dose that a kept prefix was given: rides behind its caches, in mlx-lm's cache protocol."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums

    def is_trimmable(self) -> bool:
        """It does not hinder."""
        return True

    def trim(self, count: int) -> int:
        """Doses are means, which a part of the prefix has too."""
        return count

    @property
    def nbytes(self) -> int:
        """No memory of note."""
        return 0


class PrefixCache:
    """Prefixes of one model, the least recently made leave first.

    ``max_bytes`` and ``max_entries`` bound it, prefixes of fewer than ``min_tokens``
    are not kept; ``enabled`` switches it off. ``hits`` counts the tokens that did not
    have to be computed again.
    """

    def __init__(self, *, max_bytes: int = 1 << 29, max_entries: int = 32, min_tokens: int = 32) -> None:
        self.max_bytes, self.max_entries, self.min_tokens = max_bytes, max_entries, min_tokens
        self.enabled = True
        self.hits = 0
        self._weights: tuple[int, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Forget every prefix."""
        from mlx_lm.models.cache import LRUPromptCache

        self._store = LRUPromptCache(self.max_entries, self.max_bytes)

    def follow(self, model: Any) -> None:
        """Forget everything if the model's weights are others than before."""
        from mlx.utils import tree_flatten

        flat: Any = tree_flatten(model.parameters())
        weights = tuple(id(value) for _, value in flat)
        if weights != self._weights:
            self.clear()
            self._weights = weights

    def __len__(self) -> int:
        return len(self._store)

    @property
    def nbytes(self) -> int:
        """Bytes of KV kept."""
        return int(self._store.nbytes)

    def fetch(self, key: object, ids: Sequence[int]) -> tuple[list[Any] | None, int, Sums]:
        """A copy of the longest prefix of ``ids`` kept under ``key``: caches (or ``None``), its length, its doses."""
        if not self.enabled or len(ids) < self.min_tokens:
            return None, 0, {}
        found, rest = self._store.fetch_nearest_cache(key, list(ids))
        done = len(ids) - len(rest)
        if found is None or done < self.min_tokens or not _reaches(found[:-1], done):
            return None, 0, {}
        return found[:-1], done, found[-1].sums

    def keep(self, key: object, ids: Sequence[int], cache: Sequence[Any], sums: Sums | None = None) -> None:
        """Keep the caches of a prefix of one row; they are copied, what is done to ``cache`` later changes nothing."""
        from copy import deepcopy

        if self.enabled and len(ids) >= self.min_tokens:
            self._store.insert_cache(key, list(ids), [*deepcopy(list(cache)), PrefixDoses(dict(sums or {}))])


def _reaches(caches: Sequence[Any], done: int) -> bool:
    """Whether caches that were cut to ``done`` tokens hold what the next token reads.

    A chunked cache (Llama 4) has dropped its front: cut, it may hold other tokens than asked for,
    or lack the beginning of the chunk that is gone on with.
    """
    for cache in caches:
        inner = getattr(cache, "caches", None)
        if inner is not None and not _reaches(inner, done):
            return False
        offset, first = getattr(cache, "offset", None), getattr(cache, "start_position", None)
        if isinstance(offset, int) and inner is None and offset != done:
            return False
        if isinstance(first, int) and first > done - done % cache.chunk_size:
            return False
    return True


def first_touched(entries: Sequence[Entry], prompt: EncodedPrompt, bos: int | None) -> int:
    """The first position of the prompt that any of these acts on; its length where none does."""
    length = len(prompt.ids)
    return min((_first(entry, prompt, bos) for entry in entries if acts(entry.item)), default=length)


def key_of(entries: Sequence[Entry], prompt: EncodedPrompt, bos: int | None, length: int) -> object:
    """What the first ``length`` tokens' cache depends on beside the tokens; ``None``: on things that have no name.

    Positions that are counted from the end of the prompt, or by role, name the prompt's length and roles too.
    """
    parts = []
    for entry in entries:
        item = entry.item
        if not acts(item) or _first(entry, prompt, bos) >= length:
            continue
        if not isinstance(item, Intervention):
            return None  # a user's function may do anything
        positions = item.positions
        relative = positions.kind in ("last", "generated", "role") or _from_end(positions)
        parts.append((entry.print, (len(prompt.ids), prompt.spans) if relative else None))
    return tuple(parts)


def _first(entry: Entry, prompt: EncodedPrompt, bos: int | None) -> int:
    positions: Positions | None = getattr(entry.item, "positions", None)
    length = len(prompt.ids)
    if positions is None or positions.kind in ("all", "prompt"):
        return 0
    if positions.kind == "not_bos":
        return next((at for at, token in enumerate(prompt.ids) if token != bos), length)
    if positions.kind == "indices":
        places = [index if index >= 0 else length + index for index in positions.indices]
        return min((at for at in places if at >= 0), default=length)
    if positions.kind == "slice":
        return max(0, positions.start if positions.start >= 0 else length + positions.start)
    if positions.kind == "role":
        return min((start for name, start, _ in prompt.spans or () if name == positions.role), default=length)
    return length - 1


def _from_end(positions: Positions) -> bool:
    if positions.kind == "indices":
        return any(index < 0 for index in positions.indices)
    return positions.kind == "slice" and (positions.start < 0 or (positions.stop or 0) < 0)


def join_rows(caches: Sequence[Sequence[Any]]) -> list[Any] | None:
    """Caches of one row each and of equal length, as caches of one batch; ``None`` where their arrays do not fit."""
    from copy import deepcopy

    joined = deepcopy(list(caches[0]))
    for layer, cache in enumerate(joined):
        states = [row[layer].state for row in caches]
        merged = _joined(states)
        if merged is _MISFIT:
            return None
        cache.state = merged
    return joined


def row_of(cache: Sequence[Any], row: int, n_rows: int) -> list[Any]:
    """One row of a batch's caches."""
    from copy import deepcopy

    taken = deepcopy(list(cache))
    if n_rows > 1:
        for item in taken:
            item.state = _row(item.state, row)
        mx.eval([item.state for item in taken])
    return taken


_MISFIT = object()


def _joined(states: Sequence[Any]) -> Any:
    first = states[0]
    if isinstance(first, (list, tuple)):
        parts = [_joined(part) for part in zip(*states, strict=True)]
        return _MISFIT if any(part is _MISFIT for part in parts) else type(first)(parts)
    if isinstance(first, mx.array):
        if any(state.shape[1:] != first.shape[1:] for state in states):
            return _MISFIT
        return mx.concatenate(list(states), axis=0)
    return first if all(state == first for state in states) else _MISFIT


def _row(state: Any, row: int) -> Any:
    if isinstance(state, (list, tuple)):
        return type(state)(_row(part, row) for part in state)
    return state[row : row + 1] if isinstance(state, mx.array) else state
