"""The dose pane of the bench: measure a row over scales, find a scale, take one; and its chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from textual import events
from textual.app import RenderResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from lens_tui.records import LensError
from lens_tui.records.interventions import BenchRow, mode_of
from lens_tui.records.measures import MULTIPLES, QUANTITIES
from lens_tui.records.paths import expanded
from lens_tui.tui.bench_text import DoseView, SearchView, Series, View, dose_lines, search_lines, short
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import BARS, fit, share_level
from lens_tui.tui.widgets.frame import Pane
from lens_tui.worker.events import Event
from lens_tui.worker.jobs import FindScale, MeasureDose

from .form import Choice, ChoiceScreen, Field, FormScreen, number, optional, whole
from .steer_forms import a_file

LABEL, VALUE, WIDEST = 12, 6, 6
Part = str | tuple[str, str]


class DoseChart(Widget, can_focus=True):
    """Left and right move along the scales, up and down along the measures; enter posts :class:`Taken`."""

    BINDINGS = [*bindings("move"), *bindings("dose")]
    DEFAULT_CSS = "DoseChart { height: auto; }"

    column: reactive[int] = reactive(0)
    row: reactive[int] = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor is elsewhere."""

    @dataclass
    class Taken(Message):
        """The scale under the cursor is wanted."""

        scale: float

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.scales: tuple[float, ...] = ()
        self.series: tuple[Series, ...] = ()
        self.now: float | None = None

    def show(
        self, scales: Sequence[float], series: Sequence[Series], now: float | None, column: int | None = None
    ) -> None:
        """Show these curves; ``now`` is the scale to mark. The cursor goes to ``column`` or stays where it is."""
        changed = len(series) != len(self.series)
        self.scales, self.series, self.now = tuple(scales), tuple(series), now
        self.set_reactive(DoseChart.column, self.validate_column(self.column if column is None else column))
        self.set_reactive(DoseChart.row, self.validate_row(self.row))
        self.refresh(layout=changed)

    def validate_column(self, value: int) -> int:
        """Within the scales."""
        return max(0, min(value, len(self.scales) - 1))

    def validate_row(self, value: int) -> int:
        """Within the measures."""
        return max(0, min(value, len(self.series) - 1))

    def watch_column(self) -> None:
        """Another scale."""
        self.post_message(self.Moved())

    def watch_row(self) -> None:
        """Another measure."""
        self.post_message(self.Moved())

    # ---- drawing

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """Two lines of head and one a measure."""
        return 2 + len(self.series)

    @property
    def step(self) -> int:
        """Cells of a column."""
        return max(1, min(WIDEST, (self.size.width - LABEL - VALUE) // max(1, len(self.scales))))

    def render(self) -> RenderResult:
        """Head, mark, curves."""
        if not self.scales:
            return Content("")
        lines = [self._head(), self._mark(), *(self._line(at, series) for at, series in enumerate(self.series))]
        return Content("\n").join(lines)

    def _head(self) -> Content:
        """The scales over their columns: that under the cursor always, then 0, the ends and whatever else has room."""
        labels = self._labels()
        order = [self.column, *(at for at, scale in enumerate(self.scales) if scale == 0), 0, len(self.scales) - 1]
        taken: dict[int, tuple[int, str]] = {}
        for at in dict.fromkeys([*order, *range(len(self.scales))]):
            label = labels[at]
            start = max(0, at * self.step + (self.step - 1 if self.step > 1 else 1) - cell_len(label))
            if all(start > first + len(text) or start + len(label) < first for first, text in taken.values()):
                taken[at] = (start, label)
        parts: list[Part] = [(fit("scale", LABEL), "$muted")]
        place = 0
        for at, (start, label) in sorted(taken.items(), key=lambda item: item[1][0]):
            parts += [" " * (start - place), (label, "bold $accent" if at == self.column else "$muted")]
            place = start + len(label)
        return Content.assemble(*parts)

    def _labels(self) -> list[str]:
        """Short names of the scales; where two would read the same, with a digit more."""
        labels = [short(scale) for scale in self.scales]
        return labels if len(set(labels)) == len(labels) else [f"{scale:.3g}" for scale in self.scales]

    def _mark(self) -> Content:
        """A dot where the row's own scale is: on a column, or between two."""
        if self.now is None:
            return Content("")
        place = self._place(self.now)
        glyph = "◀" if self.now < self.scales[0] else "▶" if self.now > self.scales[-1] else "●"
        return Content.assemble((fit("row is at", LABEL), "$muted"), " " * place, (glyph, "$accent"))

    def _place(self, scale: float) -> int:
        above = next((at for at, other in enumerate(self.scales) if other >= scale), len(self.scales) - 1)
        middle = max(0, (self.step - 2) // 2)
        if above == 0 or self.scales[above] <= scale:
            return above * self.step + middle
        low, high = self.scales[above - 1], self.scales[above]
        return round((above - 1 + (scale - low) / (high - low)) * self.step) + middle

    def _line(self, at: int, series: Series) -> Content:
        here = at == self.row
        style = "bold" if here else "$muted" if series.control else ""
        lead = ("▸" if here else " ", "$accent" if self.has_focus else "$muted")
        parts: list[Part] = [lead, (fit(series.label, LABEL - 1), style)]
        for column, value in enumerate(series.values):
            tone = "bold $accent" if column == self.column else "$muted" if series.control else "$heat-5"
            parts += [(self._bar(series, value), tone), (self._flag(series, column), "$muted")]
        value = series.values[self.column] if self.column < len(series.values) else None
        value_text = "" if value is None else f"{value:.{series.places}f}" if abs(value) < 10_000 else f"{value:.0e}"
        parts.append((f"{value_text:>{VALUE}}", style))
        return Content.assemble(*parts)

    def _bar(self, series: Series, value: float | None) -> str:
        width = max(1, self.step - 1)
        if value is None:
            return "·".center(width)
        if value - value != 0:
            return "×".center(width)  # the model's numbers overflowed there
        return BARS[share_level(series.height(value), 1.0)] * width

    def _flag(self, series: Series, column: int) -> str:
        """After the bar of a knee a diamond, after one that a curve turns back to an arrow."""
        if self.step < 2:
            return ""
        scale = self.scales[column]
        if series.curve is not None and series.curve.knee == scale:
            return "◆"
        if series.curve is not None and any(second == scale for _, second in series.curve.reversals):
            return "↩"
        return " "

    # ---- moving

    def on_focus(self) -> None:
        """The cursor is drawn stronger."""
        self.refresh()

    def on_blur(self) -> None:
        """And weaker."""
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """A click goes there."""
        self.column = (event.x - LABEL) // self.step
        if event.y >= 2:
            self.row = event.y - 2

    def action_cursor_left(self) -> None:
        """The scale before."""
        self.column -= 1

    def action_cursor_right(self) -> None:
        """The scale after."""
        self.column += 1

    def action_cursor_up(self) -> None:
        """The measure above."""
        self.row -= 1

    def action_cursor_down(self) -> None:
        """The measure below."""
        self.row += 1

    def action_first(self) -> None:
        """The lowest scale."""
        self.column = 0

    def action_last(self) -> None:
        """The highest scale."""
        self.column = len(self.scales) - 1

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There are no pages; there is nowhere to go and nothing to take before there is a scale."""
        here = action == "take" or action.startswith("cursor_") or action in ("first", "last")
        return action not in ("page_down", "page_up") and (not here or bool(self.scales))

    def action_take(self) -> None:
        """Ask for the scale under the cursor."""
        if self.scales:
            self.post_message(self.Taken(self.scales[self.column]))


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
        self._questions = ""

    @property
    def explains(self) -> tuple[str, ...]:
        """The measure under the cursor, then what is common to all."""
        chart = self.chart
        here: tuple[str, ...] = (chart.series[chart.row].name,) if chart.row < len(chart.series) else ()
        here += ("behaviour_share",) if here == ("behaviour",) else ()
        return (*here, "knee", "moved", "scale")

    def _measured_of(self, row: BenchRow) -> tuple[Any, ...]:
        """What a measurement depends on besides the scale."""
        return (row.vector, row.rest, row.layer, row.mode, row.positions, row.gate, self.session.prompt)

    # ---- asking

    def measure(self, row: BenchRow) -> None:
        """Measure a row, or show what was measured; in the pane: close it."""
        view = self._views.get(row.id)
        fresh = isinstance(view, DoseView) and view.measured_of == self._measured_of(row) and view.state != "failed"
        if fresh and self.open and self.chart.has_focus:
            self.close()
            return
        if not fresh and not self._measure(row, [multiple * row.reference for multiple in MULTIPLES]):
            return
        self._turn(row, True)

    def ask(self, row: BenchRow, typed: Mapping[str, str] | None = None, problem: str = "") -> None:
        """Have scales, tokens, controls and questions chosen, and measure.

        Args:
            row: What is measured.
            typed: What was typed before, by field.
            problem: What was wrong with that.
        """
        if not self._can_measure(row):
            return
        usual = " ".join(f"{multiple * row.reference:.4g}" for multiple in MULTIPLES)
        fields = [
            Field("scales", "scales", usual, check=_scales, between=" "),
            Field("tokens", "tokens", "60", check=whole(2, 1000)),
            Field("texts", "loss texts", "16", check=whole(2, 64)),
            Field("controls", "random", "1", check=whole(0, 8)),
            Field("seed", "seed", "0", check=whole(0, 2**32 - 1)),
            Field("questions", "questions", hint="empty: none; .json .jsonl", check=optional(a_file)),
        ]
        known = {"questions": self._questions, **(typed or {})}
        fields = [replace(item, value=known.get(item.id, item.value)) for item in fields]

        def done(values: dict[str, str] | None) -> None:
            if values is None:
                return
            if said := self._ask_by(values["questions"]):
                self.ask(row, values, said)
                return
            named = {"max_tokens": "tokens", "n_texts": "texts", "controls": "controls", "seed": "seed"}
            options = {name: int(values[field]) for name, field in named.items()}
            if self._measure(row, read_scales(values["scales"]), **options):
                self._turn(row, True)

        note = (
            "Absolute scales; tokens written at each, texts of the loss, random directions beside each. "
            "A file of questions with two answers measures behaviour too."
        )
        self.app.push_screen(FormScreen(f"Dose of {row.vector.name}", fields, note, problem), done)

    def _ask_by(self, path: str) -> str:
        """Ask by the questions of this file from now on, or say what is wrong with it."""
        from lens_tui.records.corpus import read_questions

        path = path.strip()
        try:
            if path:
                read_questions(path)
        except LensError as error:
            return f"{error.message} {error.hint}".strip()
        self._questions = str(expanded(path)) if path else ""
        return ""

    def _can_measure(self, row: BenchRow) -> bool:
        problem = ""
        if self.session.model is None:
            problem = self.lens.no_model()
        elif not mode_of(row.mode).measured:
            problem = (
                f"“{mode_of(row.mode).label}” has no scale to multiply: {self.lens.key_text('steer.mode')} changes it."
            )
        elif row.positions is not None and row.positions.kind == "prompt":
            problem = "The loss is of texts that count as generated: prompt-only steering does not touch them."
        elif not self.session.prompt.strip():
            problem = f"Write a prompt first: {self.lens.key_text('app.generate')} goes to Generate."
        if problem:
            self.lens.say(problem)
        return not problem

    def _measure(self, row: BenchRow, scales: list[float], **options: int) -> bool:
        if not self._can_measure(row):
            return False
        ordered = tuple(sorted({round(scale, 9) for scale in scales}))
        facts = row.vector.origin.facts if row.vector.origin.kind == "feature" else {}
        known = {name for sae in self.session.saes for name in (sae.id, sae.path)}
        sae = str(facts.get("sae", "")) if facts.get("sae") in known else ""
        job = MeasureDose(
            self.session.prompt,
            row.interventions(1.0),
            ordered,
            sae=sae,
            feature=int(facts.get("feature", 0)),
            questions=self._questions,
            **options,
        )
        self._begin(row, DoseView(ordered, self._measured_of(row)))
        self.lens.submit(job, SLOT, lambda event: self._take(row.id, event))
        return True

    def find(self, row: BenchRow) -> None:
        """Have a target chosen and search the scale that reaches it."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        if not mode_of(row.mode).grows:
            self.lens.say("A search needs a push that grows with its scale: add or norm-match.")
            return
        prompt_only = row.positions is not None and row.positions.kind == "prompt"
        barred = "its texts have no prompt to be steered" if prompt_only else ""
        choices = [
            Choice("delta_loss", "Δ loss +0.3 nat", "on texts that have nothing to do with the prompt", barred),
            Choice("kl", "KL 1 nat", "of the first 20 tokens: about as far as text stays sound", barred),
            Choice("relative_norm", "10 % of ‖h‖", "by length alone", barred),
            Choice("behaviour", "behaviour +1 nat", "of the answers to a file of questions"),
            Choice("other", "another target", "typed", barred),
        ]

        def chosen(which: str | None) -> None:
            if which == "other":
                self._ask_target(row)
            elif which == "behaviour":
                self._ask_behaviour(row, {"questions": self._questions})
            elif which is not None:
                self._search(row, which, QUANTITIES[which][2])

        self.app.push_screen(ChoiceScreen(f"Find the scale of {row.vector.name} for", choices), chosen)

    def _ask_target(self, row: BenchRow) -> None:
        names = {label: name for name, (label, _, _) in QUANTITIES.items() if name != "behaviour"}
        fields = [
            Field("quantity", "quantity", options=tuple(names)),
            Field("target", "target", "0.3", check=number(1e-6, 1e6)),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._search(row, names[values["quantity"]], float(values["target"]))

        self.app.push_screen(FormScreen("Find a scale", fields, "In nats, or as a share of ‖h‖."), done)

    def _ask_behaviour(self, row: BenchRow, typed: Mapping[str, str], problem: str = "") -> None:
        fields = [
            Field("questions", "questions", typed["questions"], ".json .jsonl, two answers each", check=a_file),
            Field("target", "grows by", typed.get("target", f"{QUANTITIES['behaviour'][2]:g}"), check=_not_zero),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is None:
                return
            if said := self._ask_by(values["questions"]):
                self._ask_behaviour(row, values, said)
            else:
                self._search(row, "behaviour", float(values["target"]), self._questions)

        note = "Nats of log p(matching) − log p(other) over the plain model's; below 0 it is lowered."
        self.app.push_screen(FormScreen("Find a scale by behaviour", fields, note, problem), done)

    def _search(self, row: BenchRow, quantity: str, target: float, questions: str = "") -> None:
        sign = -1.0 if row.scale < 0 else 1.0
        self._begin(row, SearchView(quantity, target, self._measured_of(row), sign))
        job = FindScale(row.interventions(sign), quantity, target, questions)
        self.lens.submit(job, SLOT, lambda event: self._take(row.id, event))
        self._turn(row, True)

    def _begin(self, row: BenchRow, view: View) -> None:
        before = self._views.get(self._under_way)
        if before is not None and before.state == "running":  # its job is about to be replaced
            self._views[self._under_way] = _stopped(before)
        self._under_way = row.id
        self._views[row.id] = view

    def _take(self, row_id: str, event: Event) -> None:
        view = self._views.get(row_id)
        if view is None:
            return
        self._views[row_id] = new = view.after(event)
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
        again = f" · changed since: {self.lens.key_text('steer.dose')} measures it"
        self.note = view.note() + (again if view.measured_of != self._measured_of(row) else "")
        scales = view.scales
        column = None if at is None or not scales else min(range(len(scales)), key=lambda i: abs(scales[i] - at))
        chart.show(scales, view.series(), row.scale, column)
        self._show_facts(view)

    def _show_facts(self, view: View | None) -> None:
        chart, row = self.chart, self._row
        key = self.lens.key_text
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
            self.lens.store.edit_steer(row.id, scale=float(f"{event.scale:.4g}"))
            self.lens.say(
                f"{row.vector.name} is at {event.scale:+.4g}; {self.lens.key_text('app.undo')} takes it back."
            )


def _stopped(view: View) -> View:
    return replace(view, state="stopped")


def _not_zero(text: str) -> str:
    """A check for a number that a behaviour is to grow by."""
    return number(-1e6, 1e6)(text) or ("" if float(text) else "a number other than 0")


def read_scales(text: str) -> list[float]:
    """Scales apart by blanks or commas. Raises ``ValueError``."""
    return [float(part) for part in text.replace(",", " ").split()]


def _scales(text: str) -> str:
    try:
        found = read_scales(text)
    except ValueError:
        found = []
    good = 0 < len(found) <= MOST and all(scale - scale == 0 for scale in found)
    return "" if good else f"1 to {MOST} numbers separated by spaces"
