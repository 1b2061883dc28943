"""One line to write in: takes what is pasted, whatever its lines, and shows signs for what a terminal would act on."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widgets import Input

from lens_tui.records.sanitise import signs


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
        sign = (self._between or "").strip()
        if sign and len(lines) > 1:  # the lines' own separators are no separators
            lines = [line.replace(sign, f"\\{sign}") for line in lines]
        self._put((self._between or "").join(lines))
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
