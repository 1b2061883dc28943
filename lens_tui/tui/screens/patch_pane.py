"""The maps of patching: by layer and token, by head, and of a causal trace; asked, shown as they fill, kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from lens_tui.records.cause_plan import DIRECTIONS, EXAMPLE, METRICS, SITES, PatchFound, PatchPlan, PlanBy
from lens_tui.records.patch_grid import Direction
from lens_tui.tui.causes_text import SHADES, CauseMap, cell_lines, cells, details, legend, map_of
from lens_tui.tui.host import WAITING, LensHost
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.worker.events import Event, JobDone, JobFailed, JobStarted, Patched
from lens_tui.worker.jobs import Patch

from .form import Field, FormScreen, filled, number, whole
from .word_search import WordSearch

VIEWS: dict[PlanBy, str] = {
    "layer-position": "patching by token",
    "head": "patching by head",
    "trace": "causal tracing",
}
"""The maps in the order that a key goes through them, and what they are called."""
PATCHING = "patching …"
FIGURE = 7
"""Cells of a column: a figure, and its glyph where shades are bars or digits."""


class PatchPane(Pane):
    """One question, and its map in each view. Posts :class:`Turned` when there is something else to be said of it."""

    keeps_note: ClassVar[bool] = True

    @dataclass
    class Turned(Message):
        """The question, the view, the map or the cell under the cursor is another one."""

    def __init__(self) -> None:
        self.grid, self._legend = HeatGrid(cell=FIGURE, id="causes-grid"), Static("", id="legend")
        super().__init__("Patching", self.grid, self._legend, id="patch-pane")
        self.plan = EXAMPLE
        self.shade = SHADES[0]
        self.found: dict[PlanBy, PatchFound] = {}
        self.cause_map: CauseMap | None = None
        self.kept: list[PatchFound] = []
        self._state: dict[PlanBy, str] = {}
        self._search = WordSearch[tuple[int, int]]("cell", "causes")

    @property
    def here(self) -> PatchFound | None:
        """What was found in the view that shows."""
        return self.found.get(self.plan.by)

    @property
    def stale(self) -> bool:
        """Whether the map is of another question than the one above it."""
        return self.here is not None and self.here.plan != self.plan

    @property
    def explains(self) -> tuple[str, ...]:
        """The number that shows, then those beside it."""
        first = {"effect": "patch_effect", "random": "patch_random", "shuffled": "patch_shuffled"}
        mine = first.get(self.shade, "patch_estimate" if self.shade == "estimate" else "patch_value")
        if self.plan.by == "trace" and self.shade == "effect":
            mine = "indirect_effect"
        every = ("patch_effect", "patch_value", "patch_random", "patch_shuffled", "patch_estimate", "indirect_effect")
        return (mine, *(name for name in (*every, "patch_interval") if name != mine))

    # -- asking ------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Another model: nothing is known of it."""
        self.found, self.kept, self._state = {}, [], {}
        self.refresh_map()

    def ask(self) -> None:
        """Have the question written, and answer it."""
        ask_plan(self.lens, self.plan, self._asked)

    def _asked(self, plan: PatchPlan) -> None:
        self.plan = plan
        self.patch()

    def patch(self) -> None:
        """Compute the map of the view that shows."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        if self.plan.by == "trace" and not self.plan.subject.strip():
            self.lens.say(f"Name a subject first: {self.lens.key_text('causes.ask')} asks for it.")
            return
        plan = self.plan
        self._state[plan.by] = WAITING if self.lens.book.busy else PATCHING
        self.lens.submit(Patch(plan), "patch", lambda event: self._take(plan, event))
        self.refresh_map()

    def _take(self, plan: PatchPlan, event: Event) -> None:
        by = plan.by
        if isinstance(event, JobStarted):
            self._state[by] = PATCHING
            self.refresh_map()
        elif isinstance(event, Patched):
            fresh = by not in self.found or self.found[by].plan != plan
            self.found[by] = event.found
            self._state[by] = "" if event.whole else PATCHING
            if event.whole:
                self.kept = [event.found, *(old for old in self.kept if old.plan != plan)]
            if event.unkept:
                self.lens.say(f"The map is not kept: {event.unkept}")
            self.refresh_map()
            if (
                by == self.plan.by
                and self.cause_map is not None
                and (fresh or event.whole)
                and self.cause_map.strongest()
            ):
                self.grid.move_to(*self.cause_map.strongest()[0])
        elif isinstance(event, JobFailed):
            self._state[by] = f"{event.message} {event.hint}".strip()
            self.refresh_map()
        elif isinstance(event, JobDone) and event.stopped:
            self._state[by] = "stopped"
            self.refresh_map()

    # -- showing -----------------------------------------------------------------------------------------

    def refresh_map(self) -> None:
        """Show the map of the view, or say how there comes to be one."""
        found, plan = self.here, self.plan
        self.title = plan.title
        state = self._state.get(plan.by, "")
        self.cause_map = shown = None if found is None else map_of(found)
        if shown is None or found is None:
            self.note = ""
            self.grid.empty = self._empty(state)
            self.grid.show([], [], [])
            self._legend.update("")
        else:
            if self.shade not in shown.figures:
                self.shade = SHADES[0]
            self.note = self._noted(found, shown, state)
            heads = list(shown.tokens) or list(shown.columns)
            self.grid.show(heads, list(shown.rows), cells(shown, self.shade), details(shown, self.shade))
            self._legend.update(legend(shown, self.shade, max(20, self._legend.size.width)))
        for widget in (self.grid, self._legend):
            widget.set_class(self.stale, "-before")
        self.post_message(self.Turned())

    def _empty(self, state: str) -> str:
        key = self.lens.key_text
        if self.session.model is None:
            return self.lens.without_model()
        if state and state != "stopped":
            return state
        what = {
            "layer-position": f"{self.plan.site} of every layer at every token",
            "head": "every head of every layer",
        }.get(self.plan.by, "every layer's state at every token, the subject noised")
        does = "traces" if self.plan.by == "trace" else "patches"
        said = f"{key('causes.patch')} {does} {what}; {key('causes.ask')} writes prompts of your own."
        return f"Stopped. {said}" if state else said

    def _noted(self, found: PatchFound, shown: CauseMap, state: str) -> str:
        if self.stale:
            return f"as of before: {self.lens.key_text('causes.patch')} computes it anew"
        parts = [f"{shown.done}/{shown.size}"] if shown.done < shown.size else []
        parts += [state] if state else []
        if found.trace is not None:
            parts.append(f"{found.trace.samples} of {found.plan.samples} noised runs")
        check = found.check
        if check is not None and check.pearson is not None:
            parts.append(f"estimates r {check.pearson:.2f}")
        if found.grid is not None and found.grid.n_pairs > 1:
            parts.append(f"{found.grid.n_pairs} pairs")
        return " · ".join([*parts, f"shade: {self.shade}"])

    def lines(self, width: int) -> list[Content]:
        """What is known of the cell under the cursor."""
        if self.cause_map is None or self.here is None or self.grid.blank:
            return []
        return cell_lines(self.here, self.cause_map, self.grid.row, self.grid.column, width)

    def on_resize(self) -> None:
        """The legend is as long as there is room."""
        self.call_after_refresh(self.refresh_map)

    # -- turning -----------------------------------------------------------------------------------------

    def change(self, **parts: object) -> None:
        """Ask something else: the map stays until it is computed anew, and says so."""
        self.plan = replace(self.plan, **parts)  # type: ignore[arg-type]
        self.refresh_map()

    def turn(self, by: PlanBy) -> None:
        """Another view of the same question."""
        self.change(by=by)

    def step(self, what: str, by: int) -> None:
        """The next site or metric, or the one before."""
        if what == "site" and self.plan.by != "layer-position":
            self.lens.say(f"Only the map by token has a site: {self.lens.key_text('causes.view')} goes to it.")
            return
        every, now = (SITES, self.plan.site) if what == "site" else (METRICS, self.plan.metric)
        value = every[(every.index(now) + by) % len(every)] if now in every else every[0]
        self.change(**{what: value})

    def next_shade(self) -> None:
        """Another meaning of figures and shade, of those there are."""
        known = [name for name in SHADES if self.cause_map is None or name in self.cause_map.figures]
        self.shade = known[(known.index(self.shade) + 1) % len(known)] if self.shade in known else known[0]
        self.refresh_map()

    def _places(self) -> dict[tuple[int, int], str]:
        """Every known cell with its place in words, strongest first."""
        return {} if (shown := self.cause_map) is None else {cell: shown.place(*cell) for cell in shown.strongest()}

    def ask_words(self) -> None:
        """Ask for words and go to the strongest cell that has them."""
        if self._has_map():
            self._search.ask(self.lens, self._places, lambda cell: self.grid.move_to(*cell))

    def go_to_strongest(self, step: int) -> None:
        """The cell that moves the metric next less, or next more; after the last comes the first."""
        if self._has_map():
            self.grid.move_to(*self._search.step(self._places(), (self.grid.row, self.grid.column), step))

    def _has_map(self) -> bool:
        if there := bool(self._places()):
            return there
        self.lens.say(f"There is no map yet: {self.lens.key_text('causes.patch')} computes it.")
        return False

    def reopen(self, found: PatchFound, changed: str) -> None:
        """Show a map that was computed before; ``changed`` says what is no longer as it was."""
        self.plan, self.found[found.plan.by] = found.plan, found
        self._state[found.plan.by] = changed
        self.refresh_map()
        if self.cause_map is not None and (order := self.cause_map.strongest()):
            self.grid.move_to(*order[0])


def ask_plan(lens: LensHost, plan: PatchPlan, take: Callable[[PatchPlan], None]) -> None:
    """Ask for the parts of a question; ``take`` gets it when all are right."""
    trace = plan.by == "trace"
    fields = [*(_trace_fields(plan) if trace else _pair_fields(plan))]

    def done(values: dict[str, str] | None) -> None:
        if values is not None:
            take(_trace(plan, values) if trace else _pair(plan, values))

    note = (
        "The subject's embeddings are noised; the answer may stay empty: what the model predicts."
        if trace
        else "As many tokens in both. Answers are one token with its blank, or id:17; a file of pairs wins."
    )
    title = "Trace the cause of an answer" if trace else "Patch one prompt into another"
    lens.push_screen(FormScreen(title, fields, note), done)


def _pair_fields(plan: PatchPlan) -> list[Field]:
    return [
        Field("clean", "clean", plan.clean, "the prompt in question", filled),
        Field("answer", "leads to", plan.answer, "one token, such as ‘ ball’"),
        Field("corrupted", "corrupted", plan.corrupted, "one that asks about something else", filled),
        Field("wrong", "leads to", plan.wrong, "one token, such as ‘ car’"),
        Field("site", "site", plan.site, options=SITES),
        Field("direction", "direction", plan.direction, options=DIRECTIONS),
        Field("metric", "metric", plan.metric, options=METRICS),
        Field("pairs", "pairs", plan.pairs, "or a JSONL file of clean, corrupted, answer, wrong"),
        Field("seed", "seed", str(plan.seed), check=whole(0, 2**32 - 1)),
    ]


def _trace_fields(plan: PatchPlan) -> list[Field]:
    return [
        Field("clean", "prompt", plan.clean, "the prompt in question", filled),
        Field("subject", "subject", plan.subject, "words that it has once", filled),
        Field("answer", "answer", plan.answer, "one token; empty: what the model predicts"),
        Field("site", "site", plan.site, options=SITES),
        Field("noise", "noise", f"{plan.noise:g}", check=number(1e-3, 1e3)),
        Field("samples", "noised runs", str(plan.samples), check=whole(1, 1000)),
        Field(
            "window", "window", str(plan.window), "layers restored together, of attn_out and mlp_out", whole(1, 1000)
        ),
        Field("seed", "seed", str(plan.seed), check=whole(0, 2**32 - 1)),
    ]


def _pair(plan: PatchPlan, values: dict[str, str]) -> PatchPlan:
    direction: Direction = "noise" if values["direction"] == "noise" else "denoise"
    texts: dict[str, Any] = {name: values[name] for name in ("clean", "answer", "corrupted", "wrong", "site", "metric")}
    return replace(plan, **texts, pairs=values["pairs"].strip(), direction=direction, seed=int(values["seed"]))


def _trace(plan: PatchPlan, values: dict[str, str]) -> PatchPlan:
    texts: dict[str, Any] = {name: values[name] for name in ("clean", "subject", "answer", "site")}
    counts: dict[str, Any] = {name: int(values[name]) for name in ("samples", "window", "seed")}
    return replace(plan, **texts, **counts, noise=float(values["noise"]))
