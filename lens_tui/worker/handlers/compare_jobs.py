"""Generate arms in lock step and say what happens, token by token; follow the dial.

A set of prompts goes under every arm, cell by cell, and each prompt into the history.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lens_tui.records import Arm, ArmEnd, Intervention, LensError, Token, store
from lens_tui.records.chat import as_prompt
from lens_tui.records.machine import give_back_memory
from lens_tui.records.prompt_set import PromptItem, PromptSet, SetCell, read_prompt_set
from lens_tui.records.run import ArmRecord, MadeWith, RunRecord, State
from lens_tui.records.sanitise import one_line
from lens_tui.records.store import PATIENCE, Busy
from lens_tui.tasks.made_with import made_with
from lens_tui.tasks.prompt_sets import BUNDLED, PromptIds, SetComparison, SetToken, bundled_prompts, compare_prompts
from lens_tui.tasks.replay import Changes, attach, last_readings
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Control, Stopped

from . import Context
from .reading_jobs import WrittenReader, followed
from .vector_jobs import probe_of, stoppable

if TYPE_CHECKING:
    from lens_tui.lens.decode.compare import Comparison
    from lens_tui.records.run_store import RunStore


_SPEED_EVERY = 0.2  # seconds
Change = tuple[int, tuple[Intervention, ...]]


@contextmanager
def _giving_back() -> Iterator[None]:
    """However what is inside ends, the system gets the memory that it freed."""
    try:
        yield
    finally:
        give_back_memory()


def compare(control: Control, job: jobs.Compare, context: Context) -> Iterator[ev.Event]:
    """Every arm of ``job`` until all have ended or the user stops; with an SAE, the features of what they write."""
    with _giving_back(), followed(control, job, context) as reader:
        yield from _compare(control, job, context, reader)


def read_prompt(control: Control, job: jobs.ReadPrompt, context: Context) -> Iterator[ev.Event]:
    """The prompt's tokens, and whose they are in a chat."""
    tokens = context.need_model().tokens
    read = tokens.prompt(as_prompt(job.prompt, job.turns), raw=job.raw)
    yield ev.PromptRead(control.id, read.ids, tuple(map(tokens.display, read.ids)), read.spans)


def _compare(control: Control, job: jobs.Compare, context: Context, reader: WrittenReader | None) -> Iterator[ev.Event]:
    model = context.need_model()

    def on_prefill(done: int, total: int) -> None:
        control.progress("prompt", done, total, "tokens")

    monitors = [watched.monitor for watched in job.monitors]
    attach(model, job.arms, context.saes.get, monitors)
    heard: dict[str, Any] = {"progress": on_prefill, "monitors": monitors}
    asked = as_prompt(job.prompt, job.turns)
    comparison = model.compare(asked, job.arms, job.sampling, raw=job.raw, top=job.top, **heard)
    names = tuple(one_line(name, 80) for name in comparison.arms)
    made = made_with(model.info, job.arms, context.known.values(), comparison.batch_rows, job.monitors)
    keeper = Keeper(context, job, model.info.name, comparison, made)
    yield ev.RunStarted(control.id, comparison.prompt_ids, comparison.prompt_tokens, names, keeper.run, made)
    changes = {(arm, index): items for arm, index, items in job.changes}
    run, began = _LiveRun(control, comparison, job.sampling.max_tokens, keeper, changes, reader), keeper.run
    state: State = "failed"
    try:
        yield from run.events()
        state = "done"
    except Stopped:
        state = "stopped"
        yield from run.stopped()
    finally:
        comparison.close()
        keeper.end(state)
    if reader is not None:
        yield from reader.rest(context)
    if keeper.problem:
        yield ev.Notice(control.id, f"This run is not in the history: {one_line(keeper.problem)}")
    elif keeper.run != began:
        yield ev.RunKept(control.id, keeper.run)


@dataclass
class _LiveRun:
    control: Control
    comparison: Comparison
    max_steps: int
    keeper: Keeper
    planned: Changes = field(default_factory=dict)
    reader: WrittenReader | None = None
    counts: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    version: int = 0
    # A change is received one step before the first token made under it comes out.
    waiting: deque[list[Change]] = field(default_factory=deque)
    began: float = 0.0
    spoke: float = 0.0
    steps: int = 0

    def events(self) -> Iterator[ev.Event]:
        """Tokens, ends of arms, the speed now and then, and which token a change began with."""
        for item in self.comparison:
            if isinstance(item, ArmEnd):
                self.ended.add(item.arm)
                yield self._arm_done(item.arm, item.reason, item.n_tokens, item.dose)
                continue
            if item.index == self.steps:
                yield from self._step()
            self.keeper.add(item)
            if self.reader is not None:
                self.reader.add(item)
            yield from self._changes(item)
            self.counts[item.arm] = item.index + 1
            yield ev.TokenEvent(self.control.id, item)
        yield self._speed(time.monotonic())

    def stopped(self) -> Iterator[ev.Event]:
        """The last words of the arms that had not ended."""
        for arm in range(len(self.comparison.arms)):
            if arm not in self.ended:
                doses = self.comparison.doses(arm)
                dose = sum(found.relative for found in doses) / len(doses) if doses else None
                yield self._arm_done(arm, "stopped", self.counts.get(arm, 0), dose)

    def _arm_done(self, arm: int, reason: str, n_tokens: int, dose: float | None) -> ev.ArmDone:
        read = last_readings(self.comparison, arm, n_tokens)
        self.keeper.end_arm(arm, reason, dose, read)
        return ev.ArmDone(self.control.id, arm, reason, n_tokens, dose, read)

    def _step(self) -> Iterator[ev.Event]:
        """Between two steps: say the speed, and hand on what was dialled."""
        self.keeper.flush()
        self.steps += 1
        if self.reader is not None:
            yield from self.reader.ready()
        now = time.monotonic()
        if self.steps == 1:
            self.began = self.spoke = now
        elif now - self.spoke >= _SPEED_EVERY:
            self.spoke = now
            yield self._speed(now)
        received: list[Change] = []
        # Planned changes fall to the token behind the one that is under way.
        planned = {arm: items for (arm, index), items in self.planned.items() if index == self.steps + 1}
        for arm, interventions in {**planned, **self.control.take_dials()}.items():
            try:
                self.comparison.dial(arm, interventions)
                received.append((arm, interventions))
            except LensError as error:
                yield ev.DialRefused(self.control.id, arm, one_line(error.message), one_line(error.hint))
        if received:
            self.waiting.append(received)

    def _changes(self, token: Token) -> Iterator[ev.Event]:
        while self.version < token.version and self.waiting:
            self.version += 1
            for arm, interventions in self.waiting.popleft():
                yield ev.Dialed(self.control.id, arm, token.index, interventions)

    def _speed(self, now: float) -> ev.Speed:
        # The first step's time is the prompt's.
        after_first = sum(self.counts.values()) - len(self.counts)
        seconds = now - self.began
        return ev.Speed(self.control.id, after_first / seconds if seconds > 0 else 0.0, self.steps, self.max_steps)


_log = logging.getLogger(__name__)
_AGAIN = 2.0
"""Seconds until a history that was in use is tried again."""


class Keeper:
    """One run's way into the history. ``run`` is its number there, 0 while none is kept; ``problem`` why not.

    No token waits for the disk: while another process has the history locked,
    what is to be written stays here, and at the end of the run there is time to wait.
    """

    def __init__(self, context: Context, job: jobs.Compare, model: str, comparison: Comparison, made: MadeWith) -> None:
        self.run = 0
        self.problem = ""
        self._tokens: list[Token] = []
        self._writes: deque[Callable[[RunStore], object]] = deque()
        self._context = context
        self._not_before = 0.0
        if context.history is None:
            return
        # The library puts a baseline in front where the job has none.
        arms = job.arms if len(job.arms) == len(comparison.arms) else (Arm(comparison.arms[0]), *job.arms)
        ids, settings = comparison.prompt_ids, job.sampling

        def begin(store: RunStore) -> None:
            asked: dict[str, Any] = {"raw": job.raw, "turns": job.turns, "monitors": job.monitors}
            self.run = store.begin(model, job.prompt, arms, settings, prompt_ids=ids, made_with=made, **asked)

        self._do(begin)

    def add(self, token: Token) -> None:
        """Keep a token; written with the others of its step."""
        self._tokens.append(token)

    def flush(self) -> None:
        """Write the step that is complete."""
        if tokens := self._tokens:
            self._tokens = []
            self._do(lambda store: store.add(self.run, tokens))

    def end_arm(self, arm: int, reason: str, dose: float | None, readings: tuple[float, ...]) -> None:
        """Say how an arm ended, and what monitors read at its last token."""
        self._do(lambda store: store.end_arm(self.run, arm, reason, dose, readings))

    def end(self, state: State) -> None:
        """Close the run; waits for a history that is in use."""
        self.flush()
        self._do(lambda store: store.end(self.run, state), patient=True)

    def _do(self, act: Callable[[RunStore], object], *, patient: bool = False) -> None:
        """Do what waits and then ``act``, in this order, as far as the disk lets us."""
        if self._context.history is None or self.problem:
            return
        self._writes.append(act)
        if not patient and time.monotonic() < self._not_before:
            return
        try:
            runs = self._context.runs(store.PATIENCE if patient else store.SHORT)
            while self._writes:
                self._writes[0](runs)
                self._writes.popleft()
        except Busy as error:
            self._not_before = time.monotonic() + _AGAIN
            if patient:
                self._give_up(error)
        except LensError as error:
            self._give_up(error)

    def _give_up(self, error: LensError) -> None:
        _log.warning("the run is not kept: %s", error)
        self.problem = str(error)
        self._writes.clear()


_EVERY = 32
"""Tokens between two reports of how far it is."""


def compare_set(control: Control, job: jobs.ComparePrompts, context: Context) -> Iterator[ev.Event]:
    """The whole set, or as much of it as the user lets it: a stop is heard at the next token, and what came stays."""
    prompts = _prompts(job)
    with _giving_back(), stoppable(context, control) as model:
        run = compare_prompts(
            model,
            prompts,
            job.arms,
            job.sampling,
            seeds=job.seeds,
            probe=probe_of(job, context),
            top=job.top,
            raw=job.raw,
        )
        shown = tuple(PromptItem(one_line(item.id, 40), item.text) for item in run.prompts)
        yield ev.SetStarted(control.id, one_line(prompts.name, 80), shown, run.arms, run.seeds)
        made = made_with(model.info, run.arms, context.known.values(), run.group_rows)
        keeper = _SetKeeper(context, model.info.name, run, made, job.raw)
        at_work = _Writing(control, run)
        try:
            for event in run:
                if isinstance(event, PromptIds):
                    keeper.ids[event.prompt] = event.token_ids
                    tokens = tuple(model.tokens.display(token) for token in event.token_ids)
                    yield ev.SetPrompt(control.id, event.prompt, event.token_ids, tokens)
                elif isinstance(event, SetToken):
                    yield ev.SetTokenCame(control.id, event.prompt, event.seed, event.token)
                    at_work.count()
                else:
                    yield ev.SetCellDone(control.id, event)
                    yield from keeper.take(control.id, event, "done")
        except Stopped:
            for cell in run.rest():
                yield ev.SetCellDone(control.id, cell)
                yield from keeper.take(control.id, cell, "stopped")
            yield from keeper.rest(control.id)
        finally:
            run.close()
        if keeper.problem:
            yield ev.Notice(control.id, f"Not all of this set is in the history: {one_line(keeper.problem)}")


def _prompts(job: jobs.ComparePrompts) -> PromptSet:
    if not job.path:
        found = PromptSet("typed", job.prompts)
    else:
        found = bundled_prompts() if job.path == BUNDLED else read_prompt_set(job.path)
    return found.first(job.first)


@dataclass
class _Writing:
    """How far the writing is; says so now and then, and lets what may not wait go first."""

    control: Control
    run: SetComparison
    tokens: int = 0

    def count(self) -> None:
        self.control.check()
        self.tokens += 1
        if self.tokens % _EVERY == 0:
            run = self.run
            total = len(run.prompts) * len(run.arms) * len(run.seeds) * run.sampling.max_tokens
            self.control.progress("writing", self.tokens, total, "tokens")


@dataclass
class _SetKeeper:
    """Writes each prompt and seed into the history as a run of its own, once all of its arms are there."""

    context: Context
    model: str
    run: SetComparison
    made_with: MadeWith
    raw: bool = False
    ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    problem: str = ""
    _cells: dict[tuple[int, int], dict[int, SetCell]] = field(default_factory=dict)

    def take(self, job: int, cell: SetCell, state: State) -> Iterator[ev.SetKept]:
        """Take a cell; the run it completes is written down."""
        cells = self._cells.setdefault((cell.prompt, cell.seed), {})
        cells[cell.arm] = cell
        if len(cells) == len(self.run.arms):
            yield from self._write(job, cell.prompt, cell.seed, state)

    def rest(self, job: int) -> Iterator[ev.SetKept]:
        """Write down what began and was stopped."""
        for prompt, seed in tuple(self._cells):
            yield from self._write(job, prompt, seed, "stopped")

    def _write(self, job: int, prompt: int, seed: int, state: State) -> Iterator[ev.SetKept]:
        cells, run = self._cells.pop((prompt, seed)), self.run
        if self.context.history is None or self.problem:
            return
        empty = ArmRecord(run.arms[0])
        arms = tuple(
            ArmRecord(arm, cells[place].tokens, cells[place].text, cells[place].reason, cells[place].dose)
            if place in cells
            else replace(empty, arm=arm)
            for place, arm in enumerate(run.arms)
        )
        sampling = replace(run.sampling, seed=run.seeds[seed])
        ids = self.ids.get(prompt, ())
        record = RunRecord(
            self.model, run.prompts[prompt].text, arms, sampling, self.raw, ids, state=state, made_with=self.made_with
        )
        try:
            number = self.context.runs(PATIENCE).keep(record)
        except LensError as error:
            _log.warning("a set is not kept: %s", error)
            self.problem = str(error)
            return
        yield ev.SetKept(job, prompt, seed, number)
