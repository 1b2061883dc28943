"""A model as mlx-lm's batch generator calls it, with the interventions of whichever rows are in the call.

Rows join, finish and leave inside mlx-lm. Which row is which is known from one more
cache that rides behind the layers' caches: mlx-lm merges, filters and extends it
with the others, so that it always names the rows that a forward has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from lens_tui.records import ArmEnd, BatchRow, Dose, Intervention, Sampling, Token

from ..forward import tolerance
from ..hooks.passage import History, Passage
from ..hooks.places import Offset, follow_thinking
from ..hooks.program import DoseMeter, Measured, Sums, async_eval
from ..hooks.registry import Plan, PlanEntry, Registry, Run
from ..tokens import EncodedPrompt, Tokens
from .compare import Writing
from .generation import DecodeStep, Scales, mlx_lm_generate, scales_of
from .row_recorder import RowRecorder
from .sampling import LogitsProcessor, Sampler, SideBySide, best, candidates, kl, log_softmax


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
        """A forward of ``length`` tokens: how many of them are not padding, row by row."""
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
    entries: tuple[PlanEntry, ...]
    inside: mx.array | None = None
    history: History = field(default_factory=History)
    meter: DoseMeter = field(default_factory=DoseMeter)
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
    meter: DoseMeter | None
    stamp: object = None


@dataclass(eq=False)
class ForwardDoses:
    """What was measured in one forward: for each row to count when a token of it comes from this forward."""

    meter: DoseMeter
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

    def __init__(self, registry: Registry, plans: dict[int, RowPlan], recorder: RowRecorder | None = None) -> None:
        self._registry = registry
        self.recorder = recorder
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
        start = max(count + some for count, some in zip(counts, real, strict=True)) - length  # padding has no place
        if self.recorder is not None:
            self.recorder.expect(rows, real)
        logits = self._registry.forward(run, inputs, cache[:-1], start=start, held=True)
        if self.recorder is not None:
            self.recorder.send()
        if here.meter is not None and here.meter.pending:
            async_eval(*here.meter.arrays())
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
            recorders = () if self.recorder is None else (self.recorder,)
            plan = Plan([self._plans[row].entries for row in rows], recorders)
            self.compositions[rows] = Composition(rows, plan, DoseMeter() if any(plan.rows) else None)
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


Way = Literal["padded", "joined", "alone"]
"""Prompts padded to one length and prefilled together; prefilled one by one and decoded together; one by one."""

_STEPS = 3


def way_of(registry: Registry) -> Way:
    """The best way that is right for this model."""
    return registry.once(_right_way)


def _right_way(registry: Registry) -> Way:
    ways: tuple[Way, ...] = ("padded", "joined")
    return next((way for way in ways if _agrees(registry, way)), "alone")


def _agrees(registry: Registry, way: Way) -> bool:
    """Whether both rows' distributions are those of the rows alone, to the dtype's accuracy (KL in nats)."""
    vocab = registry.decoder.vocab_size
    prompts = [[(7 * at + 3) % vocab for at in range(6)], [(5 * at + 1) % vocab for at in range(2)]]
    try:
        together = _batch(registry, prompts, way)
    except Exception:  # whatever a model raises that does not know batches; row by row is always right
        return False
    limit = tolerance(registry.decoder.dtype)
    for prompt, (ids, rows) in zip(prompts, together, strict=True):
        logits = registry.forward(Run(registry, Plan()), mx.array([prompt + ids[:-1]]))
        alone = log_softmax(logits[0, -_STEPS:])
        if not float(kl(alone, mx.stack(rows)).max()) < limit:
            return False
    return True


def _batch(registry: Registry, prompts: list[list[int]], way: Way) -> list[tuple[list[int], list[mx.array]]]:
    from mlx_lm.models.cache import make_prompt_cache

    plans = {row: RowPlan(EncodedPrompt(tuple(prompt)), ()) for row, prompt in enumerate(prompts)}
    model: Any = BatchModel(registry, plans)
    generator = mlx_lm_generate().BatchGenerator(model, prefill_batch_size=2 if way == "padded" else 1)
    caches = [[*make_prompt_cache(registry.decoder.root), RowLabels([row], [0])] for row in plans]
    try:
        uids = generator.insert(prompts, [_STEPS] * len(prompts), caches=caches)
        found: dict[int, tuple[list[int], list[mx.array]]] = {uid: ([], []) for uid in uids}
        while any(len(ids) < _STEPS for ids, _ in found.values()):
            for response in generator.next_generated():
                found[response.uid][0].append(response.token)
                found[response.uid][1].append(response.logprobs)
    finally:
        generator.close()
    return [found[uid] for uid in uids]


Numbers = tuple[list[float], list[list[int]], list[list[float]]]
"""Row by row: log-probabilities of the chosen tokens, and candidates with theirs."""


@dataclass(eq=False)
class BatchStep:
    """What one forward chose for each of its rows: on the device until the first of them is asked for.

    ``logprobs`` (rows,) are those of the chosen tokens, ``top`` the candidates, ids and log-probabilities
    (rows, count). ``doses`` is what the forward measured, ``places`` where these rows are in that (``None``: in the
    same order). ``readings`` (rows, monitors) are those of the tokens that these were chosen after.
    """

    rows: int
    logprobs: mx.array | None
    top: tuple[mx.array, mx.array] | None
    scales: Scales
    doses: ForwardDoses | None = None
    places: tuple[int, ...] | None = None
    readings: mx.array | None = None
    _numbers: Numbers | None = None
    _readings: list[list[float]] | None = None

    def count(self, at: int) -> None:
        """Count the dose of a row whose token is used."""
        if self.doses is not None:
            self.doses.count(at if self.places is None else self.places[at])

    @classmethod
    def of_step(cls, step: DecodeStep) -> BatchStep:
        """A step of a row decoder, which has been read, as if it had been a batch's."""
        empty: list[list[Any]] = [[] for _ in step.ids]
        numbers = (step.logprobs, step.top_ids or empty, step.top_logprobs or empty)
        return cls(len(step.ids), None, None, step.scales, _numbers=numbers, _readings=step.readings)

    def read_at(self, at: int) -> tuple[float, ...]:
        """What monitors read before the token of a row was chosen."""
        if self._readings is None:
            self._readings = [] if self.readings is None else self.readings.tolist()  # type: ignore[assignment]
        return tuple(self._readings[at]) if self._readings else ()

    def read(self) -> Numbers:
        """The numbers of all rows, brought to the host once."""
        if self._numbers is None:
            assert self.logprobs is not None
            ids, values = self.top if self.top is not None else (mx.zeros((self.rows, 0)), mx.zeros((self.rows, 0)))
            numbers: Any = (self.logprobs.tolist(), ids.tolist(), values.tolist())
            self._numbers = numbers
            return numbers  # type: ignore[no-any-return]
        return self._numbers


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
    name: str = ""
    logprobs: list[float] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)
    doses: tuple[Dose, ...] = ()
    reused: int = 0
    launched: deque[tuple[BatchStep, int]] = field(default_factory=deque)
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
        chosen = self.sampler(log_softmax(changed))
        self._history = mx.concatenate([self._history, chosen.astype(mx.int32)])
        return chosen

    def take(self, token: int, step: BatchStep, at: int, tokens: Tokens) -> Token:
        """Add a token that has come; ``reason`` is set if it was the last one.

        Args:
            token: Its id.
            step: The step that it was chosen in.
            at: The row's place in that step.
            tokens: Gives its display form.
        """
        logprobs, top_ids, top_logprobs = step.read()
        self.logprobs.append(logprobs[at])
        self.shapes.append(step.rows)
        text = self.write(token)
        return Token(
            index=len(self.ids) - 1,
            token_id=token,
            token=tokens.display(token),
            text=text,
            logprob=logprobs[at],
            arm=self.index,
            top=candidates(tokens, top_ids[at][: self.top], top_logprobs[at][: self.top]),
            scales=step.scales[at],
            readings=step.read_at(at),
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
    """Choose every row's next token, each by its own settings, and note what goes into its event.

    Rows without processors that are all greedy, or differ in their seed alone, are done together.

    Args:
        model: What has just run: its logits, before the log-softmax.
        rows: The rows of that forward, in order.
        logprobs: ``(rows, vocabulary)``.
        beside: The random states of rows that draw side by side.

    Returns:
        Token ids ``(rows,)``.
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
    read = None if model.recorder is None else model.recorder.newest()
    step = BatchStep(len(rows), of_chosen, top, model.scales, model.doses(), readings=read)
    async_eval(chosen, of_chosen, *(top or ()), *(() if read is None else (read,)))
    for at, row in enumerate(rows):
        row.launched.append((step, at))
    return chosen
