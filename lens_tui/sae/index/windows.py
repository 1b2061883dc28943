"""What each feature does around its top examples: gathered from the activations by token, chunk by chunk."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import nobody
from .settings import IndexSettings

_QUERIES = 2_000_000


def write_windows(work: Path, settings: IndexSettings, kind: Any, chunk: int) -> None:
    """Write ``example_windows.npy``, ``(width, top_k, window)``: the feature at the tokens around each example.

    The peak is at place ``before``; places beyond the example's own sequence, and tokens where the feature is
    silent or that are not counted, hold 0.
    """
    tokens = np.load(work / "example_tokens.npy", mmap_mode="r")
    width, k = tokens.shape
    path = work / "example_windows.npy"
    windows = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(width, k, settings.window))
    starts = np.load(work / "sequence_starts.npy")
    rows = _Rows(work)
    flat = tokens.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[: np.searchsorted(flat[order], nobody(flat.dtype))]
    view = windows.reshape(width * k, settings.window)
    for low, high in _chunks(rows.ends, starts, chunk):
        a, b = np.searchsorted(flat[order], (low, high))
        keys, values = rows.sorted_pairs(low, high)
        step = max(1, _QUERIES // settings.window)
        for start in range(a, b, step):
            some = order[start : min(start + step, b)]
            view[some] = _around(some // k, flat[some].astype(np.int64), starts, high, keys, values, settings)
    windows.flush()


class _Rows:
    """The activations by token of an index being written."""

    def __init__(self, work: Path) -> None:
        self.ends = np.load(work / "row_ends.npy", mmap_mode="r")
        self.features = np.load(work / "row_features.npy", mmap_mode="r")
        self.values = np.load(work / "row_values.npy", mmap_mode="r")

    def sorted_pairs(self, low: int, high: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
        """Of tokens low..high: sorted ``feature << 32 | token`` and the values in that order."""
        first = int(self.ends[low - 1]) if low else 0
        ends = self.ends[low:high].astype(np.int64)
        counts = np.diff(np.concatenate([[first], ends]))
        token = np.repeat(np.arange(low, high, dtype=np.uint64), counts)
        last = int(ends[-1]) if len(ends) else first
        keys = (self.features[first:last].astype(np.uint64) << np.uint64(32)) | token
        order = np.argsort(keys)
        return keys[order], self.values[first:last][order]


def _chunks(ends: NDArray[Any], starts: NDArray[Any], chunk: int) -> list[tuple[int, int]]:
    """Runs of whole sequences with about ``chunk`` activations each, as (first token, end token)."""
    n = len(ends)
    if n == 0:
        return []
    before = np.concatenate([[0], ends[starts[1:].astype(np.int64) - 1].astype(np.int64)])
    first_of = np.flatnonzero(np.diff(before // chunk, prepend=-1))
    edges = [int(starts[i]) for i in first_of] + [n]
    return list(pairwise(edges))


def _around(
    feature: NDArray[np.int64],
    peak: NDArray[np.int64],
    starts: NDArray[Any],
    high: int,
    keys: NDArray[np.uint64],
    values: NDArray[Any],
    settings: IndexSettings,
) -> NDArray[Any]:
    """Windows ``(n, window)`` of features around tokens, from the sorted pairs of one chunk."""
    sequence = np.searchsorted(starts, peak, side="right") - 1
    begin = starts[sequence].astype(np.int64)
    end = np.where(sequence + 1 < len(starts), starts[np.minimum(sequence + 1, len(starts) - 1)], high).astype(np.int64)
    at = peak[:, None] + np.arange(-settings.before, settings.after + 1)
    inside = (at >= begin[:, None]) & (at < end[:, None])
    wanted = (feature.astype(np.uint64)[:, None] << np.uint64(32)) | np.where(inside, at, 0).astype(np.uint64)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = inside & (keys[place] == wanted)
    return np.where(found, values[place], values.dtype.type(0))
