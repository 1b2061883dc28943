"""The runs of this session and those kept on disk, to look at again; and two of them side by side.

Of two the same arm of each is shown: what one has that the other has not, and what may be the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import ALL, LensError, Token
from lens_tui.records.interventions import BenchRow, amount_of
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.records.vector_sets import grouped, multiplier
from lens_tui.records.wording import has_words, many
from lens_tui.tasks.replay import held_against
from lens_tui.tui.format import figure, fit
from lens_tui.tui.host import LensHost, host
from lens_tui.tui.lane_text import PEAKS, strength
from lens_tui.tui.run_text import ArmText, RunText, summary
from lens_tui.tui.set_text import SetText
from lens_tui.tui.token_shades import changed_levels
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.token_view import TokenView

from .form import Dialog
from .history_dialog import HistoryDialog

if TYPE_CHECKING:
    from lens_tui.records.run import ArmRecord, RunRecord
    from lens_tui.records.run_store import RunSummary


NUMBER = 7
"""Cells of the column with a run's number, or a set's."""
MIN_ARMS = 16
"""Cells that a run's arms keep of their line, whatever else it says."""
MOST = 200
"""How many runs of the disk are listed; a filter finds older ones."""


@dataclass(frozen=True, slots=True, eq=False)
class PastRun:
    """A line of the history. ``run`` is there for runs and sets of this session, ``kept`` the number on disk (0: none).

    ``created`` is seconds since 1970, ``None`` for this session's; ``inside`` is a run of the set above it. Strings are
    safe to show.
    """

    prompt: str
    arms: str
    facts: str
    kept: int = 0
    created: float | None = None
    run: RunText | SetText | None = None
    inside: bool = False


def of_sets(sets: Sequence[SetText], words: str = "", opened: Container[int] = ()) -> list[PastRun]:
    """This session's sets of prompts, newest first, each followed by runs of its own.

    Args:
        sets: The sets.
        words: With these, only sets and runs that hold them all; without, every set.
        opened: The numbers of the sets whose runs are listed without words too.
    """
    found = list[PastRun]()
    for made in reversed(sets):
        if has_words(_searched_set(made), words):
            found.append(_of_set(made))
        if words.strip() or made.number in opened:
            runs = [run for _, run in sorted(made.runs.items()) if not run.going]
            found += [_of_a_set(row) for row in reversed(of_session(runs, words))]
    return found


def _of_a_set(row: PastRun) -> PastRun:
    """A run of a set: read from the disk where it is kept, which gives it the bench of its own arms."""
    return replace(row, run=None if row.kept else row.run, inside=True)


def _searched_set(made: SetText) -> str:
    return "\n".join([made.name, *map(_searched, made.runs.values())])


def _of_set(made: SetText) -> PastRun:
    arms = ", ".join(one_line(arm.name, 60) for arm in made.arms[1:]) or "baseline alone"
    count = len(made.runs) * len(made.arms)
    facts = f"{many(count, 'text', f'{len(made.cells)} of {count}')} · {made.state}"
    name = f"{made.name or 'set'}: {many(len(made.prompts), 'prompt')}, {many(len(made.seeds), 'seed')}"
    return PastRun(name, arms, facts, 0, None, made)


def of_session(runs: Sequence[RunText], words: str = "") -> list[PastRun]:
    """This session's runs, newest first; with ``words``, those whose prompt, arms or texts hold them all."""
    return [_of_session(run) for run in reversed(runs) if has_words(_searched(run), words)]


def _searched(run: RunText) -> str:
    parts = [run.prompt, *(part for arm in run.arms for part in (arm.arm.name, arm.text))]
    return "\n".join(parts)


def _of_session(run: RunText) -> PastRun:
    arms = ", ".join(f"{arm.arm.name} {strength(arm.interventions)}" for arm in run.arms[1:]) or "baseline alone"
    most = max((len(arm.tokens) for arm in run.arms), default=0)
    facts = f"{many(most, 'token')} · seed {run.sampling.seed} · {run.state}"
    return PastRun(one_line(run.prompt), arms, facts, run.kept, None, run)


def from_disk(database: Path, words: str = "", without: Container[int] = ()) -> list[PastRun]:
    """The newest runs on disk but those of ``without``, or those that hold the words. Reads the disk: not for the UI.

    Runs whose process died under them are marked as killed. Raises ``LensError`` if the history cannot be read.
    """
    from lens_tui.records.run_store import RunStore

    if not database.exists():
        return []
    store = RunStore(database)
    store.broken()
    return [_of_disk(row) for row in store.list(words, MOST) if row.id not in without]


def judged_in(database: Path) -> frozenset[int]:
    """The kept runs that were judged blind. Reads the disk: not for the UI. Raises as :func:`from_disk`."""
    from lens_tui.records.judgements import JudgementStore
    from lens_tui.records.run_store import RunStore

    return JudgementStore(RunStore(database)).judged() if database.exists() else frozenset()


def _of_disk(row: RunSummary) -> PastRun:
    arms = ", ".join(one_line(name, 60) for name in row.arms[1:]) or "baseline alone"
    ended = {"killed": "killed: what had come is kept", "running": "running elsewhere"}.get(row.state, row.state)
    return PastRun(one_line(row.prompt), arms, f"{one_line(row.model, 60)} · {ended}", row.id, row.created)


def load(database: Path, number: int) -> RunText | None:
    """A run of the disk with every token, ``None`` if it is gone. Raises ``LensError`` if it cannot be read."""
    from lens_tui.records.run_store import RunStore

    record = RunStore(database).get(number)
    return None if record is None else run_text(record)


def run_text(record: RunRecord) -> RunText:
    """A kept run as a run of the screens: names made safe, texts as they were, the bench as far as it can hold it.

    The bench holds steering vectors that are added; what else was done to an arm shows in the arm alone.
    """
    arms = tuple(_arm(number, kept) for number, kept in enumerate(record.arms))
    for arm in arms:
        arm.compare_with(arms[0])
    model = one_line(record.model)
    source = one_line(record.made_with.source, 4096) or model
    made = RunText(0, record.prompt, record.sampling, arms, _steers(record), model, source, record.raw)
    made.made_with, made.created = record.made_with, record.created
    made.state = _STATES.get(record.state, "stopped")
    made.prompt_ids, made.kept, made.turns = record.prompt_ids, record.id, record.turns
    made.monitors = record.monitors
    return made


_STATES: dict[str, Literal["done", "stopped", "failed"]] = {"done": "done", "failed": "failed"}


def _arm(number: int, kept: ArmRecord) -> ArmText:
    arm = replace(kept.arm, name=one_line(kept.arm.name, 80))
    text = ArmText(number, arm, dials=kept.changes, reason=kept.reason, dose=kept.dose)
    text.readings = kept.readings
    for token in kept.tokens:
        text.add(_showable(token))
    return text


def _showable(token: Token) -> Token:
    """A token of the disk with its display forms made safe; its text stays as it came."""
    top = tuple(replace(item, text=sanitise_token(item.text)) for item in token.top)
    return replace(token, token=sanitise_token(token.token), top=top)


def _steers(record: RunRecord) -> tuple[BenchRow, ...]:
    found = [
        (number, group[0], vector, amount, tuple(getattr(item, "vector") for item in group[1:]))  # noqa: B009
        for number, kept in enumerate(record.arms)
        for group in grouped(kept.arm.interventions)
        if number
        and (amount := amount_of(group[0]) if len(group) == 1 else multiplier(group)) is not None
        and (vector := getattr(group[0], "vector", None)) is not None
    ]
    return tuple(
        BenchRow(
            f"k{record.id}-{place}",
            replace(vector, name=one_line(vector.name, 60)),
            item.layer,
            amount,
            item.enabled,
            number,
            mode=item.mode,
            positions=None if item.positions == ALL else item.positions,
            gate=item.gate,
            rest=rest,
        )
        for place, (number, item, vector, amount, rest) in enumerate(found)
    )


def say_same_or_not(lens: LensHost, run: RunText, old: RunText) -> None:
    """Say whether a run that was made again has the tokens of the old one, and what may be the cause where not."""
    found = held_against(old.record(), run.record())
    said = one_line(found.sentence(), 400)
    lens.remark(said) if found.same else lens.tell(said)


class HistoryScreen(HistoryDialog[PastRun, RunText, "RunText | SetText | None"]):
    """Runs and sets; enter puts a run back with its prompt, settings and bench.

    Args:
        runs: Those of this session.
        database: Where runs are kept, ``None`` where none are.
        sets: The sets of prompts of this session.
    """

    SEARCHED = "words of the prompt, the arms or what was written"
    NOUN = "run"
    BINDINGS = [
        ("r", "again", "run again"),
        ("space", "mark", "side by side"),
        ("l,right", "unfold(True)", "the runs of a set"),
        ("h,left", "unfold(False)", "fold them"),
    ]

    def __init__(self, runs: Sequence[RunText], database: Path | None = None, sets: Sequence[SetText] = ()) -> None:
        super().__init__(database)
        self._runs, self._sets = runs, sets
        self._judged: frozenset[int] = frozenset()
        self._marked: RunText | None = None
        self._opened: set[int] = set()

    def heading(self) -> Content:
        """What is listed; once a run is taken, what to do next."""
        if self._marked is not None:
            return Content.assemble("Runs", ("  ◆ is taken: space on another shows both", "$accent"))
        kept = "  by number, for `mlx-lens-tui replay`" if self._database is not None else ""
        return Content.assemble("Runs", (kept, "$muted"))

    def own_keys(self) -> list[tuple[str, str]]:
        """Again, side by side, the runs of a set."""
        beside = [("space", " beside  ")] if self._several else []
        return [("r", " again  "), *beside, *([("l h", " set  ")] if self._sets else [])]

    @property
    def _several(self) -> bool:
        """Whether there are two runs to put side by side."""
        here = {run.kept or -place for place, run in enumerate(self._here, 1)}
        return len(here | {row.kept for row in self._of_disk}) > 1

    def nothing(self, words: str) -> str:
        """What stands where there is no row, or none with the words."""
        return (
            "no run has these words" if words.strip() else f"nothing has run yet: {host(self).key_text('app.run')} runs"
        )

    def session_rows(self, words: str) -> list[PastRun]:
        """This session's sets, then its runs."""
        return [*of_sets(self._sets, words, self._opened), *of_session(self._runs, words)]

    def session_numbers(self) -> frozenset[int]:
        """The numbers on disk of this session's runs, those of its sets among them."""
        return frozenset(run.kept for run in self._here if run.kept)

    @property
    def _here(self) -> list[RunText]:
        """This session's runs, those of its sets among them."""
        return [*self._runs, *(run for each in self._sets for run in each.runs.values())]

    def disk_rows(self, database: Path, words: str, without: frozenset[int]) -> list[PastRun]:
        """The runs of the disk, and which were judged blind."""
        found = from_disk(database, words, without)
        self._judged = judged_in(database)
        return found

    def read_kept(self, database: Path, number: int) -> RunText | None:
        """A run of the disk."""
        return load(database, number)

    def draw(self, row: PastRun, width: int) -> list[Content]:
        """Number and prompt; when, its arms and what came of it."""
        first = self._marked
        taken = first is not None and (row.run is first or bool(row.kept and row.kept == first.kept))
        number = Content.assemble(("◆" if taken else " ", "$accent"), (f"{self._number(row):>{NUMBER - 2}} ", "$muted"))
        name = f"{'▾' if row.run.number in self._opened else '▸'} " if isinstance(row.run, SetText) else ""
        name = f"{'  ' if row.inside else name}{row.prompt}"
        head = Content.assemble(number, fit(name, max(8, width - NUMBER)))
        style = "$warning" if "killed" in row.facts else "$muted"
        when, facts = f"{' ' * NUMBER}{self.when(row)}", f" · {self._blind(row)}{row.facts}"
        # Runs of one bench differ in their seeds alone: many arms are cut before what came of them.
        arms = fit(row.arms, max(MIN_ARMS, width - len(when) - len(facts))).rstrip()
        return [head, Content.styled(fit(f"{when}{arms}{facts}", width), style)]

    def _blind(self, row: PastRun) -> str:
        """What of it was judged blind, for ``mlx-lens-tui runs tally``."""
        if isinstance(row.run, SetText):
            count = sum(run.kept in self._judged for run in row.run.runs.values())
            return f"{count} judged blind · " if count else ""
        kept = row.kept or (row.run.kept if row.run is not None else 0)
        return "judged blind · " if kept in self._judged else ""

    def _number(self, row: PastRun) -> str:
        """A set's number in this session; a run's on disk, by which it can be named elsewhere, if it is kept."""
        if isinstance(row.run, SetText):
            return f"set {row.run.number}"
        kept = row.kept or (row.run.kept if row.run is not None else 0)
        if kept or row.run is None:
            return str(kept)
        return "–" if self._database is not None else str(row.run.number)

    # ---- choosing

    def action_unfold(self, wanted: bool) -> None:
        """List the runs of the set under the cursor too, or no longer."""
        rows, place = self.rows.rows, self.rows.cursor
        while 0 < place < len(rows) and rows[place].inside:
            place -= 1
        made = rows[place].run if place < len(rows) else None
        if not isinstance(made, SetText):
            if rows:
                self.notify("That is a run; the runs of a set are listed under it.", markup=False, timeout=4)
        elif wanted and all(run.going for run in made.runs.values()):
            self.notify("None of its runs is done yet.", markup=False, timeout=4)
        elif wanted != (made.number in self._opened):
            self._opened ^= {made.number}
            self.fill()
            self.rows.cursor = place

    def action_choose(self) -> None:
        """Give back the run under the cursor."""
        row = self.rows.row
        if row is None or isinstance(row.run, SetText):
            self.dismiss(row.run if row is not None else None)
        else:
            self._with_run(self.dismiss)

    def action_again(self) -> None:
        """Give back the run under the cursor to be made again, token for token."""

        def again(run: RunText) -> None:
            if run.going:
                self.notify("That run is still being written.", markup=False)
            else:
                self.dismiss(run.repeat())

        self._with_run(again)

    def action_mark(self) -> None:
        """Take the run under the cursor; the second one opens beside the first."""

        def mark(run: RunText) -> None:

            first, self._marked = self._marked, None
            if first is None and not self._several:
                self.notify("There is no other run to show beside it.", markup=False)
            elif first is None:
                self._marked = run
            elif first is not run and not (first.kept and first.kept == run.kept):
                self.app.push_screen(TwoRunsScreen(first, run))
            self.query_one(".dialog-title", Static).update(self.heading())
            self.rows.refresh()

        self._with_run(mark)

    def _with_run(self, then: Callable[[RunText], object]) -> None:
        """Do it with the run under the cursor, read from the disk if it is not of this session."""
        row = self.rows.row
        if row is None:
            return
        if isinstance(row.run, SetText):
            self.notify("That is a set of prompts: enter opens its table of runs.", markup=False, timeout=4)
        elif isinstance(row.run, RunText):
            then(row.run)
        else:
            self.with_kept(row.kept, then)


class RunColumn(Pane):
    """One run's text of the arm that is looked at."""

    keeps_note, spare = True, PEAKS
    DEFAULT_CSS = "RunColumn { width: 1fr; height: 1fr; } RunColumn > TokenView { margin: 1 0 0 1; }"

    def __init__(self, run: RunText) -> None:
        self.run = run
        self.facts = Static("", classes="muted")
        self.view = TokenView(empty="it has no such arm")
        super().__init__("", self.facts, self.view)

    def arm(self, index: int) -> ArmText | None:
        """The arm at a place, if there is one."""
        return self.run.arms[index] if index < len(self.run.arms) else None

    def show(self, index: int, other: ArmText | None) -> None:
        """Show an arm, shaded where it leaves the other run's."""
        text = self.arm(index)
        self.title = "–" if text is None else one_line(text.arm.name, 60)
        self.note = "" if text is None else strength(text.arm.interventions)
        ids, others = ([] if arm is None else [token.token_id for token in arm.tokens] for arm in (text, other))
        self.view.set_tokens([] if text is None else text.pieces, changed_levels(others, ids))
        parted = next((at for at, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
        self.view.mark = parted
        facts = [one_line(self.run.model, 40) or "model", summary(self.run.sampling), self.run.state]
        if text is not None and text.mean_kl is not None and index:
            facts.append(f"KL {figure(text.mean_kl, 3)} nat")
        self.facts.update(Content.styled(" · ".join(facts), "$muted"))


class TwoRunsScreen(Dialog[None]):
    """Looks at one arm of both runs at a time; the token cursor is at the same token of both."""

    BINDINGS = [
        ("left_square_bracket", "arm(-1)", "arm before"),
        ("right_square_bracket", "arm(1)", "arm after"),
        ("escape,q", "dismiss", "back"),
    ]
    DEFAULT_CSS = """
    TwoRunsScreen .dialog { width: 100%; max-width: 100%; height: 100%; max-height: 100%; padding: 1 1 0 1; }
    TwoRunsScreen Horizontal { height: 1fr; }
    TwoRunsScreen #two-found { height: auto; max-height: 4; margin-top: 1; }
    TwoRunsScreen #two-keys { height: 1; margin-top: 1; color: $muted; }
    """

    def __init__(self, first: RunText, second: RunText) -> None:
        super().__init__()
        self.columns = (RunColumn(first), RunColumn(second))
        self.index = 0

    def compose(self) -> ComposeResult:
        """Prompt, the two columns, what was found, the keys."""
        prompts = list(dict.fromkeys(one_line(column.run.prompt, 200) for column in self.columns))
        with Vertical(classes="dialog"):
            yield Static(Content(" │ ".join(prompts)), classes="dialog-title")
            yield Horizontal(*self.columns)
            yield Static(Content(one_line(self._found(), 400)), id="two-found")
            keys = (("[ ]", " arm   "), ("tab", " other run   "), ("h l", " token of both   "), ("esc", " back"))
            parts = [part for key, word in keys for part in ((key, "bold"), word)]
            yield Static(Content.assemble(*parts), id="two-keys")

    def on_mount(self) -> None:
        """The first steered arm is of more interest than the baseline."""
        self.action_arm(1 if max(len(column.run.arms) for column in self.columns) > 1 else 0)
        self.columns[0].view.focus()

    def _found(self) -> str:
        first, second = (column.run for column in self.columns)
        if first.question != second.question:
            how = "prompts" if first.prompt != second.prompt else "conversations, or one of them raw"
            return f"They were asked different things ({how}): that their tokens differ needs no other cause."
        old, new = first.record(), second.record()
        try:
            found = held_against(old, new)
        except LensError as error:
            return error.message
        return " ".join([found.sentence(), *found.causes[2:]])

    def action_arm(self, step: int) -> None:
        """The arm before or after, of both runs."""
        count = max(len(column.run.arms) for column in self.columns)
        self.index = (self.index + step) % count
        first, second = self.columns
        first.show(self.index, second.arm(self.index))
        second.show(self.index, first.arm(self.index))

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        """The same token in the other run."""
        if not event.view.has_focus:
            return
        for view in self._views():
            if view is not event.view and event.index is not None and event.index < len(view.tokens):
                view.move_to(event.index)

    def _views(self) -> Iterator[TokenView]:
        return (column.view for column in self.columns)
