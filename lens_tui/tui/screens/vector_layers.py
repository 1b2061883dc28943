"""Choose the layer of a vector from contrasting texts: the layers, best first, with how well each tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.tui.format import figure, fit_left
from lens_tui.tui.screens.dialog import Dialog
from lens_tui.tui.widgets.ramps import bar
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.making import RankedLayer

_NOTE = (
    "Bars: AUC of held-out pairs, the chance that a text toward lies further along the direction than one away; "
    "half is chance. d′: distance of the two means in standard deviations. Gap: distance of the means."
)
_NONE_HELD = "Too few pairs to hold any out: the layers stand by the gap of the means over ‖h‖, which says less."


class LayersScreen(Dialog["int | None"]):
    """Dismisses with the place of the layer chosen in ``layers``, or ``None`` on escape."""

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose")]
    DEFAULT_CSS = """
    LayersScreen RowList { height: auto; max-height: 14; }
    LayersScreen .note { color: $muted; margin-bottom: 1; }
    LayersScreen .heading { color: $muted; }
    """

    def __init__(self, name: str, layers: Sequence[RankedLayer], n_pairs: int) -> None:
        super().__init__()
        self._name, self._layers, self._n = name, tuple(layers), n_pairs
        self._held = any(row.auc is not None for row in self._layers)

    def compose(self) -> ComposeResult:
        """What the numbers are, the layers, the keys."""
        pairs = f"{self._n} pair{'s' if self._n != 1 else ''}"
        with Vertical(classes="dialog"):
            yield Static(Content(f"{self._name}: which layer?  ({pairs})"), classes="dialog-title")
            yield Static(Content(_NOTE if self._held else _NONE_HELD), classes="note")
            yield Static(Content(self._heading()), classes="heading")
            yield RowList[RankedLayer](self._draw, id="layers")
            keys = [("⏎", " take the layer   "), ("esc", " back to what was typed")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """The best one first."""
        rows = self.query_one(RowList)
        rows.styles.height = min(len(self._layers), 14, max(3, self.app.size.height - 15))
        rows.show(self._layers, 0)
        rows.focus()

    def _heading(self) -> str:
        return "  layer" + " " * 24 + ("    AUC      d′      gap" if self._held else "    gap   of ‖h‖")

    def _draw(self, row: RankedLayer, width: int) -> list[Content]:
        share = 2 * (row.auc - 0.5) if row.auc is not None else self._share(row)
        parts: list[str | tuple[str, str]] = [fit_left(str(row.vector.layer), 5), "  "]
        parts.append((bar(share, 20).ljust(22), "$heat-5"))
        if self._held:
            parts.append(f"{figure(row.auc, 3):>7}{figure(row.d_prime, 2):>8}{row.gap:>9.3g}")
        else:
            parts.append(f"{row.gap:>7.3g}{figure(row.relative, 3):>9}")
        return [Content.assemble(*parts)]

    def _share(self, row: RankedLayer) -> float:
        most = max((other.relative or 0.0) for other in self._layers)
        return (row.relative or 0.0) / most if most else 0.0

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """The layer under the cursor."""
        self.dismiss(self.query_one(RowList).cursor)

    def action_cancel(self) -> None:
        """None of them."""
        self.dismiss(None)
