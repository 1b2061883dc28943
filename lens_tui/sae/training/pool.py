"""Shuffled batches from a stream of activations, in bounded memory, from any point again.

A pool is filled with ``pool_tokens`` positions, permuted, served, and filled again where the
stream stopped. Nothing of it is kept on disk: a position (pool number, block, row, batches served) says
all, since the blocks and the permutation of a pool are functions of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError
from lens_tui.records.activations import ActivationSource, Place


@dataclass(frozen=True, slots=True)
class PoolPosition:
    """``block`` and ``row``: where the current pool begins in the stream; ``served``: batches taken from it."""

    number: int = 0
    block: int = 0
    row: int = 0
    served: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain data for a checkpoint."""
        return asdict(self)


class Pool:
    """Batches ``(batch, d)`` of activations that are not special, in the model's dtype, without end."""

    def __init__(
        self,
        source: ActivationSource,
        place: Place,
        batch: int,
        pool_tokens: int,
        seed: int,
        position: PoolPosition | None = None,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._source, self._place, self._batch, self._seed = source, place, batch, seed
        self._pause = pause
        self._batches = max(1, pool_tokens // batch)
        self.position = position or PoolPosition()
        self._next: tuple[int, int] = (0, 0)
        self._values: Any = None
        self._order: Any = None

    def next(self) -> mx.array:
        """The next batch. Raises ``LensError`` if the source has nothing but special positions."""
        if self._values is None:
            self._fill()
        start = self.position.served * self._batch
        chosen = mx.take(self._values, self._order[start : start + self._batch], axis=0)
        self.position = replace(self.position, served=self.position.served + 1)
        if self.position.served == self._batches:
            self.position = PoolPosition(self.position.number + 1, *self._next)
            self._values = None
        return chosen

    def _fill(self) -> None:
        size = self._batches * self._batch
        at = self.position
        self._values, self._next = take_rows(self._source, self._place, size, at.block, at.row, self._pause)
        generator = np.random.Generator(np.random.PCG64([self._seed, self.position.number]))
        self._order = mx.array(generator.permutation(size).astype(np.int32))
        mx.eval(self._order)


def take_rows(
    source: ActivationSource,
    place: Place,
    count: int,
    block: int = 0,
    row: int = 0,
    pause: Callable[[], None] | None = None,
) -> tuple[mx.array, tuple[int, int]]:
    """``count`` positions that are not special, ``(count, d)``, from row ``row`` of block ``block`` on.

    Also gives the block and row that come next. Blocks are evaluated one at a time;
    ``pause`` is called before each and may raise.
    """
    parts: list[mx.array] = []
    missing, barren = count, 0
    for item in source.blocks(block):
        if pause is not None:
            pause()
        kept = np.flatnonzero(~item.special)[row:]
        barren = barren + 1 if len(kept) == 0 else 0
        if barren > max(source.n_blocks, 1):
            raise LensError("The text has no position to train on.", "Give more or longer documents.")
        used = kept[:missing]
        if len(used):
            part = mx.take(item.values[place], mx.array(used.astype(np.int32)), axis=0)
            mx.eval(part)
            parts.append(part)
            missing -= len(used)
        if missing == 0:
            values = mx.concatenate(parts, axis=0)
            mx.eval(values)
            done = len(used) == len(kept)
            return values, (item.index + 1, 0) if done else (item.index, row + len(used))
        row = 0
    raise LensError("The activations ended before training did.", "Give a source that starts over at its end.")
