"""The dose pane of the bench: measure a row over scales, find a scale, take one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from lens_tui.records.bench import BenchRow, mode_of
from lens_tui.records.measures import MULTIPLES, QUANTITIES
from lens_tui.tui.dose_text import DoseView, SearchView, View, dose_lines, search_lines
from lens_tui.tui.host import LensHost, host
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.dose_chart import DoseChart
from lens_tui.tui.widgets.pane import Pane
from lens_tui.worker.events import Event
from lens_tui.worker.jobs import FindScale, MeasureDose

from .form import Choice, ChoiceScreen, Field, FormScreen, number, whole

SLOT = "dose"
MOST = 24
"""Scales of one dose-response, at most: as many as have a column at 80 cells."""


class DosePane(Pane):
    """What was measured of the row under the bench's cursor, and what is measured now.

    It is there only while it is open: the screen makes room when it hears :class:`Turned`.
    """

    class Turned(Message):
        """The pane was opened or closed."""

    def __init__(self) -> None:
        self.chart = DoseChart(id="chart")
        self._facts = Static("", id="dose-facts")
        super().__init__("Dose", self.chart, VerticalScroll(self._facts, can_focus=False), id="dose")
        self.open = False
        self._row: BenchRow | None = None
        self._views: dict[str, View] = {}
        self._under_way = ""

    @property
    def _lens(self) -> LensHost:
        return host(self)

    @property
    def _session(self) -> Session:
        return host(self).store.session

    def _made_for(self, row: BenchRow) -> tuple[Any, ...]:
        """What a measurement depends on besides the scale."""
        return (row.vector, row.layer, row.mode, row.positions, self._session.prompt)

    # ---- asking

    def measure(self, row: BenchRow) -> None:
        """Measure a row, or show what was measured; in the pane: close it."""
        view = self._views.get(row.id)
        fresh = isinstance(view, DoseView) and view.made_for == self._made_for(row) and view.state != "failed"
        if fresh and self.open and self.chart.has_focus:
            self.close()
            return
        if not fresh and not self._measure(row, [multiple * row.reference for multiple in MULTIPLES]):
            return
        self._turn(row, True)

    def ask(self, row: BenchRow) -> None:
        """Have scales, tokens and controls chosen, and measure."""
        if not self._can_measure(row):
            return
        usual = " ".join(f"{multiple * row.reference:.4g}" for multiple in MULTIPLES)
        fields = [
            Field("scales", "scales", usual, check=_scales, between=" "),
            Field("tokens", "tokens", "60", check=whole(2, 1000)),
            Field("texts", "loss texts", "16", check=whole(2, 64)),
            Field("controls", "random", "1", check=whole(0, 8)),
            Field("seed", "seed", "0", check=whole(0, 2**32 - 1)),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                named = {"max_tokens": "tokens", "n_texts": "texts", "controls": "controls", "seed": "seed"}
                options = {name: int(values[field]) for name, field in named.items()}
                if self._measure(row, read_scales(values["scales"]), **options):
                    self._turn(row, True)

        note = "Absolute scales; tokens written at each, texts of the loss, random directions beside each."
        self.app.push_screen(FormScreen(f"Dose of {row.vector.name}", fields, note), done)

    def _can_measure(self, row: BenchRow) -> bool:
        problem = ""
        if self._session.model is None:
            problem = "Load a model first."
        elif not mode_of(row.mode).measured:
            problem = (
                f"“{mode_of(row.mode).label}” has no scale to multiply: {self._lens.key_text('steer.mode')} changes it."
            )
        elif row.positions is not None and row.positions.kind == "prompt":
            problem = "The loss is of texts that count as generated: prompt-only steering does not touch them."
        elif not self._session.prompt.strip():
            problem = f"Write a prompt first: {self._lens.key_text('app.generate')} goes to Generate."
        if problem:
            self._lens.say(problem)
        return not problem

    def _measure(self, row: BenchRow, scales: list[float], **options: int) -> bool:
        if not self._can_measure(row):
            return False
        ordered = tuple(sorted({round(scale, 9) for scale in scales}))
        facts = row.vector.origin.facts if row.vector.origin.kind == "feature" else {}
        known = {name for sae in self._session.saes for name in (sae.id, sae.path)}
        sae = str(facts.get("sae", "")) if facts.get("sae") in known else ""
        job = MeasureDose(
            self._session.prompt,
            (row.intervention(1.0),),
            ordered,
            sae=sae,
            feature=int(facts.get("feature", 0)),
            **options,
        )
        self._begin(row, DoseView(ordered, self._made_for(row)))
        self._lens.submit(job, SLOT, lambda event: self._heard(row.id, event))
        return True

    def find(self, row: BenchRow) -> None:
        """Have a target chosen and search the scale that reaches it."""
        if self._session.model is None:
            self._lens.say("Load a model first.")
            return
        if not mode_of(row.mode).grows or (row.positions is not None and row.positions.kind == "prompt"):
            self._lens.say(
                "A search needs a push that grows with its scale, on more than the prompt: add or norm-match."
            )
            return
        choices = [
            Choice("delta_loss", "Δ loss +0.3 nat", "on texts that have nothing to do with the prompt"),
            Choice("kl", "KL 1 nat", "of the first 20 tokens: about as far as text stays sound"),
            Choice("relative_norm", "10 % of ‖h‖", "by length alone"),
            Choice("other", "another target", "typed"),
        ]

        def chosen(which: str | None) -> None:
            if which == "other":
                self._ask_target(row)
            elif which is not None:
                self._search(row, which, QUANTITIES[which][2])

        self.app.push_screen(ChoiceScreen(f"Find the scale of {row.vector.name} for", choices), chosen)

    def _ask_target(self, row: BenchRow) -> None:
        names = {label: name for name, (label, _, _) in QUANTITIES.items()}
        fields = [
            Field("quantity", "quantity", options=tuple(names)),
            Field("target", "target", "0.3", check=number(1e-6, 1e6)),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._search(row, names[values["quantity"]], float(values["target"]))

        self.app.push_screen(FormScreen("Find a scale", fields, "In nats, or as a share of ‖h‖."), done)

    def _search(self, row: BenchRow, quantity: str, target: float) -> None:
        sign = -1.0 if row.scale < 0 else 1.0
        self._begin(row, SearchView(quantity, target, self._made_for(row), sign))
        job = FindScale((row.intervention(sign),), quantity, target)
        self._lens.submit(job, SLOT, lambda event: self._heard(row.id, event))
        self._turn(row, True)

    def _begin(self, row: BenchRow, view: View) -> None:
        before = self._views.get(self._under_way)
        if before is not None and before.state == "running":  # its job is about to be replaced
            self._views[self._under_way] = _stopped(before)
        self._under_way = row.id
        self._views[row.id] = view

    def _heard(self, row_id: str, event: Event) -> None:
        view = self._views.get(row_id)
        if view is None:
            return
        self._views[row_id] = new = view.heard(event)
        if self._row is not None and self._row.id == row_id and new is not view:
            found = new.found if isinstance(new, SearchView) else None
            self._show(found if found is not None and new.state == "running" else None)

    # ---- showing

    def _turn(self, row: BenchRow | None, open: bool) -> None:  # noqa: A002
        self._row, self.open = row, open
        self.post_message(self.Turned())

    def close(self) -> None:
        """Leave the pane's place to the bench."""
        self._turn(self._row, False)

    def enter(self) -> None:
        """There is room now: begin at the row's own scale, with the focus on the chart."""
        self._show(self._row.scale if self._row is not None else None)
        self.call_after_refresh(self.chart.focus)
        self.call_after_refresh(self._show)

    def forget(self) -> None:
        """Another model: nothing is measured of it yet."""
        self._views.clear()

    def show(self, row: BenchRow | None) -> None:
        """Show what was measured of a row."""
        self._row = row
        self._show()

    def _show(self, at: float | None = None) -> None:
        """The row's view; with ``at`` the cursor goes to the scale nearest to it."""
        if not self.open:
            return
        chart, row = self.chart, self._row
        view = self._views.get(row.id) if row is not None else None
        if row is None or view is None:
            self.title, self.note = "Dose", ""
            chart.show((), (), None)
            self._show_facts(None)
            return
        self.title = f"{'Dose of' if isinstance(view, DoseView) else 'Search of'} {row.vector.name}"
        again = f" · changed since: {self._lens.key_text('steer.dose')} measures it"
        self.note = view.note() + (again if view.made_for != self._made_for(row) else "")
        scales = view.scales
        column = None if at is None or not scales else min(range(len(scales)), key=lambda i: abs(scales[i] - at))
        chart.show(scales, view.series(), row.scale, column)
        self._show_facts(view)

    def _show_facts(self, view: View | None) -> None:
        chart, row = self.chart, self._row
        key = self._lens.key_text
        if view is None or row is None:
            hint = f"{key('steer.dose')} measures this row, {key('steer.find')} finds a scale for it."
            lines = [Content.styled(hint, "$muted")]
        elif isinstance(view, SearchView):
            lines = search_lines(view, row, chart.column, key("dose.take"))
        else:
            lines = dose_lines(view, row, chart.column, chart.series[chart.row], self._facts.size.width)
        self._facts.update(Content("\n").join(lines))

    def on_dose_chart_moved(self) -> None:
        """Another scale or measure under the cursor."""
        row = self._row
        self._show_facts(self._views.get(row.id) if row is not None else None)

    def on_dose_chart_taken(self, event: DoseChart.Taken) -> None:
        """The row gets the scale."""
        row = self._row
        if row is not None:
            self._lens.store.edit_steer(row.id, scale=float(f"{event.scale:.4g}"))
            self._lens.say(
                f"{row.vector.name} is at {event.scale:+.4g}; {self._lens.key_text('app.undo')} takes it back."
            )


def _stopped(view: View) -> View:
    return replace(view, state="stopped")


def read_scales(text: str) -> list[float]:
    """Scales apart by blanks or commas. Raises ``ValueError``."""
    return [float(part) for part in text.replace(",", " ").split()]


def _scales(text: str) -> str:
    try:
        found = read_scales(text)
    except ValueError:
        found = []
    good = 0 < len(found) <= MOST and all(scale - scale == 0 for scale in found)
    return "" if good else f"1 to {MOST} numbers apart by blanks"
