"""A pane: a title row over its content, with a bar down the left edge while the focus is inside."""

from __future__ import annotations

from textual.app import RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget


class PaneTitle(Widget):
    """The title on the left, a note on the right. Both are plain text, never markup."""

    DEFAULT_CSS = "PaneTitle { height: 1; }"

    note: reactive[str] = reactive("")
    text: reactive[str] = reactive("")

    def render(self) -> RenderResult:
        """Title and note in one row; the note goes first when there is no room."""
        width = self.size.width
        title = Content(self.text)
        note = Content.styled(self.note, "$muted not bold") if self.note else Content("")
        gap = width - title.cell_length - note.cell_length
        if gap < 1:
            return title.truncate(width, ellipsis=True)
        return Content.assemble(title, " " * gap, note)


class Pane(Vertical):
    """A titled part of a screen.

    ``title`` and ``note`` may be set at any time. Give the widgets inside to the
    constructor, or subclass and yield them from ``compose_body``.
    """

    ALLOW_MAXIMIZE = True
    DEFAULT_CSS = """
    Pane {
        border-left: blank; padding: 0 1 0 0;
        &:focus-within { border-left: wide $accent; }
        &:focus-within > PaneTitle { text-style: bold; color: $foreground; }
        & > PaneTitle { color: $muted; }
    }
    """

    def __init__(self, title: str, *children: Widget, note: str = "", id: str | None = None) -> None:  # noqa: A002
        self._heading = PaneTitle()
        self._heading.set_reactive(PaneTitle.text, title)
        self._heading.set_reactive(PaneTitle.note, note)
        super().__init__(self._heading, *children, id=id)

    @property
    def title(self) -> str:
        """The title shown."""
        return self._heading.text

    @title.setter
    def title(self, value: str) -> None:
        self._heading.text = value

    @property
    def note(self) -> str:
        """What stands at the right end of the title row."""
        return self._heading.note

    @note.setter
    def note(self, value: str) -> None:
        self._heading.note = value
