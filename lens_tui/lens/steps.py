"""One step of a decoder: what every row's next token is, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from .meter import Measured
from .registry import Plan

Scales = tuple[tuple[tuple[str, float], ...], ...]
"""For each row, ``(id, scale)`` of its records."""


@dataclass(frozen=True)
class AgainstPlain:
    """One arm's next-token distribution against the plain model's on the same tokens, in nats.

    ``kl`` is D(arm || plain), ``reverse_kl`` D(plain || arm), ``logprob`` the plain model's log-probability of the
    token that the arm chose. Not finite where a distribution is not.
    """

    kl: float
    reverse_kl: float
    logprob: float


@dataclass(frozen=True)
class Step:
    """One token of every arm, read back: ids, log-probabilities, how the plain model sees it, top candidates.

    ``plain`` is ``None`` where nothing was compared. ``version`` and ``scales`` say which interventions of the rows it
    was computed under.
    """

    ids: list[int]
    logprobs: list[float]
    plain: list[AgainstPlain | None] | None
    top_ids: list[list[int]] | None
    top_logprobs: list[list[float]] | None
    version: int
    scales: Scales


@dataclass
class LaunchedStep:
    """A step whose arrays may not have been computed yet.

    ``plain`` is (3, arms) as of :func:`against_plain`; the arms in ``alone`` had no row to be compared with.
    """

    chosen: mx.array
    logprobs: mx.array
    plain: mx.array | None
    top_ids: mx.array | None
    top_logprobs: mx.array | None
    version: int
    scales: Scales
    alone: frozenset[int] = frozenset()
    measured: list[Measured] = field(default_factory=list)

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated."""
        every = (self.chosen, self.logprobs, self.plain, self.top_ids, self.top_logprobs)
        return [array for array in every if array is not None]

    def read(self) -> Step:
        """The step in Python's numbers."""
        return Step(
            self.chosen.tolist(),  # type: ignore[arg-type]
            self.logprobs.tolist(),  # type: ignore[arg-type]
            self._against_plain(),
            None if self.top_ids is None else self.top_ids.tolist(),  # type: ignore[arg-type]
            None if self.top_logprobs is None else self.top_logprobs.tolist(),  # type: ignore[arg-type]
            self.version,
            self.scales,
        )

    def _against_plain(self) -> list[AgainstPlain | None] | None:
        if self.plain is None:
            return None
        values: list[list[float]] = self.plain.tolist()  # type: ignore[assignment]
        return [
            None if arm in self.alone else AgainstPlain(*numbers)
            for arm, numbers in enumerate(zip(*values, strict=True))
        ]


def scales_of(plan: Plan, row: int) -> tuple[tuple[str, float], ...]:
    """``(id, scale)`` of every enabled record of a row that has a scale or a value."""
    found = []
    for entry in plan.rows[row]:
        item = entry.item
        value = getattr(item, "scale", getattr(item, "value", None))
        if value is not None and getattr(item, "enabled", True):
            found.append((item.id, float(value)))
    return tuple(found)


def kl(p: mx.array, q: mx.array) -> mx.array:
    """D(p || q) in nats along the last axis of float32 log-probabilities; NaN where either of them is no distribution.

    Never below 0 by rounding. A token that ``p`` cannot choose adds nothing: 0 log 0 = 0.
    """
    share = mx.exp(p)
    terms = mx.where(share == 0.0, 0.0, share * (p - q))
    return mx.maximum(terms.sum(axis=-1), 0.0)  # MLX's comparison and maximum keep NaN


def against_plain(logprobs: mx.array, plain: mx.array, chosen: mx.array) -> mx.array:
    """What :class:`AgainstPlain` holds, (3, arms), of log-probabilities (arms, vocabulary) and chosen ids (arms,)."""
    of_chosen = mx.take_along_axis(plain, chosen[:, None], axis=-1)[:, 0]
    return mx.stack([kl(logprobs, plain), kl(plain, logprobs), of_chosen])


def best(logprobs: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ``count`` most likely tokens of each row, best first: ids and log-probabilities (rows, count)."""
    count = min(count, logprobs.shape[-1])
    some = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, some, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(some, order, axis=-1), mx.take_along_axis(values, order, axis=-1)
