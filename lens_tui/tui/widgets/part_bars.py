"""What each layer adds to a logit: a row of figures and bars for each, the last layer above."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.records.measures import LogitAttribution
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import fit
from lens_tui.tui.parts_text import Span, columns_of, head_line, largest, layer_line, layer_parts

NAME, WIDEST, TALLEST = 6, 34, 3
FAR = 1 << 20


class PartBars(Widget, can_focus=True):
    """Layers from bottom to top. Posts :class:`Step` for where the cursor is to go, and shows what it is given."""

    BINDINGS = bindings("move")
    DEFAULT_CSS = "PartBars { height: 1fr; }"

    row: reactive[int] = reactive(0)
    empty: reactive[str] = reactive("")

    @dataclass
    class CursorMove(Message):
        """The cursor is to go so many layers up and so many tokens to the right."""

        layers: int
        tokens: int

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._parts: LogitAttribution | None = None
        self._top = 0

    def show(self, parts: LogitAttribution | None, empty: str = "") -> None:
        """Show a logit taken apart; or, with ``None``, a sentence."""
        self._parts, self.empty = parts, empty
        self.refresh()

    def render(self) -> RenderResult:
        """The layers around the cursor, the one there marked."""
        parts = self._parts
        if parts is None:
            return Content.styled(self.empty, "$muted")
        layers = layer_parts(parts)[::-1]
        columns, limit = columns_of(layers, self.size.width - NAME), largest(parts)
        width = max(NAME, min(WIDEST, (self.size.width - NAME) // len(columns)))
        tall = self._tall(len(layers))
        room = max(1, (self.size.height - 1) // tall)
        here = next((place for place, row in enumerate(layers) if row.layer == self.row), 0)
        self._top = max(0, min(max(self._top, here - room + 1), here, len(layers) - room))
        spans: list[Span] = [" " * NAME, *head_line(columns, width)]
        for row in layers[self._top : self._top + room]:
            marked = row.layer == self.row
            name = fit(f"{'▸' if marked else ' '}L{row.layer}", NAME)
            spans += ["\n", (name, "bold" if marked else "$muted"), *layer_line(row, columns, limit, width)]
            spans.append("\n" * (tall - 1))
        return Content.assemble(*spans)

    def _tall(self, count: int) -> int:
        """Rows of the screen to a layer: more than one only where all of them fit."""
        return max(1, min(TALLEST, (self.size.height - 1) // max(1, count)))

    def on_click(self, event: events.Click) -> None:
        """A click goes to the layer under it."""
        if self._parts is None or event.y < 1:
            return
        layers = layer_parts(self._parts)[::-1]
        place = self._top + (event.y - 1) // self._tall(len(layers))
        if place < len(layers):
            self.post_message(self.CursorMove(layers[place].layer - self.row, 0))

    def action_cursor_up(self) -> None:
        """A layer later."""
        self.post_message(self.CursorMove(1, 0))

    def action_cursor_down(self) -> None:
        """A layer earlier."""
        self.post_message(self.CursorMove(-1, 0))

    def action_cursor_left(self) -> None:
        """The logit after the token before."""
        self.post_message(self.CursorMove(0, -1))

    def action_cursor_right(self) -> None:
        """The logit after the next token."""
        self.post_message(self.CursorMove(0, 1))

    def action_first(self) -> None:
        """After the first token."""
        self.post_message(self.CursorMove(0, -FAR))

    def action_last(self) -> None:
        """After the last token."""
        self.post_message(self.CursorMove(0, FAR))

    def action_page_up(self) -> None:
        """Some layers up."""
        self.post_message(self.CursorMove(max(1, self.size.height // 2), 0))

    def action_page_down(self) -> None:
        """Some layers down."""
        self.post_message(self.CursorMove(-max(1, self.size.height // 2), 0))
