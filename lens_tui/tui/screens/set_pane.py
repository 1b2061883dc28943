"""Sets of prompts: asked for, run and kept; and the table of one, a row a prompt, a column an arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from lens_tui.records import LensError
from lens_tui.records.interventions import BenchRow
from lens_tui.records.prompt_set import COLUMNS, SetColumn
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import fit
from lens_tui.tui.host import LensHost
from lens_tui.tui.lane_text import strength
from lens_tui.tui.run_text import RunText, summary
from lens_tui.tui.session import Session, plan
from lens_tui.tui.set_text import (
    FILE,
    SOURCES,
    TYPED,
    Row,
    SetText,
    TableShape,
    asked_set,
    head_line,
    names_a_file,
    numbers_problem,
    row_line,
    seeds_problem,
    shape,
)
from lens_tui.tui.widgets.entry import Pick
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.lane import Line
from lens_tui.tui.widgets.row_list import CURSOR, RowList
from lens_tui.worker.events import Event, JobFailed
from lens_tui.worker.jobs import ComparePrompts

from .form import Field, FormScreen, optional, whole


class SetTable(RowList[Row]):
    """The rows of the table; its keys go on and back, and change the column."""

    BINDINGS = bindings("set")

    @dataclass
    class ColumnWanted(Message):
        """Another column, so many further on."""

        step: int

    def action_page(self, step: int) -> None:
        """The next prompt, or the one before."""
        self.cursor += step

    def action_column(self, step: int) -> None:
        """What the table shows."""
        self.post_message(self.ColumnWanted(step))


class SetPane(Pane):
    """A set as a table. Posts :class:`Turned` when another row is chosen; ``arm`` is the arm that a lane has."""

    DEFAULT_CSS = """
    SetPane > SetTable { height: 1fr; }
    """

    @dataclass
    class Turned(Message):
        """The lanes are to show this row."""

        row: Row

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        self.head, self.means, self.about = Line(), Line(), Line()
        self.table = SetTable(self._draw, empty="reading the prompts")
        self.about.add_class("about")
        super().__init__("set", self.head, self.table, self.means, self.about, id=id)
        self.set_text: SetText | None = None
        self.column: SetColumn = COLUMNS[0]
        self.arm = 0

    def settings(self, shown: SetText, run: RunText, width: int) -> Content:
        """Which prompt the lanes are of, and how it was sampled, in so many cells."""
        prompt = f"prompt {(self.table.row or (0, 0))[0] + 1} of {len(shown.prompts)} “{one_line(run.prompt)}”"
        facts = f" · {summary(run.sampling)}"
        room = max(8, width - cell_len(facts))
        return Content.assemble(fit(prompt, room).rstrip(), (facts, "$muted"))

    def show(self, shown: SetText | None) -> None:
        """Show a set from its first row."""
        self.set_text = shown
        self.table.show(shown.rows if shown is not None else (), 0)
        self.sync()

    def sync(self) -> None:
        """Show what has come since."""
        shown = self.set_text
        if shown is None:
            return
        if len(self.table.rows) != len(shown.rows):
            self.table.show(shown.rows, 0)
        at = self._shape
        self.title = f"{shown.name or 'set'}: {many(len(shown.prompts), 'prompt')}" + (
            f" × {many(len(shown.seeds), 'seed')}" if len(shown.seeds) > 1 else ""
        )
        unit = f", {self.column.unit}" if self.column.unit else ""
        of = f" of feature {shown.feature}" if self.column.id == "read_back" and shown.feature >= 0 else ""
        self.note = f"{self.column.label}{of}{unit}"
        self.head.content = Content.styled(" " * len(CURSOR) + head_line(shown, at), "$muted")
        self.means.content = Content.assemble(" " * len(CURSOR), *self._cells(None, at))
        said = self.column.says
        if self.column.id == "read_back" and shown.feature < 0:
            said = "No arm steers with a feature, so that none is read back."
        self.about.content = Content.styled(f"{' ' * len(CURSOR)}{said}", "$muted")
        self.table.refresh()

    def on_resize(self) -> None:
        """Columns have another width."""
        self.sync()

    @property
    def _shape(self) -> TableShape:
        names = [one_line(arm.name) for arm in self.set_text.arms] if self.set_text is not None else [""]
        width = max(1, self.table.size.width - len(CURSOR) - 1)  # 1: a scroll bar, sometimes
        return shape(width, len(names), self.arm, max(map(cell_len, names), default=0))

    def _draw(self, row: Row, width: int) -> list[Content]:
        return [Content.assemble(*self._cells(row, self._shape))]

    def _cells(self, row: Row | None, at: TableShape) -> list[tuple[str, str]]:
        assert self.set_text is not None
        name, *numbers = row_line(self.set_text, self.column, at, row)
        return [
            (name, "" if row is not None else "$muted"),
            *((text, "bold $accent" if arm == self.arm else "") for arm, text in zip(at.arms, numbers, strict=True)),
        ]

    def on_row_list_moved(self, event: RowList.Moved) -> None:
        """Another prompt: its lanes."""
        event.stop()
        if (row := self.table.row) is not None:
            self.post_message(self.Turned(row))

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        """A click where the cursor is changes nothing."""
        event.stop()

    def on_set_table_column_wanted(self, event: SetTable.ColumnWanted) -> None:
        """The next measure."""
        event.stop()
        self.column = COLUMNS[(COLUMNS.index(self.column) + event.step) % len(COLUMNS)]
        self.sync()


class SetForm(FormScreen):
    """Asks for a set. Prompts that are typed are the set, whatever was chosen, and so is the file of a typed path."""

    _by_path = False

    def on_mount(self) -> None:
        """What was typed before counts as typed."""
        self._by_path = self._source.value == FILE and names_a_file(self._field("prompts").value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Prompts that are typed, or pasted, are the set, or the path of its file."""
        given = event.value.strip() and event.value != self._field(event.input.id).value
        if event.input.id != "prompts" or not given:
            return
        by_path, meant = names_a_file(event.value), self._source.value
        if by_path:
            meant = FILE
        elif meant not in (FILE, TYPED) or (meant == FILE and self._by_path):
            meant = TYPED
        self._by_path, self._source.place = by_path, self._source.options.index(meant)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter behind a typed prompt begins the next one."""
        entry, ended = event.input, event.value.endswith("|") and not event.value.endswith("\\|")
        if entry.id == "prompts" and self._source.value == TYPED and event.value.strip() and not ended:
            event.prevent_default()  # the form's own handler, which would start
            event.stop()
            entry.value += "|"
            entry.cursor_position = len(entry.value)

    @property
    def _source(self) -> Pick:
        return self.query_one("#source", Pick)


def set_form(session: Session, row: BenchRow | None, before: dict[str, str], problem: str = "") -> FormScreen:
    """The form that asks for a set, filled as it was ``before``."""
    arms = max(1, len({item.arm for item in session.steers if item.enabled}))
    swept = f"none: the {many(arms, 'arm')} of the bench" if session.steers else "none: the baseline alone"
    value = before.get
    fields: Sequence[Field] = (
        Field("source", "prompts", value("source", SOURCES[0]), options=SOURCES),
        Field("prompts", "which", value("prompts", ""), "type prompts; or a file's path", between="|"),
        Field("first", "how many", value("first", ""), "all of them", optional(whole(1))),
        Field("scales", "scales", value("scales", ""), swept, numbers_problem),
        Field("seeds", "seeds", value("seeds", ""), f"{session.sampling.seed}, as it is set", seeds_problem),
    )
    about = "⏎ after a typed prompt begins the next one; after an empty one, or in another field, it starts the set."
    if row is not None:
        about += f" Scales are of {row.vector.name} (now {row.scale:g}), as 9.5 19 38."
    return SetForm("A set of prompts", fields, about, problem, "next prompt, or start")


class PromptSets:
    """Runs every arm over a set of prompts, and keeps what came.

    Args:
        shown: Says which set shows now.
        show: Called with each set as it begins; with what showed before (``None``: no set) where it cannot be read.
        took: Called with each event of a set, and the prompt and seed that it is of, if of one.
    """

    def __init__(
        self,
        shown: Callable[[], SetText | None],
        show: Callable[[SetText | None], None],
        took: Callable[[SetText, tuple[int, int] | None, Event], None],
    ) -> None:
        self.all: list[SetText] = []
        self._shown, self._show, self._took = shown, show, took
        self._asked: dict[str, str] = {}

    def ask(self, lens: LensHost, row: BenchRow | None, problem: str = "") -> None:
        """Ask for a set, and run it.

        Args:
            lens: The app.
            row: The row of the bench that a sweep would be of; None where there is no such one.
            problem: What was wrong with the answer before.
        """
        session = lens.store.session

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            self._asked = values
            try:
                job = asked_set(values, session, row, self._arm_names(lens))
            except LensError as error:
                self.ask(lens, row, f"{error.message} {error.hint}".strip())
            else:
                self.start(lens, job, row)

        lens.push_screen(set_form(session, row, self._asked, problem), take)

    @staticmethod
    def _arm_names(lens: LensHost) -> list[str]:
        """What the arms of the bench are called in a table: with their scales."""
        amounts = ((arm, strength(arm.interventions).partition(" · ")[0]) for _, arm in plan(lens.store.session))
        return [f"{arm.name} {amount}".strip() for arm, amount in amounts]

    def start(self, lens: LensHost, job: ComparePrompts, row: BenchRow | None = None) -> None:
        """Run a set; the one before is stopped, and kept. One that cannot be read is asked for again, of ``row``."""
        made, before = SetText.begin(len(self.all) + 1, job, lens.store.session), self._shown()

        def take(event: Event) -> bool:
            place = made.apply(event)
            if not isinstance(event, JobFailed) or made.rows:
                self._took(made, place, event)
                return False
            self.all.remove(made)
            if self._shown() is made:
                self._show(before)
            self.ask(lens, row, f"{event.message} {event.hint}".strip())
            return True

        self.all.append(made)
        lens.submit(job, "set", take)
        self._show(made)
