"""Jump labels: a letter on every pane and row in sight; the letter goes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from textual import events
from textual.app import ComposeResult
from textual.content import Content
from textual.geometry import Offset
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from lens_tui.tui.screens.form import Dialog
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.row_list import RowList

LETTERS = "asdfghjklqwertyuiopzxcvbnm"
"""The home row first."""


class JumpTarget(NamedTuple):
    """A place to go to: the cell its label is written at, and what goes there."""

    at: Offset
    go: Callable[[], object]


def targets(screen: Screen[Any]) -> list[JumpTarget]:
    """Every place in sight on a screen that can take the focus, from the top left on: rows of lists, panes, fields."""
    found: dict[Offset, JumpTarget] = {}
    for widget in screen.focus_chain:
        if not widget.region or not screen.region.overlaps(widget.region):
            continue
        for target in _rows(widget) if isinstance(widget, RowList) and widget.rows else _whole(widget):
            found.setdefault(target.at, target)
    return sorted(found.values(), key=lambda target: (target.at.y, target.at.x))


def _rows(widget: RowList[Any]) -> Iterator[JumpTarget]:
    """The rows of a list whose first line is in sight."""
    sight = widget.content_region
    first = -(-widget.scroll_offset.y // widget.row_height)
    for index in range(first, len(widget.rows)):
        y = index * widget.row_height - widget.scroll_offset.y
        if y >= sight.height:
            return
        yield JumpTarget(Offset(sight.x, sight.y + y), partial(_to_row, widget, index))


def _whole(widget: Widget) -> Iterator[JumpTarget]:
    """A pane at its title where the widget is alone in it, else the widget at its first cell."""
    pane = next((node for node in widget.ancestors if isinstance(node, Pane)), None)
    alone = pane is not None and sum(1 for other in widget.screen.focus_chain if pane in other.ancestors) == 1
    place = pane if pane is not None and alone else widget
    yield JumpTarget(place.region.offset, widget.focus)


def _to_row(widget: RowList[Any], index: int) -> None:
    widget.focus()
    widget.cursor = index


def names(count: int) -> list[str]:
    """As many labels: single letters, or, where those are too few, pairs of them; none begins another."""
    if count <= len(LETTERS):
        return list(LETTERS[:count])
    pairs = (first + second for first in LETTERS for second in LETTERS)
    return [label for label, _ in zip(pairs, range(count), strict=False)]


class JumpScreen(Dialog[None]):
    """Labels over the screen below. A label's letters go to its place, anything else closes.

    Args:
        below: the screen that shows.
    """

    DEFAULT_CSS = """
    JumpScreen { background: transparent; align: left top; }
    JumpScreen > Static {
        position: absolute; width: auto; height: 1; background: $accent; color: $background; text-style: bold;
    }
    """

    def __init__(self, below: Screen[Any]) -> None:
        super().__init__()
        places = targets(below)
        self._places = dict(zip(names(len(places)), places, strict=False))
        self._typed, self._below_size = "", below.size

    def compose(self) -> ComposeResult:
        """The labels."""
        for name, target in self._places.items():
            label = Static(Content(name))
            label.styles.offset = target.at
            yield label

    def on_key(self, event: events.Key) -> None:
        """A letter more of a label."""
        event.stop()
        self._typed += event.character or "\0"
        left = [name for name in self._places if name.startswith(self._typed)]
        if not left:
            self.dismiss()
        elif self._typed in self._places:
            go = self._places[self._typed].go
            self.dismiss()
            self.app.call_later(go)
        for label, name in zip(self.query(Static), self._places, strict=False):
            label.display = name.startswith(self._typed)

    def on_resize(self, event: events.Resize) -> None:
        """What is below moves with the terminal's size."""
        if event.size != self._below_size:
            self.dismiss()

    def on_click(self) -> None:
        """A click closes."""
        self.dismiss()
