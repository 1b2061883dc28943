"""The maps and graphs of this session and those kept on disk, to be opened again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from lens_tui.records import LensError, ModelInfo
from lens_tui.records.cause_store import CauseSummary, Found, model_of
from lens_tui.records.graph_plan import GraphFound
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import ago, fit, model_name
from lens_tui.tui.host import focus_now, host
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog

Opened = tuple[Found, str]
"""What was found, and what has changed since it was made, in a few words."""


@dataclass(frozen=True, slots=True, eq=False)
class PastCause:
    """A line of the history; texts are safe to show. ``found`` is there for those of this session, ``kept`` on disk."""

    asked: str
    title: str
    model: str
    kept: int = 0
    created: float | None = None
    found: Found | None = None

    def has(self, words: Sequence[str]) -> bool:
        """Whether it holds all of these."""
        text = f"{self.asked} {self.title} {self.model}".casefold()
        return all(word in text for word in words)


def of_session(found: Found) -> PastCause:
    """One of this session."""
    asked = (found.file or found.plan.prompt) if isinstance(found, GraphFound) else found.plan.asked
    texts = (one_line(asked, 400), one_line(found.plan.title, 120), one_line(model_name(model_of(found)), 60))
    return PastCause(*texts, found.kept, None, found)


def of_disk(row: CauseSummary) -> PastCause:
    """One of the disk."""
    texts = (one_line(row.asked, 400), one_line(row.title, 120), one_line(model_name(row.model), 60))
    return PastCause(*texts, row.id, row.created)


class CauseHistoryScreen(Dialog["Opened | None"]):
    """Newest first, this session's before those of the disk. Dismisses with one, or with ``None`` on escape.

    Args:
        here: Those of this session.
        database: Where they are kept, ``None`` where nothing is.
        model: The model that is loaded, which what was kept is held against.
    """

    BINDINGS = [
        ("escape", "back", "cancel"),
        ("q", "dismiss", "cancel"),
        ("enter", "choose", "open"),
        ("slash", "find", "filter"),
        ("n", "match(1)", "the next that was found"),
        ("N", "match(-1)", "the one before"),
    ]
    DEFAULT_CSS = """
    CauseHistoryScreen RowList { height: auto; max-height: 18; }
    CauseHistoryScreen Input { width: 1fr; height: 1; margin-bottom: 1; display: none; &.-open { display: block; } }
    """

    def __init__(self, here: Sequence[Found], database: Path | None, model: ModelInfo | None) -> None:
        super().__init__()
        self._here, self._database, self._model = [of_session(each) for each in here], database, model
        self._kept: list[PastCause] = []
        self._words = ""

    def compose(self) -> ComposeResult:
        """Filter, list, keys."""
        with Vertical(classes="dialog"):
            yield Static("Maps and graphs", classes="dialog-title")
            yield Entry(placeholder="words of the prompt, the model or what was asked", between=" ")
            yield RowList[PastCause](self._draw, row_height=2)
            keys = [("⏎", " open  "), ("/", " find  "), ("esc", " back")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """This session's at once, those of the disk as they are read."""
        self._fill()
        self._rows.focus()
        self._read("")

    @property
    def _rows(self) -> RowList[PastCause]:
        return self.query_one(RowList)

    def _fill(self) -> None:
        words = self._words.casefold().split()
        found = [each for each in [*self._here, *self._kept] if each.has(words)]
        self._rows.empty = "none has these words" if words else "nothing was patched or traced yet"
        self._rows.styles.height = min(2 * max(1, len(found)), 18)
        self._rows.show(found)

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _read(self, words: str) -> None:
        from lens_tui.tasks.kept_causes import kept_causes

        if self._database is None:
            return
        try:
            found = kept_causes(self._database, words, frozenset(each.kept for each in self._here))
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
        else:
            self.app.call_from_thread(self._found, words, found)

    def _found(self, words: str, found: Sequence[CauseSummary]) -> None:
        if self.is_mounted and words == self._words:
            self._kept = [of_disk(each) for each in found]
            self._fill()

    def _broken(self, error: LensError) -> None:
        self.notify(f"{error.message} {error.hint}".strip(), markup=False, timeout=8)

    def _draw(self, row: PastCause, width: int) -> list[Content]:
        when = "" if row.created is None else f"{ago(row.created, host(self).wall())} · "
        number = f"{row.kept or '–':>5}  "
        facts = f"{' ' * len(number)}{when}{row.title} · {row.model}"
        return [
            Content.assemble((number, "$muted"), fit(row.asked, max(8, width - len(number)))),
            Content.styled(fit(facts, width), "$muted"),
        ]

    def action_find(self) -> None:
        """Type words that it must have."""
        entry = self.query_one(Input)
        entry.add_class("-open")
        focus_now(entry)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._words, self._kept = event.value, []
        self._fill()
        self._read(event.value)

    def on_input_submitted(self) -> None:
        """Back to the list with what was found."""
        self._rows.focus()

    def action_match(self, step: int) -> None:
        """The next of what was found, or the one before, going round."""
        self._rows.go_round(step)

    def action_back(self) -> None:
        """Escape takes the filter away first."""
        entry = self.query_one(Input)
        if not entry.has_class("-open"):
            self.dismiss(None)
            return
        entry.value = ""
        entry.remove_class("-open")
        self._rows.focus()

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_choose()

    def action_choose(self) -> None:
        """Give back the one under the cursor."""
        row = self._rows.row
        if row is None:
            self.dismiss(None)
        elif row.found is not None:
            self.dismiss((row.found, ""))
        else:
            self._load(row.kept)

    @work(thread=True, exclusive=True, group="load", exit_on_error=False)
    def _load(self, number: int) -> None:
        from lens_tui.tasks.kept_causes import open_cause

        if self._database is None:
            return
        try:
            opened = open_cause(self._database, number, self._model)
        except LensError as error:
            self.app.call_from_thread(self._broken, error)
            return
        if opened is None:
            self.app.call_from_thread(self.notify, "That one no longer exists.", markup=False)
        else:
            self.app.call_from_thread(self._loaded, (opened[0].found, opened[1]))

    def _loaded(self, opened: Opened) -> None:
        if self.is_current:
            self.dismiss(opened)
