"""The features that fire at the same tokens, counted once and kept in an index that does not keep every activation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, disk

from .finish import checksum
from .index_settings import kind_for, narrow, nobody, read_manifest, types_of

IDS, COUNTS = "co_active_ids", "co_active_counts"
"""The files, ``(width, k)`` each, without ``.npy``."""

_PAIRS = 1 << 24
"""Pairs of active features that are counted at a time."""


class PairCounter:
    """At how many tokens each pair of features is active, ``both (width, width)``; the diagonal is of one feature.

    Takes 4 bytes a pair: 268 MB for 8192 features.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.both: NDArray[np.uint32] = np.zeros((width, width), np.uint32)

    def add(self, features: NDArray[Any], per_token: NDArray[Any]) -> None:
        """Count the tokens whose active features follow one another in ``features``, ``per_token (n,)`` of each."""
        per_token = per_token[per_token > 0].astype(np.int64)
        ends = np.cumsum(per_token)
        pairs = np.cumsum(per_token * per_token)
        low = 0
        while low < len(per_token):
            done = int(pairs[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(pairs, done + _PAIRS, side="right")))
            first = int(ends[low - 1]) if low else 0
            self._count(features[first : int(ends[high - 1])].astype(np.int64), per_token[low:high])
            low = high

    def _count(self, features: NDArray[np.int64], per_token: NDArray[np.int64]) -> None:
        begin = np.cumsum(per_token) - per_token
        times = np.repeat(per_token, per_token)  # each feature is paired with all of its token
        within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
        right = features[np.repeat(np.repeat(begin, per_token), times) + within]
        np.add.at(self.both.reshape(-1), np.repeat(features, times) * self.width + right, np.uint32(1))


@dataclass(frozen=True, slots=True, eq=False)
class CoActiveTable:
    """Of every feature the ``k`` others with the highest Jaccard index of active tokens, highest first, ``(width, k)``.

    ``ids`` are the others, free places all bits set; ``counts`` the tokens at which both are active, 0 where free.
    """

    ids: NDArray[Any]
    counts: NDArray[Any]


def co_active_table(both: NDArray[np.uint32], k: int) -> CoActiveTable:
    """The table of pairs counted by :class:`PairCounter`; of equal ones the lower feature comes first."""
    width = len(both)
    count = np.diagonal(both).astype(np.int64)
    free = nobody(kind_for(width))
    ids, counts = np.full((width, k), free, kind_for(width)), np.zeros((width, k), np.uint32)
    for feature in range(width):
        row = both[feature].astype(np.int64)
        row[feature] = 0
        others = np.flatnonzero(row)
        jaccard = row[others] / (count[others] + count[feature] - row[others])
        best = others[np.lexsort((others, -jaccard))[:k]]
        ids[feature, : len(best)], counts[feature, : len(best)] = best, row[best]
    return CoActiveTable(ids, narrow(counts))


def add_co_active(folder: Path, table: CoActiveTable) -> None:
    """Keep the table with the index in ``folder``, which nobody may have open; its key stays.

    Raises :class:`LensError` for a table of another width.
    """
    manifest = read_manifest(folder)
    width = manifest["identity"]["width"]
    if table.ids.shape != table.counts.shape or len(table.ids) != width:
        raise LensError(f"The table of co-active features has the shape {table.ids.shape} for {width} features.")
    for name, array in ((IDS, table.ids), (COUNTS, table.counts)):
        disk.write_with(folder / f"{name}.npy", partial(_save, array))
    own = {f"{name}.npy": checksum(folder / f"{name}.npy") for name in (IDS, COUNTS)}
    types = {name: kind for name, kind in types_of(folder).items() if name in own}
    manifest["files"] |= own
    manifest["types"] |= types
    manifest["co_active"] = int(table.ids.shape[1])
    disk.write_text(folder / "manifest.json", json.dumps(manifest, indent=1))


def _save(array: NDArray[Any], file: BinaryIO) -> None:
    np.save(file, array)
