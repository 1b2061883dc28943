"""A grid of short texts, each shaded by a level: rows are layers, columns are tokens. Draws only what shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import BARS, DIGITS, fit, leading_dot

CELL, WIDEST = 9, 19
"""Cells to a column at least and at most, the gap after it included."""
TALLEST = 3
"""Rows of the screen to a row of the grid at most."""
NAME = 5
CURSOR = "bold reverse $cursor on $cursor-text"
"""Reversed, so that it shows too where there are no colours or only the terminal's own."""

Span = str | tuple[str, str]


class HeatGrid(Widget, can_focus=True):
    """Cells of ``(text, level)`` under a row of column heads, with a cursor.

    Row 0 is at the bottom, as layers are read. Posts :class:`Moved` when the cursor goes to another cell, also when
    :meth:`show` puts other cells under it. Where there is room, columns are wider and rows have a second line, for
    details, and a third, for calm. ``cell`` is the least width of a column with the gap after it. The corner says how
    many columns are out of sight.
    ``mode`` is how levels show: ``tint``, ``bars``, ``digits`` or ``off``.
    """

    BINDINGS = bindings("move")
    DEFAULT_CSS = "HeatGrid { height: 1fr; }"

    row: reactive[int] = reactive(0)
    column: reactive[int] = reactive(0)
    mode: reactive[str] = reactive("tint")
    empty: reactive[str] = reactive("")

    @dataclass
    class Moved(Message):
        """The cursor is on another cell, or there are other cells under it."""

        grid: HeatGrid

        @property
        def control(self) -> HeatGrid:
            """The grid."""
            return self.grid

    def __init__(self, *, empty: str = "", cell: int = CELL, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._cell_least = cell
        self.set_reactive(HeatGrid.empty, empty)
        self._heads: Sequence[str] = ()
        self._names: Sequence[str] = ()
        self._cells: Sequence[Sequence[tuple[str, int]]] = ()
        self._details: Sequence[Sequence[str]] = ()
        self._left = self._low = 0

    @property
    def blank(self) -> bool:
        """Whether there is nothing to show."""
        return not self._names or not self._heads

    def show(
        self,
        heads: Sequence[str],
        names: Sequence[str],
        cells: Sequence[Sequence[tuple[str, int]]],
        details: Sequence[Sequence[str]] = (),
    ) -> None:
        """Show a grid of ``cells[row][column]``; the cursor stays where it is, and within it.

        Args:
            heads: What is above each column.
            names: What is before each row.
            cells: Text and level of each cell.
            details: A text for the second line of each cell, where there is room for one.
        """
        self._heads, self._names, self._cells, self._details = heads, names, cells, details
        self.row, self.column = self.row, self.column  # within the new bounds
        self.refresh()
        self.post_message(self.Moved(self))

    def move_to(self, row: int, column: int) -> None:
        """Put the cursor on a cell."""
        self.row, self.column = row, column

    def validate_row(self, value: int) -> int:
        """Stay within the rows."""
        return max(0, min(value, len(self._names) - 1))

    def validate_column(self, value: int) -> int:
        """Stay within the columns."""
        return max(0, min(value, len(self._heads) - 1))

    def watch_row(self) -> None:
        """Tell."""
        self.post_message(self.Moved(self))

    def watch_column(self) -> None:
        """Tell."""
        self.post_message(self.Moved(self))

    @property
    def across(self) -> int:
        """How many columns fit."""
        return max(1, (self.size.width - NAME) // self._cell_least)

    @property
    def cell_width(self) -> int:
        """Cells to a column: all that there is for the columns that show, within bounds."""
        shown = max(1, min(self.across, len(self._heads)))
        return max(self._cell_least, min(WIDEST, (self.size.width - NAME) // shown))

    @property
    def tall(self) -> int:
        """Rows of the screen to a row of the grid: more than one only where all of them fit."""
        if not self._details or not self._names:
            return 1
        return max(1, min(TALLEST, (self.size.height - 1) // len(self._names)))

    @property
    def down(self) -> int:
        """How many rows fit below the heads."""
        return max(1, (self.size.height - 1) // self.tall)

    def render(self) -> RenderResult:
        """The part of the grid around the cursor."""
        if self.blank:
            return Content.styled(self.empty, "$muted")
        self._left = window_start(self._left, self.column, self.across, len(self._heads))
        self._low = window_start(self._low, self.row, self.down, len(self._names))
        columns = range(self._left, min(self._left + self.across, len(self._heads)))
        parts: list[Span] = [(fit(_beyond(columns.start, len(self._heads) - columns.stop), NAME), "$muted")]
        for column in columns:
            style = "bold" if column == self.column else "$muted"
            parts += [(fit(leading_dot(self._heads[column]), self.cell_width - 1), style), " "]
        for row in reversed(range(self._low, min(self._low + self.down, len(self._names)))):
            for line in range(self.tall):
                name = self._names[row] if line == 0 else ""
                parts += ["\n", (fit(name, NAME), "bold" if row == self.row else "$muted")]
                for column in columns:
                    parts += [self._cell(row, column, line), " "]
        return Content.assemble(*parts)

    def _cell(self, row: int, column: int, line: int) -> Span:
        text, level = self._cells[row][column]
        here = row == self.row and column == self.column
        if line:
            text = self._details[row][column] if line == 1 else ""
        if self.mode in ("bars", "digits") and line == 0:
            glyph = (BARS if self.mode == "bars" else DIGITS)[level]
            cell, style = fit(leading_dot(text), self.cell_width - 2) + glyph, ""
        else:
            cell = fit(leading_dot(text), self.cell_width - 1)
            style = f"$heat-text-{level} on $heat-{level}" if level and self.mode == "tint" else ""
        return (cell, CURSOR if here else style) if here or style else cell

    def action_cursor_up(self) -> None:
        """A layer later: later layers are above."""
        self.row += 1

    def action_cursor_down(self) -> None:
        """A layer earlier."""
        self.row -= 1

    def action_cursor_left(self) -> None:
        """The token before."""
        self.column -= 1

    def action_cursor_right(self) -> None:
        """The token after."""
        self.column += 1

    def action_first(self) -> None:
        """The first token."""
        self.column = 0

    def action_last(self) -> None:
        """The last token."""
        self.column = len(self._heads) - 1

    def action_page_up(self) -> None:
        """Half the rows up."""
        self.row += max(1, self.down // 2)

    def action_page_down(self) -> None:
        """Half the rows down."""
        self.row -= max(1, self.down // 2)

    def on_click(self, event: events.Click) -> None:
        """A click goes to the cell under it."""
        if not self.blank and event.y >= 1 and event.x >= NAME:
            rows = min(self.down, len(self._names) - self._low)
            below = (event.y - 1) // self.tall
            if below < rows:
                self.move_to(self._low + rows - 1 - below, self._left + (event.x - NAME) // self.cell_width)


def window_start(start: int, cursor: int, room: int, count: int) -> int:
    """The first of ``room`` places to show: as before, moved no further than the cursor needs."""
    start = min(max(start, cursor - room + 1), cursor)
    return max(0, min(start, count - room))


def _beyond(before: int, behind: int) -> str:
    """How many columns are out of sight on each side: ``‹2 3›``; only that there are where the numbers have no room."""
    parts = [part for part in (f"‹{before}" * (before > 0), f"{behind}›" * (behind > 0)) if part]
    text = " ".join(parts)
    if len(text) <= NAME:
        return text
    return "‹ ›" if len(parts) > 1 else "‹…" if before else "…›"
