"""Causes: which part of the model did it. Maps of patches, with their controls and the cell under the cursor.

The maps and graphs of this session and those kept on disk are opened again from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import LensError, ModelInfo, paths
from lens_tui.records.cause_plan import METRICS, SITES, GraphFound, PlanBy
from lens_tui.records.cause_store import CauseSummary, Found, model_of
from lens_tui.records.interventions import HEADS_OFF, heads_of_vector, mode_of
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import has_words
from lens_tui.tasks.causes import FORMATS, command_of, kept_causes, open_cause, write
from lens_tui.tui.bindings import bindings
from lens_tui.tui.causes_text import question
from lens_tui.tui.format import fit, model_name
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.frame import Hairline, LensScreen, Pane, Scroll
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.worker.events import Event, VectorMade
from lens_tui.worker.jobs import VectorFromPatch

from .form import Field, FormScreen, filled
from .graph_pane import GraphPane
from .history_dialog import HistoryDialog
from .patch_pane import VIEWS, PatchPane

Opened = tuple[Found, str]
"""What was found, and what has changed since it was made, in a few words."""


@dataclass(frozen=True, slots=True, eq=False)
class PastCause:
    """A line of the history; texts are safe to show. ``found`` is there for those of this session, ``kept`` on disk."""

    asked: str
    title: str
    model: str
    kept: int = 0
    created: float | None = None
    found: Found | None = None


def of_session(found: Found) -> PastCause:
    """One of this session."""
    return PastCause(*_safe(*_texts(found)), found.kept, None, found)


def of_disk(row: CauseSummary) -> PastCause:
    """One of the disk."""
    return PastCause(*_safe(row.asked, row.title, row.model), row.id, row.created)


def _texts(found: Found) -> tuple[str, str, str]:
    asked = (found.file or found.plan.prompt) if isinstance(found, GraphFound) else found.plan.asked
    return asked, found.plan.title, model_of(found)


def _safe(asked: str, title: str, model: str) -> tuple[str, str, str]:
    return one_line(asked, 400), one_line(title, 120), one_line(model_name(model), 60)


class CauseHistoryScreen(HistoryDialog[PastCause, Opened, "Opened | None"]):
    """Dismisses with what was opened and what has changed since, or with ``None``.

    Args:
        here: Those of this session.
        database: Where they are kept, ``None`` where nothing is.
        model: The model that is loaded, which what was kept is held against.
    """

    SEARCHED = "words of the prompt, the model or what was asked"
    NOUN = "one"

    def __init__(self, here: Sequence[Found], database: Path | None, model: ModelInfo | None) -> None:
        super().__init__(database)
        self._here, self._model = here, model

    def heading(self) -> Content:
        """The title."""
        return Content("Maps and graphs")

    def nothing(self, words: str) -> str:
        """What stands where there is no row, or none with the words."""
        return "none has these words" if words.strip() else "nothing was patched or traced yet"

    def session_rows(self, words: str) -> list[PastCause]:
        """This session's, newest first."""
        return [of_session(each) for each in self._here if has_words(" ".join(_texts(each)), words)]

    def session_numbers(self) -> frozenset[int]:
        """Their numbers on disk."""
        return frozenset(each.kept for each in self._here if each.kept)

    def disk_rows(self, database: Path, words: str, without: frozenset[int]) -> list[PastCause]:
        """Those of the disk, newest first."""

        return [of_disk(each) for each in kept_causes(database, words, without)]

    def read_kept(self, database: Path, number: int) -> Opened | None:
        """One of the disk, with what has changed since it was made."""

        opened = open_cause(database, number, self._model)
        return None if opened is None else (opened[0].found, opened[1])

    def draw(self, row: PastCause, width: int) -> list[Content]:
        """Number and question; when, what and of which model."""
        number = f"{row.kept or '–':>5}  "
        facts = f"{' ' * len(number)}{self.when(row)}{row.title} · {row.model}"
        return [
            Content.assemble((number, "$muted"), fit(row.asked, max(8, width - len(number)))),
            Content.styled(fit(facts, width), "$muted"),
        ]

    def action_choose(self) -> None:
        """Give back the one under the cursor."""
        row = self.rows.row
        if row is None:
            self.dismiss(None)
        elif row.found is not None:
            self.dismiss((row.found, ""))
        else:
            self.with_kept(row.kept, self.dismiss)


GRAPH = "attribution graph"
OF_PATCHES = ("patch", "ask", "shade", "site", "metric", "flip", "find", "strongest", "maps", "steer", "copy")
"""What keys of the screen do that are of patches alone."""


class CausesScreen(LensScreen):
    """The question above, its map on the left, the cell under the cursor on the right."""

    mode: ClassVar[str] = "causes"
    CSS_PATH = "causes_screen.tcss"
    AUTO_FOCUS = ""
    BINDINGS = bindings("causes")

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.graph = PatchPane(), GraphPane()
        self.of_graph = False
        self.cell = Static(id="cause-cell")

    def body(self) -> ComposeResult:
        """What is asked; the map and its cell."""
        yield Static(id="question")
        yield Hairline()
        with Horizontal(id="causes-panes"):
            yield self.patches
            yield self.graph
            yield Pane("Cell", Scroll(self.cell, id="cause-scroll"), id="cause-pane")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)
        self.patches.refresh_map()
        self.graph.refresh_graph()
        self.turn_to_graph(False)

    def focus_first(self) -> None:
        """Begin in the map."""
        self.set_focus(self.graph.map if self.of_graph else self.patches.grid)

    def turn_to_graph(self, on: bool) -> None:
        """Show the graph in the place of the maps of patches, or those again."""
        self.of_graph = on
        self.set_class(on, "-graph")
        self.patches.display, self.graph.display = not on, on
        self.query_one("#cause-pane", Pane).title = "Node" if on else "Cell"
        self.query_one("#cause-scroll").can_focus = not on  # a node's page moves with the edge that is chosen
        self.focus_first()
        self.refresh_bindings()
        self.call_after_refresh(self._show)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is of patches does nothing while the graph shows."""
        return not (self.of_graph and action in (*OF_PATCHES, "copy_command", "export"))

    def _tint_changed(self, tint: str) -> None:
        self.patches.grid.mode = self.graph.map.mode = tint
        self.graph.refresh_graph()

    def session_changed(self, old: Session, new: Session) -> None:
        """Another model: what was found is not of it."""
        if old.model != new.model:
            self.patches.forget()
            self.graph.forget()
        elif new.model is None and old.loading != new.loading:
            self.patches.refresh_map()
            self.graph.refresh_graph()
        elif old.prompt != new.prompt:
            self.graph.refresh_graph()

    def on_graph_pane_turned(self) -> None:
        """Another graph, node or edge."""
        self._show()

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
        if self.of_graph:
            self._show_node()
            return
        shown, pane = self.patches.cause_map, self.query_one("#cause-pane", Pane)
        width = max(20, self.query_one("#question").size.width)
        self.query_one("#question", Static).update(Content("\n").join(question(self.patches.plan, width)))
        grid = self.patches.grid
        pane.note = "" if shown is None or grid.blank else shown.place(grid.row, grid.column)
        self.cell.update(Content("\n").join(self.patches.lines(max(16, self.cell.size.width))))

    def _show_node(self) -> None:
        width, graph = max(20, self.query_one("#question").size.width), self.graph
        self.query_one("#question", Static).update(Content("\n").join(graph.question(width)))
        self.query_one("#cause-pane", Pane).note = "" if graph.chosen is None else one_line(graph.chosen.id, 24)
        lines, at = graph.lines(max(16, self.cell.size.width))
        self.cell.update(Content("\n").join(lines))
        scroll = self.query_one("#cause-scroll", Scroll)
        self.call_after_refresh(scroll.scroll_to, y=max(0, at + 2 - scroll.size.height), animate=False)

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
        at = names.index(self.patches.plan.by) + 1
        if not self.of_graph and at == len(names):
            self.turn_to_graph(True)
            return
        self._turn(names[0] if self.of_graph else names[at])

    def _turn(self, view: PlanBy) -> None:
        """Another view of the patches."""
        if self.of_graph:
            self.turn_to_graph(False)
        self.patches.turn(view)

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

    def action_find(self) -> None:
        """Find cells by words; n and N go through them."""
        self.patches.ask_words()

    def action_strongest(self, step: int) -> None:
        """The cell that comes next in strength."""
        self.patches.go_to_strongest(step)

    def action_maps(self) -> None:
        """The maps and graphs made before, on disk too."""

        def take(opened: Opened | None) -> None:
            if opened is None:
                return
            found, changed = opened
            if isinstance(found, GraphFound):
                self.turn_to_graph(True)
                self.graph.reopen(found, changed)
            else:
                self.turn_to_graph(False)
                self.patches.reopen(found, changed)
                self.patches.turn(found.plan.by)
            self.focus_first()

        here: list[Found] = [*self.graph.kept, *self.patches.kept]
        self.lens.push_screen(CauseHistoryScreen(here, self.lens.history, self.session.model), take)

    def on_graph_pane_history_wanted(self) -> None:
        """The key of the graph."""
        self.action_maps()

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Views, sites and metrics, by name."""
        for view, name in VIEWS.items():
            yield f"Show {name}", partial(self._turn, view)
        yield f"Show the {GRAPH}", partial(self.turn_to_graph, True)
        if self.of_graph:
            yield from self.graph.offers()
            return
        for site in SITES:
            yield f"Patch {site}", partial(self.patches.change, site=site)
        for metric in METRICS:
            yield f"Judge patches by {metric}", partial(self.patches.change, metric=metric)

    def action_steer(self) -> None:
        """Put the cell on the bench: a head to be taken away, else the direction that the patch adds."""
        shown, grid, found = self.patches.cause_map, self.patches.grid, self.patches.here
        if shown is None or found is None or grid.blank:
            self.lens.say("There is no cell to take a direction from.")
            return
        model = self.session.model
        if model is not None and model_of(found) != model.name:
            self.lens.say(
                f"This map is of {one_line(model_name(model_of(found)), 60)}: load that to take it to the bench."
            )
            return
        if found.plan.by == "trace":
            self.lens.say("A trace has no direction: its change is noise. Patch by token or by head.")
            return
        place = shown.place(grid.row, grid.column)
        name = place if found.plan.by == "head" else f"{place} clean − corrupted"
        job = VectorFromPatch(found.plan, shown.layers[grid.row], grid.column, one_line(name, 60))

        def take(event: Event) -> None:
            if isinstance(event, VectorMade):
                mode = HEADS_OFF.id if heads_of_vector(event.vector) else "add"
                does = f", which {mode_of(mode).does}," if mode != "add" else ""
                self.lens.put_on_bench(event, f"{event.vector.name}{does}", scale=event.vector.norm, mode=mode)

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
            self.lens.say(self.lens.no_model())
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
                files = write(found, expanded(values["where"].strip()), values["name"].strip(), formats)
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
