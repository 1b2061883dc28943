"""Prompts generated together by mlx-lm's continuous batching: rows join, finish and leave on their own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import ArmEnd, BatchRow, Echo, LensError, Monitor, Request, Steered, Token

from ..forward import echo_of
from ..hooks.capture_result import MonitorReader
from ..hooks.passage import steered
from ..hooks.program import DoseMeter
from ..hooks.registry import Holding, Plan, Recorder, Registry, Run
from ..hooks.steering import check_chosen, check_moved, check_reach, origin_in
from ..tokens import EncodedPrompt, Tokens
from .batch_rows import BatchModel, BatchStep, Row, RowLabels, RowPlan, Way, choose_all, way_of
from .generation import DecodeOptions, RowDecoder, mlx_lm_generate
from .prefill import Filler, PrefixCache
from .row_recorder import RowRecorder
from .sampling import SideBySide, whole_number


def check_positions(row: Row) -> None:
    """Refuse positions that no token of the row can have."""
    prompt = row.plan.prompt
    check_reach(row.plan.entries, len(prompt.ids), len(prompt.ids) + row.sampling.max_tokens - 2, row.name)
    for entry in row.plan.entries:
        positions = getattr(entry.item, "positions", None)
        if positions is not None and positions.kind == "role":
            _check_role(positions.role, row)


def _check_role(role: str, row: Row) -> None:
    spans = row.plan.prompt.spans
    if spans is None:
        raise LensError(
            f"Positions of role {role!r} cannot be determined: {row.name} was not made from chat messages.",
            "Give a prompt that goes through the chat template.",
        )
    known = {name for name, _, _ in spans}
    if role not in known | {"assistant", "thinking"}:
        raise LensError(f"There is no {role!r} part in {row.name}.", f"It has: {', '.join(sorted(known))}.")


def share(plans: Sequence[RowPlan], filler: Callable[[EncodedPrompt, int], Filler]) -> None:
    """Compute once, and keep, what all these prompts begin with, for each set of interventions there."""
    ids = [plan.prompt.ids for plan in plans]
    common = min(len(row) for row in ids) - 1
    common = next((at for at in range(common) if len({row[at] for row in ids}) > 1), common)
    if len(plans) < 2:
        return
    for plan in plans:
        here = filler(plan.prompt, common)
        if not here.store.enabled or common < here.store.min_tokens:
            return
        for group in here.groups([plan.entries]) or ():
            here.fetch(group)
            here.fill(group, lambda size: None)


def begin(plan: RowPlan, filler: Callable[[EncodedPrompt], Filler]) -> tuple[list[Any], int]:
    """A row's caches to begin with, and how many of its prompt's tokens they hold; the dose of these is counted."""
    from mlx_lm.models.cache import make_prompt_cache

    here = filler(plan.prompt)
    for group in here.groups([plan.entries]) or ():
        here.fetch(group)
        if group.cache is not None:
            here.store.hits += group.done
            plan.meter.add(group.sums, [0], 1)
            return group.cache, group.done
    return make_prompt_cache(here.registry.decoder.root, here.max_kv_size), 0


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is run; the names are mlx-lm's ``BatchGenerator``'s."""

    completion_batch_size: int = 32
    prefill_batch_size: int = 8
    prefill_step_size: int = 2048
    max_kv_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("completion_batch_size", "prefill_batch_size", "prefill_step_size"):
            if whole_number(getattr(self, name), name) < 1:
                raise LensError(f"The option {name} cannot be {getattr(self, name)!r}.", "Give 1 or more.")


@dataclass(eq=False)
class Batch:
    """A batch in progress: its rows, mlx-lm's generator, and the proxies it holds.

    Apart from :class:`BatchGeneration`, so that one nobody refers to any more ends
    at once instead of waiting for the garbage collector to find a circle.
    """

    registry: Registry
    tokens: Tokens
    options: BatchOptions
    prefixes: PrefixCache
    recorder: RowRecorder | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    plans: dict[int, RowPlan] = field(default_factory=dict)
    done: bool = False
    _generator: Any = None
    _uids: dict[int, int] = field(default_factory=dict)
    _waiting: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = BatchModel(self.registry, self.plans, self.recorder)
        self.sites = Holding(self.registry)

    def join(self, row: Row) -> None:
        """A row joins, also while others are being decoded."""
        check_positions(row)
        self.registry.decoder.check_positions(len(row.plan.prompt.ids) + row.sampling.max_tokens - 1)
        self.rows[row.index] = row
        self.plans[row.index] = row.plan
        self._waiting.append(row)

    def leave(self, row: Row) -> None:
        """A row ends where it stands."""
        if row.reason:
            return
        row.reason = "stopped"
        if row in self._waiting:
            self._waiting.remove(row)
        for uid, index in self._uids.items():
            if index == row.index:
                self._generator.remove([uid])
        self._settle(row)

    def events(self) -> Generator[Token | ArmEnd]:
        """Tokens as they come; proxies stay in place from the first request to the end, however it ends."""
        self.prefixes.follow(self.registry.decoder.root)
        try:
            yield from self._alone() if self.way == "alone" else self._together()
        finally:
            self._finish()

    @property
    def way(self) -> Way:
        """How rows are run together in this model."""
        return way_of(self.registry)

    def _together(self) -> Iterator[Token | ArmEnd]:
        self._open()
        while self._unfinished():
            self._insert()
            _, responses = self._generator.next()
            for response in responses:
                row = self.rows[self._uids[response.uid]]
                if row.reason or not row.launched:
                    continue
                chosen, at = row.launched.popleft()
                yield from self._emit(row, int(response.token), chosen, at)
                if row.reason and response.finish_reason is None:
                    self._generator.remove([response.uid])

    def _open(self) -> None:
        """Make mlx-lm's generator, with no rows yet."""
        beside = SideBySide()
        # Its own stream would run beside the one in which prompts are filled and texts read; and processes that share a
        # model must exchange in one order.
        stream = None if self.registry.decoder.shared is None else mx.default_stream(mx.default_device())
        self._generator = mlx_lm_generate().BatchGenerator(
            self.model,
            sampler=lambda logprobs: choose_all(
                self.model, [self.rows[at] for at in self.model.last], logprobs, beside
            ),
            completion_batch_size=max(self.options.completion_batch_size, self._prefill_rows),
            prefill_batch_size=self._prefill_rows,
            prefill_step_size=self.options.prefill_step_size,
            stream=stream,
        )

    @property
    def _prefill_rows(self) -> int:
        return min(self.options.prefill_batch_size, self.options.completion_batch_size) if self.way == "padded" else 1

    def _unfinished(self) -> bool:
        return any(not row.reason for row in self.rows.values())

    def _insert(self) -> None:
        """Hand over the rows that have joined since the last step."""
        for row in self._waiting:
            self._hold(row)
        if self._waiting and self.recorder is None:  # what is read must go in: nothing kept is taken
            share([row.plan for row in self._waiting], self._filler)
        for row in self._waiting:
            self._insert_row(row)
        self._waiting.clear()

    def _insert_row(self, row: Row) -> None:
        cache, row.reused = self._begin(row.plan)
        (uid,) = self._generator.insert(
            [list(row.plan.prompt.ids[row.reused :])],
            [row.sampling.max_tokens],
            caches=[[*cache, RowLabels([row.index], [row.reused])]],
            stop_sequences=[mlx_lm_generate().StopSequences([(stop,) for stop in row.stop_ids])],
        )
        self._uids[uid] = row.index

    def _begin(self, plan: RowPlan) -> tuple[list[Any], int]:
        if self.recorder is None:
            return begin(plan, self._filler)
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self.registry.decoder.root, self.options.max_kv_size), 0

    def _filler(self, prompt: EncodedPrompt, limit: int | None = None) -> Filler:
        """What computes and finds kept prefixes of a prompt."""
        return Filler(
            self.registry, self.prefixes, prompt, self.options.prefill_step_size, self.options.max_kv_size, limit
        )

    def _alone(self) -> Iterator[Token | ArmEnd]:
        """Row after row, for models that mlx-lm cannot batch."""
        while self._waiting:
            yield from self._row_alone(self._waiting.pop(0))

    def _row_alone(self, row: Row) -> Iterator[Token | ArmEnd]:
        from mlx_lm.models.cache import make_prompt_cache

        self._hold(row)
        recorders: list[Recorder] = [] if self.recorder is None else [self.recorder]
        reader = None
        if self.recorder is not None:
            self.recorder.expect([row.index], [None])
            reader = MonitorReader(self.registry, self.recorder.monitors) if self.recorder.monitors else None
            recorders += [] if reader is None else [reader]
        run = Run(self.registry, Plan((row.plan.entries,), recorders), len(row.plan.prompt.ids), row.plan.prompt.spans)
        run.meter = DoseMeter() if row.plan.entries else None
        options = DecodeOptions(
            replace(row.sampling, repetition_penalty=0.0),  # it is one of the row's processors
            top=row.top,
            prefill_step_size=self.options.prefill_step_size,
            sampler=row.sampler,
            logits_processors=row.processors,
        )
        cache = make_prompt_cache(self.registry.decoder.root, self.options.max_kv_size)
        prompt = row.plan.prompt
        decoder = RowDecoder(self.registry, run, prompt.ids, 1, cache, options, prompt.thinking, prompt.inside)
        decoder.histories, decoder.monitors = [row.plan.history], reader
        for step in decoder.steps():
            yield from self._emit(row, step.ids[0], BatchStep.of_step(step), 0, run)
            if row.reason:
                break

    def _emit(self, row: Row, token: int, step: BatchStep, at: int, run: Run | None = None) -> Iterator[Token | ArmEnd]:
        step.count(at)
        check_chosen(step.read()[0][at], f"The logits of {row.name}", lambda: self._origin(row))
        if not row.ids:
            self._check_moved(row, run)
        event = row.take(token, step, at, self.tokens)
        if self.recorder is not None:
            self.recorder.use(row.index, len(row.plan.prompt.ids) + len(row.ids))
        if row.reason:
            self._settle(row, run)
        yield event
        if row.reason:
            yield row.end()

    def _origin(self, row: Row) -> str:
        whole = replace(row.passage(self.registry.bos), ids=(*row.plan.prompt.ids, *row.ids))
        return origin_in(self.registry, whole, row.plan.entries)

    def _check_moved(self, row: Row, run: Run | None) -> None:
        """Refuse to continue when what had to move something was measured and did not."""
        meter = row.plan.meter if run is None else run.meter
        if meter is not None:
            check_moved(self.registry, Plan((row.plan.entries,)), meter, lambda _: f"The steering of {row.name}")

    def _settle(self, row: Row, run: Run | None = None) -> None:
        """The row has ended: its doses, and nothing kept for it any longer."""
        keys = [entry.key for entry in row.plan.entries if getattr(entry.item, "enabled", True)]
        meter = row.plan.meter if run is None else run.meter
        row.doses = meter.doses(0, keys) if meter is not None and keys else ()
        row.launched.clear()
        for rows in list(self.model.compositions):
            if all(self.rows[index].reason for index in rows):
                del self.model.compositions[rows]

    def _hold(self, row: Row) -> None:
        """Install what a row's sites need."""
        read = set() if self.recorder is None else set(self.recorder.places)
        self.sites.change(self.sites.keys | read | {key for entry in row.plan.entries for key in entry.keys})

    def _finish(self) -> None:
        self.done = True
        for row in self.rows.values():
            if not row.reason:
                row.reason = "stopped"
                self._settle(row)
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        self.sites.change(())
        mx.clear_cache()


class BatchGeneration(Iterator[Token | ArmEnd]):
    """Prompts being generated together: an iterator of :class:`Token` and, as each prompt ends, :class:`ArmEnd`.

    ``arm`` of an event is the number of its prompt, in the order given. Rows join,
    finish and leave on their own; what a row gets does not depend on the others but
    for rounding below float32 (``records`` tell the batch shape of every token).
    Nothing is computed or installed before the first event is asked for; a batch that
    ends, fails, is closed or is dropped leaves the model as it was.
    """

    def __init__(self, batch: Batch, make_row: Any) -> None:
        self._batch = batch
        self._make_row = make_row
        self._events = batch.events()

    def __next__(self) -> Token | ArmEnd:
        return next(self._events)

    def add(self, request: Request) -> int:
        """Let another prompt join, also while others are being generated; returns its number."""
        if self._batch.done:
            raise LensError("This batch has ended.", "Start another with stream_batch.")
        row: Row = self._make_row(len(self._batch.rows), request)
        self._batch.join(row)
        return row.index

    def remove(self, index: int) -> None:
        """End one prompt where it is; the others continue."""
        self._batch.leave(self._row(index))

    def steered(self, index: int) -> tuple[Steered, ...]:
        """Which tokens of a prompt and its text each intervention touched."""
        row, tokens = self._row(index), self._batch.tokens
        return steered(row.plan.history, row.passage(self._batch.registry.bos), tokens.display, self._batch.registry)

    def echo(self, index: int) -> tuple[Echo, ...]:
        """How much of a prompt's interventions is still there behind each layer, over its tokens so far."""
        row, registry = self._row(index), self._batch.registry
        return echo_of(registry, row.passage(registry.bos), row.plan.entries)

    def _row(self, index: int) -> Row:
        if index not in self._batch.rows:
            raise LensError(f"There is no prompt {index}: the batch has {len(self._batch.rows)}.")
        return self._batch.rows[index]

    def close(self) -> None:
        """End the batch where it stands; nothing stays installed."""
        self._events.close()
        if not self._batch.done:
            self._batch._finish()

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """What reads the batch, as it was asked for."""
        recorder = self._batch.recorder
        return () if recorder is None else recorder.monitors

    def readings(self, index: int) -> NDArray[np.float32]:
        """What each monitor read of a prompt's tokens and behind them the text's: ``(monitors, tokens)``.

        As many tokens as have gone into the model: the last one of a row may not have.
        """
        row, recorder = self._row(index), self._batch.recorder
        count = len(row.plan.prompt.ids) + len(row.ids)
        return np.zeros((0, count), dtype=np.float32) if recorder is None else recorder.readings(index)

    @property
    def texts(self) -> tuple[str, ...]:
        """Each prompt's text so far."""
        return tuple(row.text for row in self._batch.rows.values())

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """Each prompt's generated token ids so far."""
        return tuple(tuple(row.ids) for row in self._batch.rows.values())

    @property
    def records(self) -> tuple[BatchRow, ...]:
        """Each prompt's record as it stands."""
        return tuple(row.record() for row in self._batch.rows.values())
