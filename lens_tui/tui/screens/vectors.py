"""Choose a vector of the user's own folder or of the bundled model, or say that it is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records.sanitise import one_line
from lens_tui.records.vectors import RankedLayer
from lens_tui.tui.format import figure, fit, fit_left
from lens_tui.tui.widgets.ramps import bar
from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog

if TYPE_CHECKING:
    from lens_tui.demo import ReadyVector
    from lens_tui.records.vector_folder import VectorFile


Row = tuple[str, str, str]
"""A file's path, what to call it, and a word on it; without a path: another file."""


class VectorFileScreen(Dialog["str | None"]):
    """Dismisses with the path chosen, with ``""`` for a file elsewhere, or with ``None`` on escape."""

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose"), ("slash", "other", "another file")]
    DEFAULT_CSS = """
    VectorFileScreen RowList { height: auto; max-height: 18; }
    """

    def __init__(self, ready: Sequence[ReadyVector] = ()) -> None:
        super().__init__()
        self._ready = tuple(ready)

    def compose(self) -> ComposeResult:
        """The list and the keys."""
        with Vertical(classes="dialog"):
            yield Static("Vector files", classes="dialog-title")
            yield RowList[Row](_draw, empty="…")
            keys = [("⏎", " choose   "), ("/", " another file   "), ("esc", " leave it")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """Look without holding up the screen."""
        self.query_one(RowList).focus()
        self._look()

    @work(thread=True, exit_on_error=False)
    def _look(self) -> None:
        from lens_tui.records.vector_folder import list_vectors

        rows = [(str(file.path), one_line(file.path.stem, 60), _word(file)) for file in list_vectors()]
        rows += [(str(ready.path), ready.name, _ready(ready)) for ready in self._ready]
        self.app.call_from_thread(self._show, rows)

    def _show(self, rows: list[Row]) -> None:
        if self.is_mounted:
            shown = [*rows, ("", "another file …", "type its path")]
            listed = self.query_one(RowList)
            listed.styles.height = min(len(shown), 18)
            listed.show(shown, 0)

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """The file under the cursor; one that cannot be read says why when it is loaded."""
        row = self.query_one(RowList).row
        if row is not None:
            self.dismiss(row[0])

    def action_other(self) -> None:
        """A file elsewhere."""
        self.dismiss("")

    def action_cancel(self) -> None:
        """None."""
        self.dismiss(None)


def _word(file: VectorFile) -> str:
    if file.vector is None:
        # The whole sentence, and fields to answer it, come when it is chosen.
        return (
            "cannot be read" if "cannot be read" in file.problem else "of several vectors, or for a layer to be given"
        )
    made_for = f" of {one_line(file.vector.model, 60)}" if file.vector.model else ""
    return f"{file.vector.site} {file.vector.layer}{made_for}"


def _ready(vector: ReadyVector) -> str:
    return f"scale {vector.scale:g} · {vector.says}"


def _draw(row: Row, width: int) -> list[Content]:
    name = max(12, width * 2 // 5)
    return [Content.assemble(fit(row[1], name), (fit_left(row[2], width - name), "$muted"))]


_NOTE = (
    "Bars: AUC of held-out pairs, the chance that a text toward lies further along the direction than one away; "
    "half is chance. d′: distance of the two means in standard deviations. Gap: distance of the means."
)
_NONE_HELD = "Too few pairs to hold any out: the layers are ranked by the gap of the means over ‖h‖, which says less."


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
