"""Causes: which part of the model did it. Maps of patches, with their controls and the cell under the cursor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import LensError, paths
from lens_tui.records.interventions import HEADS_OFF, heads_of_vector, mode_of
from lens_tui.records.patch_plan import METRICS, SITES
from lens_tui.records.sanitise import one_line
from lens_tui.tasks.causes import FORMATS, command_of, write
from lens_tui.tui.bindings import bindings
from lens_tui.tui.causes_text import question
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.frame import Hairline, LensScreen, Pane
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.worker.events import Event, VectorMade
from lens_tui.worker.jobs import VectorFromPatch

from .form import Field, FormScreen, filled
from .patch_pane import VIEWS, PatchPane


class CausesScreen(LensScreen):
    """The question above, its map on the left, the cell under the cursor on the right."""

    mode: ClassVar[str] = "causes"
    CSS_PATH = "causes_screen.tcss"
    AUTO_FOCUS = ""
    BINDINGS = bindings("causes")

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchPane()
        self.cell = Static(id="cause-cell")

    def body(self) -> ComposeResult:
        """What is asked; the map and its cell."""
        yield Static(id="question")
        yield Hairline()
        with Horizontal(id="causes-panes"):
            yield self.patches
            yield Pane("Cell", VerticalScroll(self.cell, id="cause-scroll", can_focus=False), id="cause-pane")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)
        self.patches.refresh_map()

    def focus_first(self) -> None:
        """Begin in the map."""
        self.set_focus(self.patches.grid)

    def _tint_changed(self, tint: str) -> None:
        self.patches.grid.mode = tint

    def session_changed(self, old: Session, new: Session) -> None:
        """Another model: what was found is not of it."""
        if old.model != new.model:
            self.patches.forget()

    def on_patch_pane_turned(self) -> None:
        """Another question or map."""
        self._show()

    def on_heat_grid_moved(self, event: HeatGrid.Moved) -> None:
        """Another cell."""
        self._show()

    def on_resize(self) -> None:
        """Lines are as long as there is room."""
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        shown, pane = self.patches.shown, self.query_one("#cause-pane", Pane)
        width = max(20, self.query_one("#question").size.width)
        self.query_one("#question", Static).update(Content("\n").join(question(self.patches.plan, width)))
        grid = self.patches.grid
        pane.note = "" if shown is None or grid.blank else shown.place(grid.row, grid.column)
        self.cell.update(Content("\n").join(self.patches.lines(max(16, self.cell.size.width))))

    # -- actions -----------------------------------------------------------------------------------------

    def action_patch(self) -> None:
        """Compute the map."""
        self.patches.patch()

    def action_ask(self) -> None:
        """Write another question."""
        self.patches.ask()

    def action_view(self) -> None:
        """The next view of the same question."""
        names = list(VIEWS)
        self.patches.turn(names[(names.index(self.patches.plan.by) + 1) % len(names)])

    def action_shade(self) -> None:
        """Another meaning of the figures."""
        self.patches.next_shade()
        self.lens.say(f"Figures and shade say: {self.patches.shade}")

    def action_site(self, step: int) -> None:
        """The next site, or the one before."""
        self.patches.step("site", step)

    def action_metric(self) -> None:
        """The next metric."""
        self.patches.step("metric", 1)

    def action_flip(self) -> None:
        """The other direction."""
        now = self.patches.plan.direction
        self.patches.change(direction="noise" if now == "denoise" else "denoise")

    def action_strongest(self, step: int) -> None:
        """The cell that comes next in strength."""
        self.patches.go_to_strongest(step)

    def action_maps(self) -> None:
        """The maps computed before."""
        self.patches.choose_kept()

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Views, sites and metrics, by name."""
        for view, name in VIEWS.items():
            yield f"Show {name}", partial(self.patches.turn, view)
        for site in SITES:
            yield f"Patch {site}", partial(self.patches.change, site=site)
        for metric in METRICS:
            yield f"Judge patches by {metric}", partial(self.patches.change, metric=metric)

    def action_steer(self) -> None:
        """Put the cell on the bench: a head to be taken away, else the direction that the patch adds."""
        shown, grid, found = self.patches.shown, self.patches.grid, self.patches.here
        if shown is None or found is None or grid.blank:
            self.lens.say("There is no cell to take a direction from.")
            return
        if found.plan.by == "trace":
            self.lens.say("A trace has no direction: its change is noise. Patch by token or by head.")
            return
        place = shown.place(grid.row, grid.column)
        name = place if found.plan.by == "head" else f"{place} clean − corrupted"
        job = VectorFromPatch(found.plan, shown.layers[grid.row], grid.column, one_line(name, 60))

        def take(event: Event) -> None:
            if isinstance(event, VectorMade):
                made = self.lens.store.add_steer(
                    event.vector,
                    scale=event.vector.norm,
                    residual_norm=event.residual_norm,
                    promoted=event.promoted,
                    suppressed=event.suppressed,
                    mode=HEADS_OFF.id if heads_of_vector(event.vector) else "add",
                )
                go = self.lens.key_text("app.generate")
                does = f", which {mode_of(made.mode).does}," if made.mode != "add" else ""
                self.lens.say(f"{made.vector.name}{does} is on the bench as arm {made.arm}: {go} shows it.")

        self.lens.submit(job, "send", take)

    def action_copy(self) -> None:
        """Copy what the cell says, under what was asked."""
        lines = self.patches.lines(60)
        found = self.patches.here
        if not lines or found is None:
            self.lens.say("There is no cell to copy.")
            return
        asked = [line.plain.rstrip() for line in question(found.plan, 400)]
        self.lens.copy("\n".join([*asked, "", *(line.plain.rstrip() for line in lines)]), "the cell")

    def action_copy_command(self) -> None:
        """Copy the command that gives the same numbers."""
        model = self.session.model
        if model is None:
            self.lens.say("Load a model first.")
            return
        found = self.patches.here
        plan = self.patches.plan if found is None else found.plan
        self.lens.copy(command_of(plan, self.lens.opening.model or model.name), "the command")

    def action_export(self) -> None:
        """Ask where the map is written, and write it."""
        found = self.patches.here
        if found is None:
            self.lens.say("There is no map to export.")
            return

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            formats = FORMATS if values["as"] == "both" else (values["as"],)
            try:
                files = write(found, Path(values["where"].strip()).expanduser(), values["name"].strip(), formats)
            except LensError as error:
                self.lens.show_error(error.message, error.hint)
                return
            self.lens.say(f"Wrote {', '.join(one_line(str(file)) for file in files)}")

        fields = [
            Field("where", "folder", str(paths.exports_folder()), "a folder; it is made if it is not there", filled),
            Field("name", "name", f"patch-{found.plan.by}", "a number follows where it is taken", filled),
            Field("as", "as", "both", options=("both", *FORMATS)),
        ]
        self.lens.push_screen(FormScreen("Export the map", fields), take)
