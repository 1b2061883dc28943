"""The runs of this session and those kept on disk, to look at again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from lens_tui.records import LensError
from lens_tui.tui.format import ago, fit
from lens_tui.tui.host import host
from lens_tui.tui.past_runs import PastRun, from_disk, load, of_session
from lens_tui.tui.run_text import RunText
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog


class HistoryScreen(Dialog[RunText | None]):
    """Newest first, this session's before those of the disk; enter puts a run back with its prompt, settings, bench.

    ``database`` is where runs are kept, ``None`` where none are.
    """

    BINDINGS = [
        ("escape", "back", "cancel"),
        ("q", "dismiss", "cancel"),
        ("enter", "choose", "restore"),
        ("slash", "find", "filter"),
    ]
    DEFAULT_CSS = """
    HistoryScreen RowList { height: auto; max-height: 18; }
    HistoryScreen Input { width: 1fr; height: 1; margin-bottom: 1; display: none; &.-open { display: block; } }
    """

    def __init__(self, runs: Sequence[RunText], database: Path | None = None) -> None:
        super().__init__()
        self._runs, self._database = runs, database
        self._kept: list[PastRun] = []
        self._asked = ""

    def compose(self) -> ComposeResult:
        """Filter, list, keys."""
        with Vertical(classes="dialog"):
            yield Static("Runs", classes="dialog-title")
            yield Entry(placeholder="words of the prompt, the arms or what was written", between=" ")
            yield RowList[PastRun](self._draw, row_height=2, empty="nothing has run yet")
            keys = [("⏎", " restore   "), ("/", " filter   "), ("esc", " back")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """Fill it: this session's at once, those of the disk as they are read."""
        self._fill()
        self._rows.focus()
        self._read("")

    @property
    def _rows(self) -> RowList[PastRun]:
        return self.query_one(RowList)

    def _fill(self) -> None:
        found = [*of_session(self._runs, self._asked), *self._kept]
        self._rows.empty = "no run holds these words" if self._asked else "nothing has run yet"
        self._rows.styles.height = min(2 * max(1, len(found)), 18)
        self._rows.show(found)

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _read(self, words: str) -> None:
        if self._database is None:
            return
        try:
            found = from_disk(self._database, words, [run.kept for run in self._runs if run.kept])
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
        else:
            self.app.call_from_thread(self._found, words, found)

    def _found(self, words: str, found: list[PastRun]) -> None:
        if self.is_mounted and words == self._asked:
            self._kept = found
            self._fill()

    def _broken(self, error: LensError) -> None:
        self.notify(f"{error.message} {error.hint}".strip(), markup=False, timeout=8)

    # ---- filtering

    def action_find(self) -> None:
        """Type words that a run must hold."""
        entry = self.query_one(Input)
        entry.add_class("-open")
        entry.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._asked, self._kept = event.value, []
        self._fill()
        self._read(event.value)

    def on_input_submitted(self) -> None:
        """Back to the list with what was found."""
        self._rows.focus()

    def action_back(self) -> None:
        """Escape takes the filter away first."""
        entry = self.query_one(Input)
        if not entry.has_class("-open"):
            self.dismiss(None)
            return
        entry.value = ""
        entry.remove_class("-open")
        self._rows.focus()

    # ---- choosing

    def action_choose(self) -> None:
        """Give back the run under the cursor."""
        row = self._rows.row
        if row is None or row.run is not None:
            self.dismiss(row.run if row is not None else None)
        else:
            self._load(row.kept)

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_choose()

    @work(thread=True, exclusive=True, group="load", exit_on_error=False)
    def _load(self, kept: int) -> None:
        if self._database is None:
            return
        try:
            run = load(self._database, kept)
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
        else:
            self.app.call_from_thread(self._loaded, run)

    def _loaded(self, run: RunText | None) -> None:
        if run is None:
            self.notify("That run is not there any more.", markup=False)
        elif self.is_current:
            self.dismiss(run)

    def _draw(self, row: PastRun, width: int) -> list[Content]:
        number = f"{row.run.number:>3}  " if row.run is not None else "     "
        when = f"{ago(row.created, host(self).wall())} · " if row.created is not None else ""
        head = Content.assemble((number, "$muted"), fit(row.prompt, max(8, width - 5)))
        style = "$warning" if "killed" in row.facts else "$muted"
        return [head, Content.styled(fit(f"     {when}{row.arms} · {row.facts}", width), style)]
