"""The best k of each of very many groups, from a stream, with a result that no order of arrival changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

NOBODY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_WORST = np.uint32(0xFFFF_FFFF)

PENDING = 4_000_000
"""Entries that wait in memory before they are sorted in."""


class Keeper:
    """Keeps the ``k`` entries of smallest ``(rank, address)`` in each of ``n_groups`` groups.

    An entry is a group, a ``rank`` (uint32), an ``address`` (uint64, unique in
    its group) and an ``extra`` (uint32). With ``distinct``, entries of a group
    that share their ``extra`` count as one, of which the best is kept. Both are
    associative: any split of the stream, merged in any order, gives the same
    arrays. Free places hold the address ``NOBODY``.

    Entries wait in a buffer of about ``PENDING`` and are sorted in together.
    """

    def __init__(self, n_groups: int, k: int, *, distinct: bool) -> None:
        self.k = k
        self.distinct = distinct
        self.rank: U32 = np.full((n_groups, k), _WORST, np.uint32)
        self.address: U64 = np.full((n_groups, k), NOBODY, np.uint64)
        self.extra: U32 = np.zeros((n_groups, k), np.uint32)
        self._pending_limit = PENDING
        self._pending: list[tuple[I64, U32, U64, U32]] = []
        self._waiting = 0

    def offer(self, group: I64, rank: U32, address: U64, extra: U32) -> None:
        """Take entries up, all arrays of one length."""
        if self.k == 0:
            return
        good = np.flatnonzero(rank <= self.rank[group, -1])
        if not len(good):
            return
        self._pending.append((group[good], rank[good], address[good], extra[good]))
        self._waiting += len(good)
        if self._waiting >= self._pending_limit:
            self.flush()

    def merge(self, other: Keeper) -> None:
        """Take up everything another keeper of the same shape holds."""
        other.flush()
        step = max(1, self._pending_limit // max(1, other.k))
        for start in range(0, len(other.rank), step):
            rows, places = np.nonzero(other.address[start : start + step] != NOBODY)
            rows = rows + start
            self.offer(rows, other.rank[rows, places], other.address[rows, places], other.extra[rows, places])
        self.flush()

    def flush(self) -> None:
        """Sort what waits into the arrays."""
        if not self._pending:
            return
        group, rank, address, extra = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        touched = np.unique(group)
        rows, places = np.nonzero(self.address[touched] != NOBODY)
        rows = touched[rows]
        group = np.concatenate([group, rows])
        rank = np.concatenate([rank, self.rank[rows, places]])
        address = np.concatenate([address, self.address[rows, places]])
        extra = np.concatenate([extra, self.extra[rows, places]])
        order = np.lexsort((address, (group.astype(np.uint64) << np.uint64(32)) | rank))
        if self.distinct:
            order = order[_first_of_each(group[order], extra[order])]
        place = _place_in_group(group[order])
        order, place = order[place < self.k], place[place < self.k]
        group = group[order]
        self.rank[touched], self.address[touched], self.extra[touched] = _WORST, NOBODY, 0
        self.rank[group, place] = rank[order]
        self.address[group, place] = address[order]
        self.extra[group, place] = extra[order]


def _first_of_each(group: I64, extra: U32) -> I64:
    """The places, in order, of the first entry of every (group, extra)."""
    pair = (group.astype(np.uint64) << np.uint64(32)) | extra
    _, first = np.unique(pair, return_index=True)
    return np.sort(first)


def _place_in_group(group: I64) -> I64:
    """0, 1, 2 ... within each run of equal values."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    lengths = np.diff(np.append(starts, len(group)))
    return np.arange(len(group)) - np.repeat(starts, lengths)
