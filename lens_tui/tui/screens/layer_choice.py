"""A choice among layers by what was measured of each: a row with a bar and its figures for every layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog

__all__ = ["LayerChoice"]

Row = TypeVar("Row")


class LayerChoice(Dialog["int | None"], Generic[Row]):
    """Dismisses with the place of the layer chosen in ``layers``, or ``None`` on escape.

    Args:
        title: What is asked.
        note: What the bars and the figures are.
        layers: The rows, in the order shown.
        first: The place of the one that the cursor begins at.
        takes: What enter does.
    """

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose")]
    DEFAULT_CSS = """
    LayerChoice RowList { height: auto; max-height: 14; }
    LayerChoice .note { color: $muted; margin-bottom: 1; }
    LayerChoice .heading { color: $muted; }
    """

    def __init__(self, title: str, note: str, layers: Sequence[Row], *, first: int, takes: str) -> None:
        super().__init__()
        self._asked, self._note, self._layers, self._first, self._takes = title, note, tuple(layers), first, takes

    def compose(self) -> ComposeResult:
        """What the numbers are, the layers, the keys."""
        with Vertical(classes="dialog"):
            yield Static(Content(self._asked), classes="dialog-title")
            yield Static(Content(self._note), classes="note")
            yield Static(Content(self.heading()), classes="heading")
            yield RowList[Row](self.draw, id="layers")
            keys = [("⏎", f" {self._takes}   "), ("esc", " back to what was typed")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """The cursor on the best."""
        rows = self.query_one(RowList)
        rows.styles.height = min(len(self._layers), 14, max(3, self.app.size.height - 15))
        rows.show(self._layers, self._first)
        rows.focus()

    @abstractmethod
    def heading(self) -> str:
        """What stands over the columns."""

    @abstractmethod
    def draw(self, row: Row, width: int) -> list[Content]:
        """The line of a layer."""

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """The layer under the cursor."""
        self.dismiss(self.query_one(RowList).cursor)

    def action_cancel(self) -> None:
        """None of them."""
        self.dismiss(None)
