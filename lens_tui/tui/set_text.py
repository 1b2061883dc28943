"""A set of prompts as the screens know it: a run for each prompt and seed, and a cell for each arm. No Textual."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rich.cells import cell_len

from lens_tui.records import Arm, LensError, Sampling
from lens_tui.records.interventions import BenchRow
from lens_tui.records.paths import expanded
from lens_tui.records.prompt_set import PromptItem, SetCell, SetColumn, numbers_in, typed_prompts
from lens_tui.records.run import LIMITS, ArmRecord, MadeWith, RunRecord
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import texts_in
from lens_tui.tui.format import figure, fit, fit_end, fit_left
from lens_tui.worker.events import (
    Event,
    JobDone,
    JobFailed,
    SetCellDone,
    SetKept,
    SetPrompt,
    SetStarted,
    SetTokenCame,
)
from lens_tui.worker.jobs import ComparePrompts

from .run_text import ArmText, RunText
from .session import Session, plan

FILE, TYPED = "file", "typed"
SOURCES = ("bundled", "this prompt", FILE, TYPED)
MAX_SCALES = 12
Row = tuple[int, int]
"""A prompt and a seed by their places: a row of the table."""


def asked_set(
    values: Mapping[str, str], session: Session, row: BenchRow | None, names: Sequence[str]
) -> ComparePrompts:
    """The job that a filled form means.

    Args:
        values: The form's fields: ``source``, ``prompts``, ``first``, ``scales``, ``seeds``.
        session: What is on the bench, and the settings.
        row: The row that a sweep turns; ``None`` where the lane has none, or several.
        names: What the arms of the bench are called, the baseline first.

    Raises:
        LensError: For what cannot be, in a sentence for the form.
    """
    source, typed = values["source"], values["prompts"]
    prompts: tuple[PromptItem, ...] = ()
    path = "bundled" if source == "bundled" else ""
    if source == FILE:
        path = typed.strip()
        if not path:
            raise LensError("No file is named.", "Type its path.")
    elif source == TYPED:
        prompts = typed_prompts(texts_in(typed)).items
    elif source == "this prompt":
        prompts = typed_prompts([session.prompt]).items
    arms = tuple(replace(arm, name=name) for (_, arm), name in zip(plan(session), names, strict=True))
    if scales := read_numbers(values["scales"]):
        if row is None:
            raise LensError("No one vector acts in this lane.", "Leave the scales empty, or go to a lane with one.")
        if len(scales) > MAX_SCALES or len(set(scales)) < len(scales):
            raise LensError(f"A sweep has at most {MAX_SCALES} scales, each once.", "Type fewer.")
        swept = (Arm(f"{row.vector.name} {scale:g}", row.interventions(scale)) for scale in scales)
        arms = (Arm("baseline"), *swept)
    seeds = tuple(int(seed) for seed in read_numbers(values["seeds"]))
    if len(seeds) > 1 and session.sampling.temp == 0.0:
        raise LensError("At temperature 0 every seed gives the same text.", "Set one with , or give one seed.")
    first = int(values["first"]) if values["first"].strip() else None
    sae, feature = feature_of(arms, session)
    return ComparePrompts(arms, prompts, path, first, session.sampling, seeds, sae, feature, raw=session.question[2])


def names_a_file(text: str) -> bool:
    """Whether what was typed for prompts is the path of a file: one that is there, or a name as sets have."""
    path = text.strip()
    try:
        return expanded(path).is_file() or re.fullmatch(r"[^|\s]+\.(txt|jsonl?)", path) is not None
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def read_numbers(text: str) -> tuple[float, ...]:
    """Numbers with blanks or commas between them. Raises :class:`LensError` for anything else."""
    found = numbers_in(text)
    if found is None:
        raise LensError(f"{one_line(text, 40)!r} are not numbers.", "Type them with blanks between: 9.5 19 38.")
    return found


def numbers_problem(text: str) -> str:
    """What a field of numbers needs, or nothing."""
    try:
        read_numbers(text)
    except LensError:
        return "numbers with blanks between"
    return ""


def seeds_problem(text: str) -> str:
    """What a field of seeds needs, or nothing."""
    low, high = LIMITS["seed"]
    if numbers_problem(text):
        return "whole numbers with blanks between"
    seeds = read_numbers(text)
    if any(seed != int(seed) or not low <= seed <= high for seed in seeds) or len(set(seeds)) < len(seeds):
        return "whole numbers from 0, each once"
    return ""


def feature_of(arms: Sequence[Arm], session: Session) -> tuple[str, int]:
    """The first feature that an arm steers with, of an SAE that is available; ``("", 0)`` without one."""
    known = {name for sae in session.saes for name in (sae.id, sae.path)}
    for arm in arms:
        for item in arm.interventions:
            origin = getattr(getattr(item, "vector", None), "origin", None)
            if origin is not None and origin.kind == "feature" and origin.facts.get("sae") in known:
                return str(origin.facts["sae"]), int(origin.facts["feature"])
    return "", 0


State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(slots=True, eq=False)
class SetText:
    """A set that runs or ran: what was asked, its prompts, arms and seeds, and what came so far.

    ``runs`` has one for each prompt and seed, as if it had been made alone; ``id_width`` are the cells of a column of
    the prompts' ids, 0 where they are numbers. ``feature`` is what is read back, ``-1``
    without one.
    """

    number: int
    job: ComparePrompts
    model: str = ""
    made_with: MadeWith = field(default_factory=MadeWith)
    name: str = ""
    prompts: tuple[PromptItem, ...] = ()
    arms: tuple[Arm, ...] = ()
    seeds: tuple[int, ...] = ()
    runs: dict[Row, RunText] = field(default_factory=dict)
    cells: dict[tuple[int, int, int], SetCell] = field(default_factory=dict)
    state: State = "waiting"
    id_width: int = 0

    @classmethod
    def begin(cls, number: int, job: ComparePrompts, session: Session) -> SetText:
        """A set that was asked for."""
        if session.model is None:
            return cls(number, job, arms=job.arms)
        from lens_tui.tasks.made_with import made_with  # not before the first run

        return cls(number, job, session.model.name, made_with(session.model, job.arms, session.saes), arms=job.arms)

    @property
    def sampling(self) -> Sampling:
        """The settings, but for the seeds."""
        return self.job.sampling

    @property
    def feature(self) -> int:
        """The feature that is read back, ``-1`` without one."""
        return self.job.feature if self.job.sae else -1

    @property
    def going(self) -> bool:
        """Whether more may come."""
        return self.state in ("waiting", "running")

    @property
    def rows(self) -> list[Row]:
        """The rows of the table: prompt by prompt, seed by seed."""
        return [(prompt, seed) for prompt in range(len(self.prompts)) for seed in range(len(self.seeds))]

    def apply(self, event: Event) -> Row | None:
        """Take an event of the set's job; the row that it changed."""
        match event:
            case SetStarted():
                self.name, self.prompts, self.arms, self.seeds = event.name, event.prompts, event.arms, event.seeds
                self.runs = {row: self._run(row) for row in self.rows}
                named = not all(item.id.isdigit() for item in self.prompts)
                self.id_width = min(ID, max(cell_len(one_line(item.id)) for item in self.prompts)) if named else 0
                self.state = "running"
            case SetPrompt():
                for seed in range(len(self.seeds)):
                    run = self.runs[event.prompt, seed]
                    run.prompt_ids, run.prompt_tokens, run.state = event.token_ids, event.tokens, "running"
            case SetTokenCame():
                run = self.runs[event.prompt, event.seed]
                run.arms[event.token.arm].add(event.token)
                run.arms[event.token.arm].compare_with(run.baseline)
                return event.prompt, event.seed
            case SetCellDone():
                self._take(event.cell)
                return event.cell.prompt, event.cell.seed
            case SetKept():
                self.runs[event.prompt, event.seed].kept = event.run
            case JobDone():
                self.state = "stopped" if event.stopped else "done"
                for run in self.runs.values():
                    run.state = run.state if run.state == "done" else "stopped"
            case JobFailed():
                self.state = "failed"
                for run in self.runs.values():
                    run.state = run.state if run.state == "done" else "failed"
        return None

    def _run(self, row: Row) -> RunText:
        prompt, seed = row
        sampling = replace(self.sampling, seed=self.seeds[seed])
        arms = tuple(ArmText(number, arm) for number, arm in enumerate(self.arms))
        text, source = self.prompts[prompt].text, self.made_with.source
        run = RunText(0, text, sampling, arms, (), self.model, source, self.job.raw)
        run.made_with = self.made_with
        return run

    def record(self) -> RunRecord:
        """What its runs have in common: model, arms, settings, and what they were made with."""
        arms = tuple(map(ArmRecord, self.arms))
        return RunRecord(self.model, "", arms, self.sampling, self.job.raw, made_with=self.made_with)

    def _take(self, cell: SetCell) -> None:
        """A cell with its measures: its tokens again, now with the KL."""
        self.cells[cell.prompt, cell.arm, cell.seed] = cell
        run = self.runs[cell.prompt, cell.seed]
        text = ArmText(cell.arm, self.arms[cell.arm], reason=cell.reason, dose=cell.dose)
        for token in cell.tokens:
            text.add(token)
        run.arms = tuple(text if arm.number == cell.arm else arm for arm in run.arms)
        if all(arm.reason for arm in run.arms):
            run.state = "stopped" if any(arm.reason == "stopped" for arm in run.arms) else "done"
        for arm in run.arms:
            arm.compare_with(run.baseline)

    def value(self, column: SetColumn, arm: int, row: Row | None = None) -> float | None:
        """A number of the table: of a row, or over all that there is of the arm."""
        cells = self.cells.values()
        here = [cell for cell in cells if cell.arm == arm and (row is None or (cell.prompt, cell.seed) == row)]
        return column.over(here)

    def label(self, row: Row) -> str:
        """What a row is called: the seed if there are several, the prompt's id unless all are numbers, its text.

        Ids have a column, as wide as the longest of them, up to ``ID`` cells.
        """
        item = self.prompts[row[0]]
        name = f"{fit_end(one_line(item.id), self.id_width)}  " if self.id_width else ""
        long = max(len(str(seed)) for seed in self.seeds)
        seed = f"seed {self.seeds[row[1]]:<{long}}  " if len(self.seeds) > 1 else ""
        return f"{seed}{name}{one_line(item.text)}"


NAME, NARROW, WIDE, ID = 16, 8, 12, 12


def has_amount(name: str, amount: str) -> bool:
    """Whether an arm's name ends in its scale, as those of a set do: ``dogs +24.0``, or ``dogs 24`` of a sweep."""
    return _without(name, amount) != name


def bare_name(name: str, amount: str) -> str:
    """The name of a set's arm without the scale, for where the scale stands beside it."""
    return _without(name, amount).rstrip()


def _without(name: str, amount: str) -> str:
    plain = amount.removeprefix("+")
    for end in (amount, plain, plain.rstrip("0").removesuffix(".") if "." in plain else plain):
        if end and name.endswith(f" {end}"):
            return name.removesuffix(end)
    return name


@dataclass(frozen=True, slots=True)
class TableShape:
    """How wide a table's parts are: the rows' names, a column, and how many arms have one. ``away`` have none."""

    name: int
    column: int
    arms: range
    away: int


def shape(width: int, arms: int, focused: int, longest: int = 0) -> TableShape:
    """The shape of a table of ``arms`` columns, that of ``focused`` among those that fit.

    ``longest`` are the cells of the longest arm's name: columns are as wide while the rows' names keep a third.
    """
    room = (width - NAME) // max(1, arms)
    if longest + 2 > WIDE:
        room = max(min(room, WIDE), min(longest + 2, (width - max(NAME, width // 3)) // max(1, arms)))
    column = max(NARROW, min(max(WIDE, longest + 2), room))
    room = max(1, (width - NAME) // column)
    if room >= arms:
        return TableShape(width - arms * column, column, range(arms), 0)
    room = max(1, (width - NAME - 3) // column)
    start = max(0, min(focused - room + 1, arms - room))
    return TableShape(width - room * column - 3, column, range(start, start + room), arms - room)


def head_line(shown: SetText, at: TableShape) -> str:
    """The arms' names over their columns; what is cut is a name's beginning: its scale is at its end."""
    names = "".join(
        fit_left(fit_end(one_line(shown.arms[arm].name), at.column - 1).strip(), at.column) for arm in at.arms
    )
    return fit("", at.name) + names + (f" +{at.away}" if at.away else "")


def row_line(shown: SetText, column: SetColumn, at: TableShape, row: Row | None) -> list[str]:
    """A row's name and its numbers, each in its width; ``None`` for the means."""
    name = "mean" if row is None else shown.label(row)
    return [fit(name, at.name - 1) + " ", *(_number(shown, column, arm, row, at.column) for arm in at.arms)]


def _number(shown: SetText, column: SetColumn, arm: int, row: Row | None, width: int) -> str:
    value = shown.value(column, arm, row)
    if value is None and shown.going and row is not None:
        count = len(shown.runs[row].arms[arm].tokens)
        return fit_left(f"{count}…" if count else "·", width)
    text = figure(value, column.places)
    if cell_len(text) > width - 1 and value is not None:
        text = f"{value:.1e}"
    return fit_left(text, width)
