"""The k largest entries of every row, with their places, and a running best over blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


def largest(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Places and values ``(n, k)`` of the ``k`` largest entries of each row of ``(n, m)``, in no order.

    Columns are put into groups and each group's maximum is taken in one cheap pass: the ``k`` largest entries
    lie in the ``k`` groups with the largest maxima, so only those are looked at one by one.
    """
    n, m = values.shape
    if k >= m:
        ids = mx.broadcast_to(mx.arange(m, dtype=mx.int32), (n, m))
        return ids, values
    size = _group_size(m, k)
    if size == 1:
        ids = mx.argpartition(values, kth=m - k, axis=-1)[:, m - k :].astype(mx.int32)
        return ids, mx.take_along_axis(values, ids, axis=-1)
    groups = m // size
    # Group j is the columns j, j + groups, j + 2 groups, ...: the maximum is then taken over rows, not within one.
    maxima = mx.max(values.reshape(n, size, groups), axis=1)
    best = mx.argpartition(maxima, kth=groups - k, axis=-1)[:, groups - k :].astype(mx.int32)
    steps = mx.arange(0, m, groups, dtype=mx.int32)
    candidates = (best[:, None, :] + steps[None, :, None]).reshape(n, size * k)
    found = mx.take_along_axis(values, candidates, axis=-1)
    place = mx.argpartition(found, kth=size * k - k, axis=-1)[:, size * k - k :]
    return mx.take_along_axis(candidates, place, axis=-1), mx.take_along_axis(found, place, axis=-1)


def _group_size(m: int, k: int) -> int:
    """About ``sqrt(m / k)``, which makes both passes alike: a power of two that leaves over ``k`` groups."""
    size = 1
    while m % (2 * size) == 0 and m // (2 * size) > 2 * k and (2 * size) ** 2 * k <= 4 * m:
        size *= 2
    return size


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The best entries so far: ids and values ``(n, at most k)``."""

    ids: mx.array
    values: mx.array

    def with_block(self, values: mx.array, start: int, k: int) -> Best:
        """Take in a block of columns that begins at column ``start``."""
        ids, found = largest(values, k)
        ids = mx.concatenate([self.ids, ids + start], axis=1)
        found = mx.concatenate([self.values, found], axis=1)
        if ids.shape[1] <= k:
            return Best(ids, found)
        place, found = largest(found, k)
        return Best(mx.take_along_axis(ids, place, axis=1), found)

    def in_order(self) -> tuple[mx.array, mx.array]:
        """Strongest first, of equals the lower id; entries of 0 have id -1."""
        by_id = mx.argsort(self.ids, axis=1)
        ids, values = (mx.take_along_axis(part, by_id, axis=1) for part in (self.ids, self.values))
        order = mx.argsort(-values, axis=1)
        ids, values = (mx.take_along_axis(part, order, axis=1) for part in (ids, values))
        return mx.where(values > 0, ids, -1), values


def nothing(n: int) -> Best:
    """The best of no columns."""
    return Best(mx.zeros((n, 0), dtype=mx.int32), mx.zeros((n, 0)))
