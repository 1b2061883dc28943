"""The nodes of an attribution graph in rows of layers and columns of tokens, with a cursor that goes among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.records.sanitise import one_line
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import BARS, DIGITS, fit
from lens_tui.tui.graph_text import GraphLayout

from .heat_grid import window_start

NAME, CELL, WIDEST, TALLEST = 4, 7, 24, 4
Span = str | tuple[str, str]


class GraphMap(Widget, can_focus=True):
    """A glyph a node; those that act on the node under the cursor, or that it acts on, stand out by their edge's sign.

    Row 0, the embeddings, is at the bottom. Posts :class:`Moved` when the cursor goes to another node, also when
    :meth:`show` puts another graph under it. In the modes ``bars`` and ``digits`` a glyph says how much influence its
    node has, not of what kind it is.
    """

    BINDINGS = bindings("move")
    DEFAULT_CSS = "GraphMap { height: 1fr; }"

    node: reactive[int] = reactive(-1)
    mode: reactive[str] = reactive("tint")
    empty: reactive[str] = reactive("")

    @dataclass
    class Moved(Message):
        """The cursor is on another node."""

        map: GraphMap

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.layout_of: GraphLayout | None = None
        self._linked: Mapping[int, float] = {}
        self._left = self._low = 0

    @property
    def blank(self) -> bool:
        """Whether there is nothing to show."""
        return self.layout_of is None or not self.layout_of.graph.nodes

    def show(self, layout: GraphLayout | None, node: int = 0) -> None:
        """Show a graph, the cursor on one of its nodes."""
        self.layout_of = layout
        self.set_reactive(GraphMap.node, -1)
        self.node = node
        if self.blank:
            self._linked = {}
        self.refresh()
        self.post_message(self.Moved(self))

    def validate_node(self, value: int) -> int:
        """Stay within the nodes."""
        count = 0 if self.layout_of is None else len(self.layout_of.graph.nodes)
        return max(0 if count else -1, min(value, count - 1))

    def watch_node(self) -> None:
        """Find what it is joined to, and tell."""
        if self.layout_of is not None and not self.blank:
            graph = self.layout_of.graph
            self._linked = dict([*graph.into(self.node), *graph.out_of(self.node)])
        self.post_message(self.Moved(self))

    # -- drawing -----------------------------------------------------------------------------------------

    @property
    def _columns(self) -> int:
        return len(self.layout_of.graph.tokens) if self.layout_of else 0

    @property
    def cell(self) -> int:
        """Cells of the screen to a column."""
        shown = max(1, min(self._columns, (self.size.width - NAME) // CELL))
        return max(CELL, min(WIDEST, (self.size.width - NAME) // shown))

    @property
    def across(self) -> int:
        """How many columns fit."""
        return max(1, (self.size.width - NAME) // self.cell)

    @property
    def tall(self) -> int:
        """Rows of the screen to a row of the graph: more than one only where all of them fit."""
        rows = len(self.layout_of.rows) if self.layout_of else 1
        return max(1, min(TALLEST, (self.size.height - 1) // rows))

    @property
    def down(self) -> int:
        """How many rows fit."""
        return max(1, (self.size.height - 1) // self.tall)

    def render(self) -> RenderResult:
        """The part of the graph around the cursor."""
        layout = self.layout_of
        if layout is None or self.blank:
            return Content.styled(self.empty, "$muted")
        here = (layout.row(self.node), layout.graph.nodes[self.node].position)
        self._left = window_start(self._left, here[1], self.across, self._columns)
        self._low = window_start(self._low, here[0], self.down, len(layout.rows))
        columns = range(self._left, min(self._left + self.across, self._columns))
        parts: list[Span] = [" " * NAME]
        for column in columns:
            text = one_line(layout.graph.tokens[column].replace(" ", "·"), WIDEST)
            parts += [(fit(text, self.cell - 1), "bold" if column == here[1] else "$muted"), " "]
        for row in reversed(range(self._low, min(self._low + self.down, len(layout.rows)))):
            for line in range(self.tall):
                name = layout.rows[row] if line == 0 else ""
                parts += ["\n", (fit(name, NAME), "bold" if row == here[0] else "$muted")]
                for column in columns:
                    parts += self._line(layout, row, column, line)
        return Content.assemble(*parts)

    def _line(self, layout: GraphLayout, row: int, column: int, line: int) -> list[Span]:
        """One line of one place: as many of its nodes as have room, and how many have none."""
        nodes, width = layout.cells.get((row, column), ()), self.cell - 1
        shown = self.nodes_in(row, column)
        mine = shown[line * width : (line + 1) * width]
        parts: list[Span] = [(self._glyph(layout, node), self._style(layout, node)) for node in mine]
        used = len(mine)
        more = len(nodes) - len(shown)
        if more and line == self.tall - 1:
            text = f"+{more}"[: width - used]
            parts.append((text, "$muted"))
            used += len(text)
        return [*parts, " " * (self.cell - used)]

    def nodes_in(self, row: int, column: int) -> list[int]:
        """The nodes of a place that have room in it: those with the most influence, and the one under the cursor."""
        layout = self.layout_of
        if layout is None:
            return []
        nodes, room = list(layout.cells.get((row, column), ())), self.tall * (self.cell - 1)
        if len(nodes) <= room:
            return nodes
        kept = nodes[: room - 3]
        return [*kept[:-1], self.node] if self.node in nodes[room - 3 :] else kept

    def _glyph(self, layout: GraphLayout, node: int) -> str:
        if self.mode in ("bars", "digits"):
            return (BARS if self.mode == "bars" else DIGITS)[layout.level(node)]
        return layout.glyph(node)

    def _style(self, layout: GraphLayout, node: int) -> str:
        if node == self.node:
            return "bold reverse"
        weight = self._linked.get(node)
        if weight is not None and self.mode != "off":
            return f"bold {'$sign-pos' if weight > 0 else '$sign-neg'}"
        return "bold" if weight is not None else "" if layout.level(node) >= 4 else "$muted"

    # -- moving ------------------------------------------------------------------------------------------

    def _along(self, step: int) -> None:
        if self.layout_of is not None and not self.blank:
            row = self.layout_of.in_row(self.layout_of.row(self.node))
            self.node = row[max(0, min(row.index(self.node) + step, len(row) - 1))]

    def action_cursor_left(self) -> None:
        """The node before in this row."""
        self._along(-1)

    def action_cursor_right(self) -> None:
        """The next node in this row."""
        self._along(1)

    def action_first(self) -> None:
        """The first node of this row."""
        self._along(-len(self.layout_of.graph.nodes) if self.layout_of else 0)

    def action_last(self) -> None:
        """The last node of this row."""
        self._along(len(self.layout_of.graph.nodes) if self.layout_of else 0)

    def _rise(self, step: int) -> None:
        """To the next row that has nodes: those at the same token first, then those at the nearest one."""
        layout = self.layout_of
        if layout is None or self.blank:
            return
        row, column = layout.row(self.node) + step, layout.graph.nodes[self.node].position
        while 0 <= row < len(layout.rows):
            places = [place for at, place in layout.cells if at == row]
            if places:
                self.node = layout.cells[row, min(places, key=lambda place: (abs(place - column), place))][0]
                return
            row += 1 if step > 0 else -1

    def action_cursor_up(self) -> None:
        """A layer later."""
        self._rise(1)

    def action_cursor_down(self) -> None:
        """A layer earlier."""
        self._rise(-1)

    def action_page_up(self) -> None:
        """Some layers later."""
        for _ in range(max(1, self.down // 2)):
            self._rise(1)

    def action_page_down(self) -> None:
        """Some layers earlier."""
        for _ in range(max(1, self.down // 2)):
            self._rise(-1)

    def on_click(self, event: events.Click) -> None:
        """A click goes to the node under it."""
        if self.layout_of is None or self.blank or event.y < 1 or event.x < NAME:
            return
        rows = min(self.down, len(self.layout_of.rows) - self._low)
        below, line = divmod(event.y - 1, self.tall)
        column, place = divmod(event.x - NAME, self.cell)
        shown = self.nodes_in(self._low + rows - 1 - below, self._left + column)
        at = line * (self.cell - 1) + place
        if below < rows and place < self.cell - 1 and at < len(shown):
            self.node = shown[at]
