"""What was made before, of this session and on disk, in one dialogue: filtered by words and opened again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from lens_tui.records import LensError
from lens_tui.tui.format import ago
from lens_tui.tui.host import focus_now, host
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog


class PastRow(Protocol):
    """A line of a history."""

    @property
    def kept(self) -> int:
        """Its number on disk, 0 where it is not there."""

    @property
    def created(self) -> float | None:
        """When what is on disk was made, in seconds since 1970; ``None`` for this session's."""


Row = TypeVar("Row", bound=PastRow)
Kept = TypeVar("Kept")
Result = TypeVar("Result")


class HistoryDialog(Dialog[Result], Generic[Row, Kept, Result]):
    """Newest first, this session's before those of the disk. Escape takes the filter away, then leaves with ``None``.

    A kind of history says what its rows are, how one is read from the disk, and what enter does.

    Args:
        database: Where they are kept, ``None`` where nothing is.
    """

    SEARCHED = ""
    """Which words a row is found by."""
    NOUN = ""
    """What is kept, as one says that it is gone."""
    BINDINGS = [
        ("escape", "back", "cancel"),
        ("q", "dismiss", "cancel"),
        ("enter", "choose", "open"),
        ("slash", "find", "filter"),
        ("n", "match(1)", "the next that was found"),
        ("N", "match(-1)", "the one before"),
    ]
    DEFAULT_CSS = """
    HistoryDialog RowList { height: auto; max-height: 18; }
    HistoryDialog Input { width: 1fr; height: 1; margin-bottom: 1; display: none; &.-open { display: block; } }
    """

    def __init__(self, database: Path | None) -> None:
        super().__init__()
        self._database, self._words = database, ""
        self._of_disk: list[Row] = []

    # ---- what a kind of history says

    def heading(self) -> Content:
        """The title."""
        raise NotImplementedError

    def own_keys(self) -> list[tuple[str, str]]:
        """The keys of this kind alone that have something to act on, and what they do."""
        return []

    def nothing(self, words: str) -> str:
        """What stands where there is no row, or none with the words."""
        raise NotImplementedError

    def session_rows(self, words: str) -> list[Row]:
        """This session's rows that have the words, newest first."""
        raise NotImplementedError

    def session_numbers(self) -> frozenset[int]:
        """The numbers on disk of what this session made: those are not listed again."""
        raise NotImplementedError

    def disk_rows(self, database: Path, words: str, without: frozenset[int]) -> list[Row]:
        """The rows of the disk that have the words, newest first, but these. Not on the screen's thread."""
        raise NotImplementedError

    def read_kept(self, database: Path, number: int) -> Kept | None:
        """What a row of the disk stands for, ``None`` if it is gone. Not on the screen's thread."""
        raise NotImplementedError

    def draw(self, row: Row, width: int) -> list[Content]:
        """A row's two lines."""
        raise NotImplementedError

    def action_choose(self) -> None:
        """Give back what is under the cursor."""
        raise NotImplementedError

    # ---- listing

    def compose(self) -> ComposeResult:
        """Title, filter, list, keys."""
        with Vertical(classes="dialog"):
            yield Static(self.heading(), classes="dialog-title")
            yield Entry(placeholder=self.SEARCHED, between=" ")
            yield RowList[Row](self.draw, row_height=2)
            yield Static(id="keys")

    def on_mount(self) -> None:
        """This session's at once, those of the disk as they are read."""
        self.fill()
        self.rows.focus()
        self._read("", self.session_numbers())

    @property
    def rows(self) -> RowList[Row]:
        """The list."""
        return self.query_one(RowList)

    def fill(self) -> None:
        """List what is known by now."""
        known = self.session_numbers()  # one that was kept while the disk was read is listed once
        found = [*self.session_rows(self._words), *(row for row in self._of_disk if row.kept not in known)]
        self.rows.empty = self.nothing(self._words)
        self.rows.show(found)
        self.query_one("#keys", Static).update(self._keys())
        self._fit()

    def _keys(self) -> Content:
        """The keys that have something to act on."""
        rows = self.rows.rows
        keys = [("⏎", " open  "), *self.own_keys()] if rows else []
        keys += [("/", " find  ")] if rows or self._words else []
        return Content.assemble(
            "\n", *(part for key, word in [*keys, ("esc", " back")] for part in ((key, "bold"), word))
        )

    def _fit(self) -> None:
        """Title, filter and keys are in sight, whatever the list has."""
        others = 6 + 2 * self.query_one(Input).has_class("-open")
        room = min(18, self.size.height * 9 // 10 - others)
        self.rows.styles.height = max(2, min(2 * max(1, len(self.rows.rows)), room))

    def on_resize(self) -> None:
        """The list has what is left."""
        self._fit()

    def when(self, row: Row) -> str:
        """How long ago a row of the disk was made, and the mark before what follows."""
        return "" if row.created is None else f"{ago(row.created, host(self).wall())} · "

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _read(self, words: str, without: frozenset[int]) -> None:
        if self._database is None:
            return
        try:
            found = self.disk_rows(self._database, words, without)
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
        else:
            self.app.call_from_thread(self._found, words, found)

    def _found(self, words: str, found: list[Row]) -> None:
        if self.is_mounted and words == self._words:
            self._of_disk = found
            self.fill()

    def _broken(self, error: LensError) -> None:
        self.notify(f"{error.message} {error.hint}".strip(), markup=False, timeout=8)

    # ---- filtering

    def action_find(self) -> None:
        """Type words that a row must have."""
        entry = self.query_one(Input)
        entry.add_class("-open")
        self._fit()
        focus_now(entry)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._words, self._of_disk = event.value, []
        self.fill()
        self._read(event.value, self.session_numbers())

    def on_input_submitted(self) -> None:
        """Back to the list with what was found."""
        self.rows.focus()

    def action_match(self, step: int) -> None:
        """The next of what was found, or the one before, going round."""
        self.rows.go_round(step)

    def action_back(self) -> None:
        """Escape takes the filter away first."""
        entry = self.query_one(Input)
        if not entry.has_class("-open"):
            self.dismiss(None)
            return
        entry.value = ""
        entry.remove_class("-open")
        self._fit()
        self.rows.focus()

    # ---- opening

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_choose()

    @work(thread=True, exclusive=True, group="load", exit_on_error=False)
    def with_kept(self, number: int, then: Callable[[Kept], object]) -> None:
        """Read what a row of the disk stands for, and do it with that while this is still the screen in use."""
        if self._database is None:
            return
        try:
            kept = self.read_kept(self._database, number)
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
        else:
            self.app.call_from_thread(self._kept, kept, then)

    def _kept(self, kept: Kept | None, then: Callable[[Kept], object]) -> None:
        if kept is None:
            self.notify(f"That {self.NOUN} no longer exists.", markup=False)
        elif self.is_current:
            then(kept)
