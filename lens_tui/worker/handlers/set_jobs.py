"""A set of prompts under every arm: token by token, cell by cell, and each prompt into the history."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lens_tui.records import LensError
from lens_tui.records.prompt_set import PromptItem, PromptSet, SetCell, read_prompt_set
from lens_tui.records.run_record import ArmRecord, MadeWith, RunRecord, State
from lens_tui.records.sanitise import one_line
from lens_tui.records.store import PATIENCE
from lens_tui.tasks.made_with import made_with
from lens_tui.tasks.prompt_sets import BUNDLED, PromptIds, SetComparison, SetToken, bundled_prompts, compare_prompts

from .. import events as ev
from .. import jobs
from ..thread import Control, Stopped
from . import Context
from .vector_jobs import probe_of, stoppable

_log = logging.getLogger(__name__)
_EVERY = 32
"""Tokens between two reports of how far it is."""


def compare_set(control: Control, job: jobs.ComparePrompts, context: Context) -> Iterator[ev.Event]:
    """The whole set, or as much of it as the user lets it: a stop is heard at the next token, and what came stays."""
    prompts = _prompts(job)
    with stoppable(context, control) as model:
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
