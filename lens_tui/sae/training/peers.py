"""Training shared by several processes: each takes its rows of every batch, and all make the same step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lens_tui.records import LensError


@dataclass(frozen=True, eq=False)
class Peers:
    """The processes that train together; ``rank`` is this one's number among ``size``."""

    group: Any
    rank: int
    size: int

    def part(self, batch: mx.array) -> mx.array:
        """This process's rows of a batch ``(n, d)``, a whole share of them."""
        rows = batch.shape[0] // self.size
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def averaged(self, gradient: dict[str, mx.array]) -> dict[str, mx.array]:
        """The gradient of the whole batch, from those of its parts."""
        average: Any = getattr(nn, "average_gradients")  # noqa: B009 (MLX does not export it to type checkers)
        found: dict[str, mx.array] = average(gradient, group=self.group)
        return found

    def mean(self, value: mx.array) -> mx.array:
        """The mean of a number over the processes."""
        return mx.distributed.all_sum(value, group=self.group) / self.size

    def any(self, flags: mx.array) -> mx.array:
        """Which flags are true in any process."""
        return mx.distributed.all_sum(flags.astype(mx.int32), group=self.group) > 0


def peers_of(batch: int, architecture: str) -> Peers:
    """The processes that a launcher started, which share each batch.

    Raises:
        LensError: Where this is the only process, where they cannot share a batch evenly, and for ``batchtopk``, which
            chooses among the latents of a whole batch.
    """
    group: Any = mx.distributed.init()
    size = group.size()
    if size < 2:
        raise LensError(
            "Several processes can train together, and this is the only one.", "Start them with mlx.launch."
        )
    if batch % size:
        raise LensError(f"A batch of {batch} tokens cannot be divided among {size} processes.", "Change the batch.")
    if architecture == "batchtopk":
        raise LensError(
            "batchtopk chooses among the latents of a whole batch, of which each process has a part.",
            "Train topk or jumprelu, or in one process.",
        )
    return Peers(group, group.rank(), size)
