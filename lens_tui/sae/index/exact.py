"""Sums that do not depend on the order of their terms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ONE = 1 << 32


class ExactSum:
    """A sum for each of ``n`` features in 96-bit fixed point: whole part and a fraction in units of 2**-32.

    Every term is rounded to 2**-32 once; the additions are of integers, hence
    exact, so that shards added in any order give the same bits. Terms must lie
    within 2**52 of zero.
    """

    def __init__(self, n: int) -> None:
        self.whole: NDArray[np.int64] = np.zeros(n, np.int64)
        self.part: NDArray[np.int64] = np.zeros(n, np.int64)

    def add(self, ids: NDArray[np.int64], starts: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add to feature ``ids[i]`` (distinct) the values from ``starts[i]`` up to the next start."""
        if not len(ids):
            return
        floor = np.floor(values)
        part = np.rint((values - floor) * _ONE).astype(np.int64)
        self.whole[ids] += np.add.reduceat(floor.astype(np.int64), starts)
        self.part[ids] += np.add.reduceat(part, starts)
        self._carry(ids)

    def merge(self, other: ExactSum) -> None:
        """Add another's sums."""
        self.whole += other.whole
        self.part += other.part
        self._carry(np.arange(len(self.whole)))

    @property
    def value(self) -> NDArray[np.float64]:
        """The sums, rounded to float64."""
        return self.whole + self.part / _ONE

    def _carry(self, ids: NDArray[np.int64]) -> None:
        self.whole[ids] += self.part[ids] >> 32
        self.part[ids] &= _ONE - 1
