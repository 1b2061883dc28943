"""The fields of a form: a line to write in, and one of a few words to choose.

A line takes what is pasted, whatever its lines, and shows signs for what a terminal would act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input

from lens_tui.records.sanitise import signs
from lens_tui.records.wording import in_one_line
from lens_tui.tui.bindings import bindings


def lines_of(pasted: str) -> list[str]:
    """The lines of a pasted text. Terminals send a line end as CR, in a bracketed paste too."""
    return pasted.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def typed(event: events.Key) -> str:
    """A character that was typed and that Textual takes for no text, or nothing.

    Joiners, marks of direction and blanks other than the plain one (U+3000, U+00A0) come from keyboards, input methods
    and pickers of emoji; Python calls them unprintable.
    """
    character = event.character or ""
    return character if len(character) == 1 and ord(character) >= 0xA0 and not character.isprintable() else ""


class Entry(Input):
    """An input whose value is what was typed or pasted, character for character.

    ``between`` is what stands in the place of a line end in what is pasted (``" | "`` where several texts can be
    given). Without it only the first line is taken, and a word says how many were left out.
    """

    @dataclass
    class Shortened(Message):
        """Not all that was pasted was taken; ``said`` is the sentence for it. Comes after ``Changed``."""

        said: str

    def __init__(
        self,
        value: str = "",
        *,
        placeholder: str = "",
        id: str | None = None,  # noqa: A002
        classes: str | None = None,
        select_on_focus: bool = True,
        between: str | None = None,
    ) -> None:
        super().__init__(value, placeholder=placeholder, id=id, classes=classes, select_on_focus=select_on_focus)
        self._between = between

    def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        lines = [line for line in lines_of(event.text) if line.strip()] or [event.text.strip("\r\n")]
        left_out = len(lines) - 1 if self._between is None else 0
        lines = lines[: len(lines) - left_out]
        # Separators inside the lines do not count.
        barred = len(lines) > 1 and "|" in (self._between or "")
        self._put(in_one_line(lines, self._between or "") if barred else (self._between or "").join(lines))
        if left_out:
            count = "1 line was" if left_out == 1 else f"{left_out} lines were"
            self.post_message(self.Shortened(f"This field takes one line; {count} left out."))

    async def _on_key(self, event: events.Key) -> None:
        if character := typed(event):
            event.stop()
            event.prevent_default()
            self._put(character)

    def _put(self, text: str) -> None:
        self.replace(text, *self.selection)

    # What is shown has a character for each of the value's, so that only widths have to be asked of it.

    def _seen(self) -> str:
        return signs(self.value).replace("\n", "⏎").replace("\t", "⇥")

    @property
    def _value(self) -> Text:
        return Text(self._seen(), no_wrap=True, overflow="ignore", end="")

    def _position_to_cell(self, position: int) -> int:
        return cell_len(self._seen()[:position])

    def _cell_offset_to_index(self, offset: int) -> int:
        cells, wanted = 0, offset + self.scroll_offset.x
        for index, character in enumerate(self._seen()):
            cells += cell_len(character)
            if wanted < cells:
                return index
        return len(self.value)


class Pick(Widget, can_focus=True):
    """Choose with left and right; enter posts :class:`Submitted`. ``value`` is the word chosen."""

    BINDINGS = [*bindings("move"), ("enter", "submit", "done"), ("space", "cursor_right", "next")]
    DEFAULT_CSS = "Pick { height: 1; width: 1fr; padding: 0 1; } Pick:focus { background: $panel; }"

    place: reactive[int] = reactive(0)

    @dataclass
    class Submitted(Message):
        """Enter was pressed."""

        pick: Pick

    def __init__(self, options: Sequence[str], value: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.options = tuple(options)
        self.set_reactive(Pick.place, self.options.index(value) if value in self.options else 0)

    @property
    def value(self) -> str:
        """The option chosen."""
        return self.options[self.place]

    def render(self) -> RenderResult:
        """The word between two arrows, and which of how many it is."""
        count = f"   {self.place + 1} of {len(self.options)}" if self.has_focus else ""
        return Content.assemble(("◂ ", "$accent"), (self.value, "bold"), (" ▸", "$accent"), (count, "$muted"))

    def on_focus(self) -> None:
        """Say how many there are."""
        self.refresh()

    def on_blur(self) -> None:
        """And no more."""
        self.refresh()

    def action_cursor_right(self) -> None:
        """The next one."""
        self.place = (self.place + 1) % len(self.options)

    def action_cursor_left(self) -> None:
        """The one before."""
        self.place = (self.place - 1) % len(self.options)

    def action_cursor_down(self) -> None:
        """The next field."""
        self.screen.focus_next()

    def action_cursor_up(self) -> None:
        """The field before."""
        self.screen.focus_previous()

    def action_first(self) -> None:
        """The first."""
        self.place = 0

    def action_last(self) -> None:
        """The last."""
        self.place = len(self.options) - 1

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There are no pages of options."""
        return action not in ("page_down", "page_up")

    def action_submit(self) -> None:
        """Enter."""
        self.post_message(self.Submitted(self))

    def on_click(self) -> None:
        """A click chooses the next one."""
        self.action_cursor_right()
