"""A list of rows drawn line by line, with a cursor: quick at any length, because only what shows is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.style import Style as RichStyle
from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

from lens_tui.tui.bindings import bindings

Row = TypeVar("Row")
Draw = Callable[[Row, int], Sequence[Content]]
"""Given a row and the width, the row's lines: at most ``row_height`` of them."""

CURSOR, NO_CURSOR = "▸ ", "  "


class RowList(ScrollView, Generic[Row], can_focus=True):
    """Rows of any kind; ``draw`` turns one into lines of :class:`Content`.

    Textual's ``OptionList`` makes an object for each row and lays all of them out: showing 5,000 rows of two lines
    anew takes some hundred times as long, and lists here are shown anew with every letter of a filter. It has no row
    height of its own either, which changes here with the height of the terminal.

    Moves with the ``move`` keys and the mouse. Posts :class:`Moved` when the
    cursor goes to another row and :class:`Chosen` on a second click of the row.
    """

    BINDINGS = bindings("move")
    COMPONENT_CLASSES = {"row-list--cursor"}
    DEFAULT_CSS = """
    RowList { background: transparent; scrollbar-size-vertical: 1; overflow-x: hidden; }
    RowList > .row-list--cursor { text-style: bold; }
    RowList:focus > .row-list--cursor { background: $panel; text-style: bold; }
    """

    cursor: reactive[int] = reactive(0, repaint=False)

    @dataclass
    class Moved(Message):
        """The cursor is on another row, or the rows changed under it."""

        row_list: RowList[object]

        @property
        def control(self) -> RowList[object]:
            """The list."""
            return self.row_list

    @dataclass
    class Chosen(Message):
        """The row under the cursor was clicked."""

        row_list: RowList[object]

        @property
        def control(self) -> RowList[object]:
            """The list."""
            return self.row_list

    def __init__(
        self,
        draw: Draw[Row],
        *,
        row_height: int = 1,
        empty: str = "",
        caret: bool = True,
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self.caret = caret
        self._draw, self._row_height, self.empty = draw, row_height, empty
        self._rows: Sequence[Row] = ()

    @property
    def row_height(self) -> int:
        """Lines to a row; may be set at any time."""
        return self._row_height

    @row_height.setter
    def row_height(self, value: int) -> None:
        if value != self._row_height:
            self._row_height = value
            self.show(self._rows)

    @property
    def rows(self) -> Sequence[Row]:
        """The rows shown."""
        return self._rows

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if 0 <= self.cursor < len(self._rows) else None

    def show(self, rows: Sequence[Row], cursor: int | None = None) -> None:
        """Show these rows; the cursor stays where it is unless moved, and within them."""
        self._rows = rows
        target = max(0, min(self.cursor if cursor is None else cursor, len(rows) - 1))
        self.virtual_size = Size(0, max(1, len(rows)) * self.row_height)
        if target == self.cursor:
            self.post_message(self.Moved(self))  # type: ignore[arg-type]
        self.cursor = target
        self._keep_in_sight()
        self.refresh()

    def watch_cursor(self, old: int, new: int) -> None:
        """Repaint the two rows concerned and keep the cursor in sight."""
        for index in (old, new):
            self.refresh_lines(index * self.row_height, self.row_height)
        self._keep_in_sight()
        self.post_message(self.Moved(self))  # type: ignore[arg-type]

    def validate_cursor(self, value: int) -> int:
        """Stay within the rows."""
        return max(0, min(value, len(self._rows) - 1))

    def on_resize(self) -> None:
        """A new size may have pushed the cursor out of sight."""
        self._keep_in_sight()

    def on_focus(self) -> None:
        """The cursor row is drawn stronger while focused."""
        self.refresh()

    def on_blur(self) -> None:
        """And weaker afterwards."""
        self.refresh()

    def _keep_in_sight(self) -> None:
        if self.is_mounted and self.size.height:
            self.scroll_to_region(
                Region(0, self.cursor * self.row_height, 1, self.row_height), animate=False, force=True
            )

    def render_line(self, y: int) -> Strip:
        """One line of one row."""
        width = self.scrollable_content_region.width  # what a scrollbar leaves
        index, part = divmod(y + self.scroll_offset.y, self.row_height)
        if not self._rows:
            return self._empty_line(y, width)
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        lines = self._draw(self._rows[index], width - len(CURSOR))
        here = index == self.cursor and self.caret
        lead = (CURSOR if here and part == 0 else NO_CURSOR, "$accent" if self.has_focus else "$muted")
        line = lines[part] if part < len(lines) else Content("")
        style = self.get_component_rich_style("row-list--cursor", partial=True) if here and part < len(lines) else None
        return self._strip(Content.assemble(lead, line), width, style)

    def _empty_line(self, y: int, width: int) -> Strip:
        """What stands in place of rows, in as many lines as it takes: the key it names must not be cut off."""
        lines = Content.styled(self.empty, "$muted").wrap(max(1, width)) if self.empty else []
        return self._strip(lines[y], width) if y < len(lines) else Strip.blank(width, self.rich_style)

    def _strip(self, content: Content, width: int, style: RichStyle | None = None) -> Strip:
        cut = content.truncate(width, ellipsis=True, pad=True)
        strips = Visual.to_strips(self, cut, width, 1, self.visual_style, pad=True)
        strip = strips[0] if strips else Strip.blank(width, self.rich_style)
        return strip.apply_style(style) if style else strip

    def action_cursor_down(self) -> None:
        """One row down."""
        self.cursor += 1

    def action_cursor_up(self) -> None:
        """One row up."""
        self.cursor -= 1

    def go_round(self, step: int) -> None:
        """The next row, or the one before with ``step`` -1; after the last comes the first."""
        if self._rows:
            self.cursor = (self.cursor + step) % len(self._rows)

    def action_first(self) -> None:
        """The first row."""
        self.cursor = 0

    def action_last(self) -> None:
        """The last row."""
        self.cursor = len(self._rows) - 1

    def action_page_down(self) -> None:
        """Half a page down."""
        self.cursor += self._half_page

    def action_page_up(self) -> None:
        """Half a page up."""
        self.cursor -= self._half_page

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A list has no left and right: those keys are free for what is around it."""
        return action not in ("cursor_left", "cursor_right")

    @property
    def _half_page(self) -> int:
        return max(1, self.size.height // self.row_height // 2)

    def on_click(self, event: events.Click) -> None:
        """A click moves the cursor; a click where it already is chooses."""
        index = (event.y + self.scroll_offset.y) // self.row_height
        if not 0 <= index < len(self._rows):
            return
        if index == self.cursor:
            self.post_message(self.Chosen(self))  # type: ignore[arg-type]
        self.cursor = index
