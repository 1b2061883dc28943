"""A model as mlx-lm's batch generator calls it, with the interventions of whichever rows are in the call.

Rows join, finish and leave inside mlx-lm. Which row is which is told by one more
cache that rides behind the layers' caches: mlx-lm merges, filters and extends it
with the others, so that it always names the rows that a forward has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from .meter import Measured, Meter, Sums
from .positions import Offset, follow_thinking
from .proxy import first_of
from .registry import Entry, Plan, Registry, Run
from .steered import History
from .steps import Scales, scales_of
from .tokens import EncodedPrompt

_async_eval: Any = mx.async_eval  # has no types


class RowLabels:
    """Which rows a batch holds, and how many tokens of each: mlx-lm's cache protocol, holding no arrays."""

    def __init__(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        self.rows = list(rows)
        self.counts = list(counts)
        self._left: list[int] | None = None
        self._padding: list[int] | None = None

    @classmethod
    def merge(cls, labels: Sequence[RowLabels]) -> RowLabels:
        """One batch of several single rows."""
        return cls([row for item in labels for row in item.rows], [count for item in labels for count in item.counts])

    def extend(self, other: RowLabels) -> None:
        """Append another batch's rows."""
        self.rows += other.rows
        self.counts += other.counts

    def filter(self, keep: Sequence[int]) -> None:
        """Keep these rows."""
        self.rows = [self.rows[index] for index in keep]
        self.counts = [self.counts[index] for index in keep]

    def extract(self, index: int) -> RowLabels:
        """One row alone."""
        return RowLabels(self.rows[index : index + 1], self.counts[index : index + 1])

    def prepare(self, *, lengths: Sequence[int], right_padding: Sequence[int], **_: Any) -> None:
        """The next forwards' tokens are padded on the right."""
        self._left, self._padding = list(lengths), list(right_padding)

    def finalize(self) -> None:
        """The padded tokens have gone in; the padding is not counted."""
        if self._padding is not None:
            self.counts = [count - pad for count, pad in zip(self.counts, self._padding, strict=True)]
        self._left = self._padding = None

    def advance(self, length: int) -> list[int]:
        """A forward of ``length`` tokens: how many of them are no padding, row by row."""
        self.counts = [count + length for count in self.counts]
        if self._left is None:
            return [length] * len(self.rows)
        real = [min(max(left, 0), length) for left in self._left]
        self._left = [left - length for left in self._left]
        return real

    @property
    def state(self) -> list[Any]:
        """No arrays."""
        return []

    def size(self) -> int:
        """Tokens of the longest row."""
        return max(self.counts, default=0)

    def empty(self) -> bool:
        """Whether no token has gone in."""
        return self.size() == 0

    @property
    def nbytes(self) -> int:
        """No memory of note."""
        return 0


@dataclass(eq=False)
class RowPlan:
    """What is one row's own: its prompt and its interventions."""

    prompt: EncodedPrompt
    entries: tuple[Entry, ...]
    inside: mx.array | None = None
    history: History = field(default_factory=History)
    meter: Meter = field(default_factory=Meter)
    _stamp: object = None

    def note(self, at: int) -> None:
        """A forward begins at a position; what was measured under other interventions counts no longer."""
        self.history.note(at, self.entries)
        if self._stamp not in (None, self.stamp):
            self.meter.restart()
        self._stamp = self.stamp

    @property
    def stamp(self) -> tuple[object, ...]:
        """Changes when the row's interventions do."""
        return tuple(entry.stamp for entry in self.entries)

    @property
    def follows_thinking(self) -> bool:
        """Whether it matters which generated tokens are thinking."""
        positions = [getattr(entry.item, "positions", None) for entry in self.entries]
        return self.prompt.thinking is not None and any(item and item.role == "thinking" for item in positions)


@dataclass(eq=False)
class Composition:
    """Rows that were in a batch together: their plan, and what says when enough was measured of them."""

    rows: tuple[int, ...]
    plan: Plan
    meter: Meter | None
    stamp: object = None


@dataclass(eq=False)
class ForwardDoses:
    """What was measured in one forward: for each row to count when a token of it comes from this forward."""

    meter: Meter
    plans: Sequence[RowPlan]
    measured: Sequence[Measured]
    stamps: Sequence[object]

    @cached_property
    def sums(self) -> list[tuple[Measured, Sums]]:
        """Read when the first row asks."""
        self.meter.count(self.measured)
        return [(item, np.array(item.sums, dtype=np.float64)) for item in self.measured]

    def count(self, at: int) -> None:
        """Count the dose of the row at a place in the batch, unless its interventions have changed since."""
        plan = self.plans[at]
        if plan.stamp == self.stamps[at]:
            for item, sums in self.sums:
                plan.meter.count_sums(item.key, sums[:, at : at + 1], item.decoding)


class BatchModel:
    """Stands for the model in front of mlx-lm's ``BatchGenerator``.

    Caches given to it end in a :class:`RowLabels`. Logits come back in float32, of
    the last position only. ``last``, ``logits`` and ``scales`` tell of the newest
    forward which rows it had, their logits, and the scales that acted on each.
    """

    def __init__(self, registry: Registry, plans: dict[int, RowPlan]) -> None:
        self._registry = registry
        self._plans = plans
        self.compositions: dict[tuple[int, ...], Composition] = {}
        self.last: tuple[int, ...] = ()
        self.logits = mx.zeros((0, 0))
        self.scales: Scales = ()
        self._doses: ForwardDoses | None = None
        self._chosen = False

    def doses(self) -> ForwardDoses | None:
        """What the newest forward measured, for who has chosen tokens from it, to be counted once they are used."""
        self._chosen = True
        return self._doses

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        """The last position's logits (rows, 1, vocabulary), float32."""
        if self._doses is not None and not self._chosen:  # it was a part of prompts
            for at in range(len(self._doses.plans)):
                self._doses.count(at)
        self._doses, self._chosen = None, False
        labels: RowLabels = cache[-1]
        rows, counts, length = tuple(labels.rows), list(labels.counts), inputs.shape[1]
        here = self._composition(rows)
        real = labels.advance(length)
        plans = [self._plans[row] for row in rows]
        if here.meter is not None:
            ends = [len(plan.prompt.ids) - 1 for plan in plans]
            here.meter.decoding = length == 1 and all(at >= end for at, end in zip(counts, ends, strict=True))
        for plan, count in zip(plans, counts, strict=True):
            plan.note(count)
        run = Run(
            self._registry,
            here.plan,
            _one([len(plan.prompt.ids) for plan in plans]),
            meter=here.meter,
            thinking=self._thinking(plans, inputs, counts),
            offset=_one(counts),
            row_spans=tuple(plan.prompt.spans for plan in plans),
            real=None if min(real) == length else _real(real, length),
        )
        with self._registry.running(run):
            logits = first_of(self._registry.decoder.root(inputs, cache=cache[:-1]))
        if here.meter is not None and here.meter.pending:
            _async_eval(*here.meter.arrays())
            self._doses = ForwardDoses(here.meter, plans, here.meter.take(), [plan.stamp for plan in plans])
        self.last, self.scales = rows, tuple(scales_of(here.plan, row) for row in range(len(rows)))
        result: mx.array = logits[:, -1:].astype(mx.float32)
        self.logits = result[:, -1]
        return result

    def choosable(self, values: mx.array) -> mx.array:
        """As :meth:`.layers.Decoder.choosable`."""
        return self._registry.decoder.choosable(values)

    def _composition(self, rows: tuple[int, ...]) -> Composition:
        if rows not in self.compositions:
            plan = Plan([self._plans[row].entries for row in rows])
            self.compositions[rows] = Composition(rows, plan, Meter() if any(plan.rows) else None)
        here = self.compositions[rows]
        if here.meter is not None and here.stamp not in (None, here.plan.stamp):
            here.meter.restart()
        here.stamp = here.plan.stamp
        return here

    def _thinking(self, plans: Sequence[RowPlan], inputs: mx.array, counts: Sequence[int]) -> mx.array | None:
        """Which rows' generated token is between the thinking markers; ``None`` where that matters to nobody."""
        if inputs.shape[1] != 1 or not any(plan.follows_thinking for plan in plans):
            return None
        found = []
        for row, plan in enumerate(plans):
            now = mx.zeros((1, 1), dtype=mx.bool_)
            if plan.prompt.thinking is not None:
                last = len(plan.prompt.ids) - 1
                if counts[row] == last:  # what the prompt's spans say of its last token holds
                    plan.inside = mx.full((1, 1), plan.prompt.inside)
                elif counts[row] > last and plan.inside is not None:
                    now, plan.inside = follow_thinking(inputs[row : row + 1], plan.inside, plan.prompt.thinking)
            found.append(now)
        return mx.concatenate(found)


def _one(values: list[int]) -> Offset:
    """One number where all are the same: what is known in Python needs no array."""
    return values[0] if len(set(values)) == 1 else mx.array(values)


def _real(real: Sequence[int], length: int) -> mx.array:
    return (mx.arange(length)[None] < mx.array(list(real))[:, None])[..., None]
