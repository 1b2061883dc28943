"""Steer: the vector bench. Directions, their layers, scales and arms, and what each direction does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import Positions
from lens_tui.records.modes import MODES, POSITIONS, mode_of, positions_of, positions_text
from lens_tui.records.sanitise import one_line
from lens_tui.tui.keys.bindings import bindings
from lens_tui.tui.screens.base import LensScreen
from lens_tui.tui.screens.form import Field, FormScreen, filled, number, whole
from lens_tui.tui.screens.steer_add import AddActions
from lens_tui.tui.screens.steer_details import bench_row, direction
from lens_tui.tui.screens.steer_dose import DoseActions
from lens_tui.tui.session import MAX_ARMS, Session, Steer
from lens_tui.tui.widgets.dose_chart import DoseChart
from lens_tui.tui.widgets.pane import Pane
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.tui.widgets.rules import Divider


class SteerScreen(AddActions, DoseActions, LensScreen):
    """The rows of the bench on the left, the direction under the cursor on the right, its dose-response below."""

    mode: ClassVar[str] = "steer"
    CSS_PATH = "steer.tcss"
    BINDINGS = bindings("steer")

    def body(self) -> ComposeResult:
        """Bench, dose and direction."""
        with Vertical(id="left"):
            yield Pane("Vectors", RowList[Steer](bench_row, row_height=2, id="rows"), id="bench")
            yield Divider(id="dose-rule")
            with Pane("Dose", id="dose"):
                yield DoseChart(id="chart")
                yield VerticalScroll(Static("", id="dose-facts"), can_focus=False)
        yield Divider(id="rule")
        with Pane("Direction", id="direction"), VerticalScroll():
            yield Static("", id="facts")

    @property
    def _rows(self) -> RowList[Steer]:
        return self.query_one("#rows", RowList)

    @property
    def _row(self) -> Steer | None:
        return self._rows.row

    # ---- showing

    def on_mount(self) -> None:
        """Say what to do while there is nothing."""
        super().on_mount()
        self._rows.empty = self._nothing()

    def _nothing(self) -> str:
        key = self.lens.key_text
        if self.session.model is None:
            return f"Load a model first: {key('app.load')} goes there."
        return f"No vectors yet. {key('steer.add')} adds one; {key('app.features')} finds a feature to steer with."

    def session_changed(self, old: Session, new: Session) -> None:
        """Rows came, went or changed."""
        rows = self._rows
        rows.empty = self._nothing()
        if old.steers != new.steers or old.model != new.model:
            added = [row.id for row in new.steers if row.id not in {known.id for known in old.steers}]
            begins = self.lens.opening.going or not old.steers
            cursor = 0 if begins else len(new.steers) - 1 if added else None
            rows.show(new.steers, cursor)
            arms = len(new.arms()) - 1
            note = f"{arms} arm{'s' if arms != 1 else ''} against the baseline" if arms else "baseline only"
            self.query_one("#bench", Pane).note = note if new.steers else ""
            self._show_direction()
        if old.model != new.model:
            self._views.clear()
        if (old.steers, old.prompt, old.model) != (new.steers, new.prompt, new.model):
            self._show_dose()

    def on_row_list_moved(self) -> None:
        """Show the direction under the cursor, and its dose."""
        self._show_direction()
        self._show_dose()

    def on_resize(self) -> None:
        """The columns follow the width; rows stand apart where there is room."""
        self._rows.row_height = 3 if self.app.size.height >= 30 else 2
        self.call_after_refresh(self._show_direction)
        self.call_after_refresh(self._show_dose)

    def on_key(self, event: events.Key) -> None:
        """Escape leaves the dose; where it has the screen to itself, that closes it."""
        if event.key == "escape" and self._dose_open and self._chart.has_focus and self.maximized is None:
            event.stop()
            event.prevent_default()
            if self.query_one("#bench").display:
                self.focus_first()
            else:
                self._close_dose()

    def _show_direction(self) -> None:
        facts = self.query_one("#facts", Static)
        width = facts.size.width or 44
        narrow = self.has_class("-narrow")
        facts.update(direction(self._row, width, narrow, self.session.saes) if self._row else Content(""))

    # ---- editing

    def _edit(self, **changes: Any) -> None:
        if self._row is not None:
            self.lens.store.edit_steer(self._row.id, **changes)

    def action_switch(self) -> None:
        """Switch the row on or off."""
        if self._row is not None:
            self._edit(enabled=not self._row.enabled)

    def action_scale(self, steps: int) -> None:
        """Move the scale by whole steps."""
        if self._row is not None:
            self._edit(scale=self._row.moved(steps).scale)

    def action_zero(self) -> None:
        """No push at all; the row stays."""
        self._edit(scale=0.0)

    def action_flip(self) -> None:
        """The same push the other way."""
        if self._row is not None:
            self._edit(scale=-self._row.scale)

    def action_layer(self, steps: int) -> None:
        """Steer at another layer, within the model."""
        if self._row is not None:
            layers = self.session.model.n_layers if self.session.model else self._row.layer + 1
            self._edit(layer=max(0, min(layers - 1, self._row.layer + steps)))

    def action_arm(self, steps: int) -> None:
        """Put the row in another arm."""
        if self._row is not None:
            self._edit(arm=max(1, min(MAX_ARMS, self._row.arm + steps)))

    def action_delete(self) -> None:
        """Take the row off the bench."""
        if self._row is not None:
            self.lens.store.remove_steer(self._row.id)

    def action_copy(self) -> None:
        """The same vector again, in the next free arm."""
        row = self._row
        if row is not None:
            self.lens.store.add_steer(
                replace(row.vector, layer=row.layer),
                scale=row.scale,
                residual_norm=row.residual_norm,
                promoted=row.promoted,
                suppressed=row.suppressed,
                mode=row.mode,
                positions=row.positions,
            )

    def action_mode(self) -> None:
        """The next way to act."""
        row = self._row
        if row is not None:
            names = [mode.id for mode in MODES]
            self._replace(row.turned_to(names[(names.index(row.mode) + 1) % len(names)]))

    def action_positions(self) -> None:
        """The next positions."""
        if self._row is not None:
            kinds = list(POSITIONS)
            now = self._row.positions.kind if self._row.positions else "all"
            at = kinds.index(now) if now in kinds else -1
            self._edit(positions=_positions(kinds[(at + 1) % len(kinds)]))

    def _replace(self, row: Steer) -> None:
        self.lens.store.edit_steer(row.id, mode=row.mode, scale=row.scale)

    def action_edit(self) -> None:
        """Type scale, layer, arm and name, choose mode and positions."""
        row, model = self._row, self.session.model
        if row is None:
            return
        last = model.n_layers - 1 if model else None
        modes = {mode.label: mode.id for mode in MODES}
        places = {words: kind for kind, words in POSITIONS.items()}
        where = positions_text(row.positions) if row.positions else POSITIONS["all"]
        options = tuple(places) if where in places else (*places, where)
        fields = [
            Field("scale", "scale", f"{row.scale:g}", check=number()),
            Field("mode", "mode", mode_of(row.mode).label, options=tuple(modes)),
            Field("positions", "positions", where, options=options),
            Field("layer", "layer", str(row.layer), check=whole(0, last)),
            Field("arm", "arm", str(row.arm), check=whole(1, MAX_ARMS)),
            Field("name", "name", row.vector.name, check=filled),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                turned = row.turned_to(modes[values["mode"]])
                typed = values["scale"] != f"{row.scale:g}"
                chosen = values["positions"]
                self.lens.store.edit_steer(
                    row.id,
                    vector=replace(row.vector, name=one_line(values["name"], 60)),
                    scale=float(values["scale"]) if typed else turned.scale,
                    mode=turned.mode,
                    positions=_positions(places[chosen]) if chosen in places else row.positions,
                    layer=int(values["layer"]),
                    arm=int(values["arm"]),
                )

        amount = mode_of(row.mode).amount or "not used"
        note = f"The scale is {amount}; one step of + is {row.step:g}."
        self.app.push_screen(FormScreen(row.vector.name, fields, note), done)


def _positions(kind: str) -> Positions | None:
    """Positions as a row has them: ``None`` for all."""
    return None if kind == "all" else positions_of(kind)
