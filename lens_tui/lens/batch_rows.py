"""The rows of a batch: what each one asked for, and what has come of it so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx

from lens_tui.records import ArmEnd, BatchRow, Candidate, Dose, Intervention, Sampling, Token

from .batch_model import BatchModel, ForwardDoses, RowPlan
from .sampling import LogitsProcessor, Sampler, SideBySide
from .steered import Passage
from .steps import Scales, Step, best
from .stops import Writing
from .tokens import Tokens

_async_eval: Any = mx.async_eval  # has no types


@dataclass(eq=False)
class Launched:
    """What one forward chose for each of its rows, read when the first of them is asked for.

    ``doses`` is what it measured, ``places`` where these rows are in that (``None``: in the same order).
    """

    rows: int
    logprobs: mx.array
    top: tuple[mx.array, mx.array] | None
    scales: Scales
    doses: ForwardDoses | None = None
    places: tuple[int, ...] | None = None

    def count(self, at: int) -> None:
        """Count the dose of a row whose token is used."""
        if self.doses is not None:
            self.doses.count(at if self.places is None else self.places[at])

    @classmethod
    def of_step(cls, step: Step) -> Launched:
        """A step of a row decoder, as if it had been a batch's."""
        made = cls(len(step.ids), mx.zeros(0), None, step.scales)
        empty: list[list[Any]] = [[] for _ in step.ids]
        made.__dict__["read"] = (step.logprobs, step.top_ids or empty, step.top_logprobs or empty)
        return made

    @cached_property
    def read(self) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """Log-probabilities of the chosen tokens, and candidates with theirs, row by row."""
        ids, values = self.top if self.top is not None else (mx.zeros((self.rows, 0)), mx.zeros((self.rows, 0)))
        return self.logprobs.tolist(), ids.tolist(), values.tolist()  # type: ignore[return-value]


@dataclass(eq=False, kw_only=True)
class Row(Writing):
    """One prompt of a batch while it is decoded."""

    index: int
    plan: RowPlan
    sampling: Sampling
    sampler: Sampler
    processors: Sequence[LogitsProcessor]
    interventions: tuple[Intervention, ...]
    top: int = 0
    logprobs: list[float] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)
    doses: tuple[Dose, ...] = ()
    reused: int = 0
    launched: deque[tuple[Launched, int]] = field(default_factory=deque)
    _history: mx.array | None = None

    def choose(self, logits: mx.array, logprobs: mx.array) -> mx.array:
        """The next token (1,) from this row's logits and log-probabilities (1, vocabulary)."""
        if not self.processors:
            return self.sampler(logprobs)
        if self._history is None:
            self._history = mx.array(self.plan.prompt.ids, dtype=mx.int32)
        changed = logits + 0.0  # processors write in place
        for processor in self.processors:
            changed = processor(self._history, changed)
        chosen = self.sampler(changed - mx.logsumexp(changed, axis=-1, keepdims=True))
        self._history = mx.concatenate([self._history, chosen.astype(mx.int32)])
        return chosen

    def take(self, token: int, made: Launched, at: int, tokens: Tokens) -> Token:
        """Add a token that has come; ``reason`` is set if it was the last one."""
        logprobs, top_ids, top_logprobs = made.read
        self.logprobs.append(logprobs[at])
        self.shapes.append(made.rows)
        text = self.write(token)
        found = zip(top_ids[at][: self.top], top_logprobs[at][: self.top], strict=True)
        pairs = [pair for pair in found if pair[1] > -math.inf]
        return Token(
            index=len(self.ids) - 1,
            token_id=token,
            token=tokens.display(token),
            text=text,
            logprob=logprobs[at],
            arm=self.index,
            top=tuple(
                Candidate(int(one), tokens.display(int(one)), value) for one, value in pairs if value > -math.inf
            ),
            scales=made.scales[at],
        )

    def passage(self, bos: int | None) -> Passage:
        """What of the row has gone through the model."""
        prompt = self.plan.prompt
        ids = (*prompt.ids, *self.ids[:-1])
        return Passage(ids, len(prompt.ids), 0, bos, prompt.spans, prompt.thinking, prompt.inside)

    def end(self) -> ArmEnd:
        """The row's end as an event."""
        return ArmEnd(self.index, self.reason, len(self.ids), self.text, self.doses)

    def record(self) -> BatchRow:
        """The row as a record, as it stands."""
        return BatchRow(
            index=self.index,
            prompt_ids=self.plan.prompt.ids,
            sampling=self.sampling,
            interventions=self.interventions,
            text=self.text,
            token_ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            batch_rows=tuple(self.shapes),
            reason=self.reason,
            doses=self.doses,
            reused=self.reused,
        )


def choose_all(model: BatchModel, rows: Sequence[Row], logprobs: mx.array, beside: SideBySide) -> mx.array:
    """Choose every row's next token, each by its own settings, and note what is told of it.

    Rows without processors that are all greedy, or differ in their seed alone, are done together.
    """
    plain = not any(row.processors for row in rows)
    logits, among = model.choosable(model.logits), model.choosable(logprobs)
    chosen: mx.array | None = None
    if plain and all(row.sampling.temp == 0.0 and row.sampler is rows[0].sampler for row in rows):
        chosen = rows[0].sampler(among)
    else:
        chosen = beside.choose([row.sampler for row in rows] if plain else [], among)
    if chosen is None:
        one = [slice(at, at + 1) for at in range(len(rows))]
        chosen = mx.concatenate([row.choose(logits[part], among[part]) for row, part in zip(rows, one, strict=True)])
    of_chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
    count = max(row.top for row in rows)
    top = best(among, count) if count else None
    made = Launched(len(rows), of_chosen, top, model.scales, model.doses())
    _async_eval(chosen, of_chosen, *(top or ()))
    for at, row in enumerate(rows):
        row.launched.append((made, at))
    return chosen
