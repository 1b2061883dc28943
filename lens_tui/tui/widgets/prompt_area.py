"""Where the prompt is written: enter runs, shift+enter or ctrl+j is a new line, escape leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, overload

from textual import events
from textual.binding import Binding
from textual.document._document import Document, EditResult, Location
from textual.document._document_navigator import DocumentNavigator
from textual.document._wrapped_document import WrappedDocument
from textual.geometry import Size
from textual.message import Message
from textual.widgets import TextArea

from lens_tui.records.sanitise import signs

from .entry import lines_of, typed


class PromptDocument(Document):
    """A text exactly as it is, which shows a sign for each character that must not reach a terminal.

    Textual's document splits at every character that Unicode calls a line end and joins with one of them; here a line
    ends at a newline and nowhere else, so that the text that was put in comes out. Every line that is *seen* (drawn,
    wrapped, measured) has the same length as the true one, so places in one are places in the other.
    """

    def __init__(self, text: str) -> None:
        super().__init__("")
        self._newline = "\n"
        self._lines = text.split("\n")

    @property
    def lines(self) -> list[str]:
        """The lines as they are seen."""
        return [signs(line) for line in self._lines]

    @overload
    def __getitem__(self, line_index: int) -> str: ...

    @overload
    def __getitem__(self, line_index: slice) -> list[str]: ...

    def __getitem__(self, line_index: int | slice) -> str | list[str]:
        """A line, or some, as seen."""
        found = self._lines[line_index]
        return signs(found) if isinstance(found, str) else [signs(line) for line in found]

    def get_size(self, tab_width: int) -> Size:
        """Width and height of what is seen, in cells."""
        seen = Document("")
        seen._lines = self.lines
        return seen.get_size(tab_width)

    def replace_range(self, start: Location, end: Location, text: str) -> EditResult:
        """Put ``text`` in the place of what is between two places."""
        (top, left), (bottom, right) = sorted((start, end))
        replaced = self.get_text_range((top, left), (bottom, right))
        before = self._lines[top][:left] if top < len(self._lines) else ""
        after = self._lines[bottom][right:] if bottom < len(self._lines) else ""
        new = text.split("\n")
        new[0] = before + new[0]
        column = len(new[-1])
        new[-1] += after
        self._lines[top : bottom + 1] = new
        return EditResult((top + len(new) - 1, column), replaced)


class PromptArea(TextArea):
    """A text area as high as its text, up to ``max-height``. What it holds is what was typed, pasted or shown."""

    takes_text = True
    typing_keys: ClassVar = [("⏎", "run"), ("^j", "new line"), ("esc", "leave")]
    # Textual's ctrl+z is the shell's here. What terminals send for ctrl+/ is ctrl+_.
    BINDINGS = [Binding("ctrl+underscore,ctrl+slash", "undo", "undo", show=False)]
    DEFAULT_CSS = """
    PromptArea {
        height: auto; max-height: 4; min-height: 1; width: 1fr; padding: 0 1; border: none;
        background: transparent; scrollbar-size-vertical: 1;
        &:focus { border: none; background: $panel; }
        & .text-area--cursor-line { background: transparent; }
    }
    """

    @dataclass
    class RunAsked(Message):
        """Enter: run this prompt."""

        prompt: str

    @dataclass
    class Left(Message):
        """Escape or a loss of focus: the prompt is this now."""

        prompt: str

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, show_line_numbers=False, soft_wrap=True, tab_behavior="focus", compact=True)
        self.highlight_cursor_line = False

    def _set_document(self, text: str, language: str | None) -> None:
        self.document = PromptDocument(text)
        self.wrapped_document = WrappedDocument(self.document, tab_width=self.indent_width)
        self.navigator = DocumentNavigator(self.wrapped_document)
        self.move_cursor((0, 0))
        self._rewrap_and_refresh_virtual_size()

    def show(self, prompt: str) -> None:
        """Show a prompt that came from elsewhere."""
        if prompt != self.text:
            self.text = prompt
            self.move_cursor(self.document.end)
        if not self.has_focus:
            self.call_after_refresh(self._to_the_beginning)

    def _to_the_beginning(self) -> None:
        """Whoever only reads begins at the first line."""
        if not self.has_focus:
            self.scroll_home(animate=False, force=True)

    def on_focus(self) -> None:
        """Whoever writes is where the cursor is."""
        self.call_after_refresh(self.scroll_cursor_visible)

    def put(self, text: str) -> None:
        """Put what was pasted elsewhere where the cursor is."""
        self._put("\n".join(lines_of(text)))

    async def _on_key(self, event: events.Key) -> None:
        match event.key:
            case "enter":
                event.stop()
                event.prevent_default()
                self.post_message(self.RunAsked(self.text))
            case "shift+enter" | "ctrl+j":
                event.stop()
                event.prevent_default()
                self.insert("\n")
            case "escape":
                event.stop()
                event.prevent_default()
                self.post_message(self.Left(self.text))
                self.screen.set_focus(None)
            case _ if character := typed(event):
                event.stop()
                event.prevent_default()
                self._put(character)

    def _put(self, text: str) -> None:
        self.move_cursor(self.replace(text, *self.selection, maintain_selection_offset=False).end_location)

    def _on_paste(self, event: events.Paste) -> None:  # type: ignore[override]
        event.stop()
        event.prevent_default()
        self.put(event.text)

    def on_blur(self) -> None:
        """Whoever leaves has said what they wanted."""
        self.post_message(self.Left(self.text))
        self.call_after_refresh(self._to_the_beginning)
