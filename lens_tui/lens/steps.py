"""One step of a decoder: what every row's next token is, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .registry import Plan

Scales = tuple[tuple[tuple[str, float], ...], ...]
"""For each row, ``(id, scale)`` of its records."""


@dataclass(frozen=True)
class Step:
    """One token of every row, read back: ids, log-probabilities, KL from the baseline row, top candidates.

    ``version`` and ``scales`` say which interventions of the rows it was computed under.
    """

    ids: list[int]
    logprobs: list[float]
    kl: list[float] | None
    top_ids: list[list[int]] | None
    top_logprobs: list[list[float]] | None
    version: int
    scales: Scales


@dataclass
class LaunchedStep:
    """A step whose arrays may not have been computed yet."""

    chosen: mx.array
    logprobs: mx.array
    kl: mx.array | None
    top_ids: mx.array | None
    top_logprobs: mx.array | None
    version: int
    scales: Scales

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated."""
        every = (self.chosen, self.logprobs, self.kl, self.top_ids, self.top_logprobs)
        return [array for array in every if array is not None]

    def read(self) -> Step:
        """The step in Python's numbers."""
        return Step(
            self.chosen.tolist(),  # type: ignore[arg-type]
            self.logprobs.tolist(),  # type: ignore[arg-type]
            None if self.kl is None else self.kl.tolist(),  # type: ignore[arg-type]
            None if self.top_ids is None else self.top_ids.tolist(),  # type: ignore[arg-type]
            None if self.top_logprobs is None else self.top_logprobs.tolist(),  # type: ignore[arg-type]
            self.version,
            self.scales,
        )


def scales_of(plan: Plan, row: int) -> tuple[tuple[str, float], ...]:
    """``(id, scale)`` of every enabled record of a row that has a scale or a value."""
    found = []
    for entry in plan.rows[row]:
        item = entry.item
        value = getattr(item, "scale", getattr(item, "value", None))
        if value is not None and getattr(item, "enabled", True):
            found.append((item.id, float(value)))
    return tuple(found)


def kl_from(logprobs: mx.array, baseline: int) -> mx.array:
    """D_KL(row || baseline row) in nats for each row of (rows, vocabulary) log-probabilities, float32."""
    terms = mx.exp(logprobs) * (logprobs - logprobs[baseline : baseline + 1])
    # A token that the row cannot choose adds nothing: 0 log 0 = 0.
    return mx.where(mx.isneginf(logprobs), 0.0, terms).sum(axis=-1)


def best(logprobs: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ``count`` most likely tokens of each row, best first: ids and log-probabilities (rows, count)."""
    count = min(count, logprobs.shape[-1])
    some = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, some, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(some, order, axis=-1), mx.take_along_axis(values, order, axis=-1)
