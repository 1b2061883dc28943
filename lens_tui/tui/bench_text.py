"""What the Steer screen says of a row of the bench, and of its dose-response or scale search as far as it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from textual.content import Content

from lens_tui.records.gates import gate_sign
from lens_tui.records.interventions import BenchRow, mode_of, positions_text
from lens_tui.records.measures import DEFINITIONS, MOST_LENGTHS, QUANTITIES, Curve, DosePoint, DoseResponse, ScaleSearch
from lens_tui.records.run import mean
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.worker.events import DoseMeasured, Event, JobDone, JobFailed, ScaleFound, ScalesTried

from .format import figure, fit, signed

_TERM = re.compile(r"([+-]?)\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*[*×]\s*)?(\d+)\s*")
_WITHOUT = re.compile(r"\s*(\d+)\s+without\s+(\d+(?:\s*,\s*\d+)*)\s*$")


def arm_words(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """The arm of a row that was put on the bench, and what it acts with where no arm was free: ``arm 3``."""
    others = [other.vector.name for other in rows if other.arm == row.arm and other.id != row.id]
    return f"arm {row.arm}" + (f" (none is free: with {one_line(others[0], 24)})" if others else "")


def on_bench(what: str, row: BenchRow, rows: Sequence[BenchRow], key: str, *, scaled: bool = False) -> str:
    """What is said of a row that another screen put on the bench.

    Args:
        what: What the row is, as the screen calls it.
        row: The row.
        rows: All of the bench, this one among them.
        key: The key that shows Generate.
        scaled: Whether its scale is said: where the screen chose it.
    """
    at = f" at {row.scale:+g}" if scaled else ""
    return f"{what} is on the bench as {arm_words(row, rows)}{at}: {key} shows it."


def read_sum(text: str, rows: int) -> tuple[list[tuple[float, int]], bool] | None:
    """Factors and row numbers (from 0), and whether it is one row without the others; ``None`` if it is neither.

    ``rows`` is how many rows there are; they are written counted from 1, each at most once.
    """
    if match := _WITHOUT.match(text):
        found = [(1.0, int(number)) for number in (match[1], *re.split(r"\s*,\s*", match[2]))]
        return _counted(found, rows, less=True)
    found, place = [], 0
    body = text.strip()
    while place < len(body):
        term = _TERM.match(body, place)
        if term is None or (place and not term[1]):
            return None
        found.append((float(term[2] or 1) * (-1 if term[1] == "-" else 1), int(term[3])))
        place = term.end()
    return _counted(found, rows, less=False)


def _counted(found: list[tuple[float, int]], rows: int, *, less: bool) -> tuple[list[tuple[float, int]], bool] | None:
    numbers = [number for _, number in found]
    good = numbers and all(1 <= number <= rows for number in numbers) and len(set(numbers)) == len(numbers)
    return ([(factor, number - 1) for factor, number in found], less) if good else None


def short(value: float) -> str:
    """A scale in at most five cells, for the head of a column: ``-76``, ``4.8``, ``.25``, ``1.5k``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 995:
        text = f"{size / 1000:.1f}".removesuffix(".0") if size < 9950 else f"{size / 1000:.0f}"
        text += "k"
    elif size >= 9.95:
        text = f"{size:.0f}"
    elif size >= 0.995:
        text = f"{size:.1f}".removesuffix(".0")
    else:
        text = f"{size:.2g}".lstrip("0")
    return f"-{text}" if value < 0 else text


def amount(row: BenchRow, scale: float | None = None) -> str:
    """The row's scale, or another, with its sign, as precisely as the row's steps need it."""
    scale = row.scale if scale is None else scale
    return signed(scale, 1 if row.step >= 0.1 else 2 if row.step >= 0.01 else 3)


def relative(row: BenchRow, scale: float | None = None) -> str:
    """The row's scale, or another, as multiples of what is known: the feature's maximum, the median residual norm."""
    parts, scale = [], row.scale if scale is None else scale
    if row.mode == "norm_match":
        return "× each token's ‖h‖"
    if row.mode == "project_out":
        return ""
    if row.rest and row.mode == "add":
        return "× as made"
    if row.vector.max_activation:
        parts.append(f"×{abs(scale) / row.vector.max_activation:.2f} max")
    if row.residual_norm:
        parts.append(f"×{abs(scale) / row.residual_norm:.2f} ‖h‖")
    return " ".join(parts)


def too_strong(row: BenchRow) -> str:
    """What is to be thought of before a row gets a scale beyond reason; nothing of any other.

    Without a known ‖h‖ it is held against a hundred times the row's unit.
    """
    size = abs(row.scale)
    if row.rest and row.mode == "add":
        size *= row.vector.norm
    if mode_of(row.mode).amount == "":
        return ""
    if row.mode == "norm_match" or row.residual_norm:
        lengths = size if row.mode == "norm_match" else size / (row.residual_norm or 1.0)
        return f"{row.scale:g} is {lengths:,.0f} × ‖h‖: nothing of the text is left there." * (lengths > MOST_LENGTHS)
    much = size > 10 * MOST_LENGTHS * row.unit
    return f"{row.scale:g} is {size / row.unit:,.0f} × {row.unit:g}: nothing of the text is left there." * much


def layers_text(row: BenchRow) -> str:
    """The layers of a row in a few cells: ``L4``, of a set ``L4–9``, with gaps ``L4…9``."""
    layers = row.layers
    if len(layers) == 1:
        return f"L{row.layer}"
    return f"L{layers[0]}{'–' if layers[-1] - layers[0] == len(layers) - 1 else '…'}{layers[-1]}"


def mode_and_positions(row: BenchRow) -> str:
    """Mode, positions and gate in a few words; nothing for what a row usually does: add, at all tokens."""
    parts = [] if row.mode == "add" else [mode_of(row.mode).label]
    parts += [] if row.positions is None else [positions_text(row.positions)]
    parts += [] if row.gate is None else [one_line(gate_sign(row.gate), 60)]
    return " · ".join(parts)


State = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Series:
    """One measure over the scales: its name in ``DEFINITIONS``, what it is called, and a value or ``None`` a scale.

    ``top`` is the value of a full bar, ``base`` that of none. ``curve`` has its knee and where it turns back; a
    control has none.
    """

    name: str
    label: str
    values: tuple[float | None, ...]
    top: float
    places: int
    curve: Curve | None = None
    control: bool = False
    base: float = 0.0

    def height(self, value: float) -> float:
        """The share of a full bar that a value has."""
        return (value - self.base) / (self.top - self.base) if self.top != self.base else 0.0


@dataclass(frozen=True, slots=True)
class DoseView:
    """A dose-response. ``measured_of`` is what it was measured of: a row that differs from it has another one."""

    scales: tuple[float, ...]
    measured_of: tuple[Any, ...]
    response: DoseResponse | None = None
    state: State = "running"

    @property
    def measured(self) -> int:
        """How many scales are there."""
        return len(self.response.points) if self.response else 0

    def point(self, place: int) -> DosePoint | None:
        """What was measured at a scale, if it is there already."""
        points = self.response.points if self.response else ()
        return next((point for point in points if point.scale == self.scales[place]), None)

    def series(self) -> tuple[Series, ...]:
        """Its measures: each effect with its random control under it."""
        points = [self.point(place) for place in range(len(self.scales))]
        ended = self.response.curves if self.response and self.state != "running" else ()  # else knees would wander
        curves = {curve.name: curve for curve in ended}
        loss = [None if p is None else p.delta_loss.delta for p in points]
        kl = [None if p is None else p.on_baseline.mean_forward for p in points]
        found = [
            _series("delta_loss", loss, curves, 3),
            _control(loss, [mean(p.random_delta) if p else None for p in points], 3),
            _series("kl", kl, curves, 2),
            _control(kl, [mean(p.random_kl) if p else None for p in points], 2),
            _series("ppl_unsteered", [None if p is None else p.ppl_unsteered for p in points], curves, 1),
            _series("distinct_2", [None if p is None else p.degeneration.distinct_2 for p in points], curves, 2, 1.0),
        ]
        if self.response is not None and self.response.baseline_read_back is not None:
            back = [None if p is None or p.read_back is None else p.read_back.mean for p in points]
            found.append(_series("read_back", back, curves, 1))
        if self.response is not None and self.response.baseline_behaviour is not None:
            answered = [None if p is None or p.behaviour is None else p.behaviour.difference for p in points]
            # It has no zero to start from: the bars stand on the lowest.
            lowest = -_top([None if value is None else -value for value in answered])
            found.append(replace(_series("behaviour", answered, curves, 2), base=lowest))
        return tuple(series for series in found if series is not None)

    def after(self, event: Event) -> DoseView:
        """The view after an event of its job."""
        match event:
            case DoseMeasured(_, response):
                return replace(self, response=response)
        return replace(self, state=_ended(event, self.state))

    def note(self) -> str:
        """How far it is, for the pane's title."""
        total = many(len(self.scales), "scale")
        if self.state == "running":
            return f"{self.measured} of {total}"
        return total if self.measured == len(self.scales) else f"{self.state} at {self.measured} of {total}"


@dataclass(frozen=True, slots=True)
class SearchView:
    """A search for the scale that reaches a target. ``sign`` is -1 where negative scales are searched."""

    quantity: str
    target: float
    measured_of: tuple[Any, ...]
    sign: float = 1.0
    tried: tuple[tuple[float, float], ...] = ()
    search: ScaleSearch | None = None
    state: State = "running"

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales tried, ascending."""
        return tuple(sorted(self.sign * scale for scale, _ in self.tried))

    @property
    def found(self) -> float | None:
        """The scale it ended with."""
        return None if self.search is None else self.sign * self.search.scale

    def series(self) -> tuple[Series, ...]:
        """The one quantity that is searched by, its bars full at twice the target."""
        values = {self.sign * scale: value for scale, value in self.tried}
        known = [values[scale] if values[scale] - values[scale] == 0 else None for scale in self.scales]
        return (Series(self.quantity, QUANTITIES[self.quantity][0], tuple(known), 2 * self.target, 3),)

    def after(self, event: Event) -> SearchView:
        """The view after an event of its job."""
        match event:
            case ScalesTried(_, tried):
                return replace(self, tried=tried)
            case ScaleFound(_, search):
                return replace(self, search=search)
        return replace(self, state=_ended(event, self.state))

    def note(self) -> str:
        """How far it is, for the pane's title."""
        tried = f"{many(len(self.tried), 'scale')} tried"
        return tried if self.state in ("running", "done") else f"{self.state}, {tried}"


View = DoseView | SearchView


def _ended(event: Event, state: State) -> State:
    match event:
        case JobDone(_, stopped):
            return "stopped" if stopped else "done"
        case JobFailed():
            return "failed"
    return state


def _series(
    name: str, values: Sequence[float | None], curves: dict[str, Curve], places: int, top: float | None = None
) -> Series:
    return Series(name, DEFINITIONS[name][0], tuple(values), top or _top(values), places, curves.get(name))


def _control(effect: Sequence[float | None], values: Sequence[float | None], places: int) -> Series | None:
    """The random directions under an effect, on the effect's own scale; nothing where none were measured."""
    if all(value is None for value in values):
        return None
    label = f"  {DEFINITIONS['random'][0]}"
    return Series("random", label, tuple(values), max(_top(effect), _top(values)), places, control=True)


def _top(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None and value - value == 0), default=0.0)


Part = str | tuple[str, str]


def dose_lines(view: DoseView, row: BenchRow, place: int, series: Series, width: int) -> list[Content]:
    """The scale under the cursor in numbers, its text beside the plain one, and what the chosen measure is."""
    point, response = view.point(place), view.response
    if point is None or response is None:
        return [_head(row, view.scales[place], "not measured yet" if view.state == "running" else "not measured")]
    moved = "" if point.dose is None else f"moved {point.dose:.3f} ‖h‖"
    return [
        _head(row, point.scale, moved),
        Content(_measured(point, response, series)),
        _shape(series.curve),
        _quote("plain", response.baseline_text, width),
        _quote(amount(row, point.scale), point.text, width),
        Content(""),
        _definition(series.name),
    ]


def _head(row: BenchRow, scale: float, more: str) -> Content:
    parts: list[Part] = [("scale ", "$muted"), (amount(row, scale), "bold")]
    said = [part for part in (relative(row, scale), more) if part]
    parts += [(f"   {part}", "$muted") for part in said]
    return Content.assemble(*parts)


def _measured(point: DosePoint, response: DoseResponse, series: Series) -> str:
    match series.name:
        case "delta_loss":
            loss = point.delta_loss
            controls = _controls(point.random_delta, point.flipped_delta, 3)
            texts = f"{many(loss.n_texts, 'text')}{controls}"
            return f"Δ loss {loss.delta:+.3f} nat [{loss.low:+.3f}, {loss.high:+.3f}], {texts}"
        case "kl":
            held = point.on_baseline
            controls = _controls(point.random_kl, point.flipped_kl, 2)
            both = f"KL {held.mean_forward:.2f} nat, most {held.max_forward:.2f}, reverse {held.mean_reverse:.2f}"
            return f"{both}{controls}"
        case "ppl_unsteered":
            both = f"{point.ppl_unsteered:.1f} to the plain model, {point.ppl_steered:.1f} to the steered"
            return f"perplexity {both}; the plain text {response.baseline_ppl:.1f}"
        case "distinct_2":
            now, plain = point.degeneration, response.baseline_degeneration
            both = f"distinct-2 {figure(now.distinct_2, 2)}, plain {figure(plain.distinct_2, 2)}"
            repeat = f"longest repeat {now.longest_repeat} of {many(now.n_tokens, 'token')}"
            return f"{both}; {repeat}, zlib {now.zlib_ratio:.2f}"
        case "read_back" if point.read_back is not None and response.baseline_read_back is not None:
            here, there = point.read_back, response.baseline_read_back
            return f"read-back {here.mean:.2f}, most {here.max:.1f}; plain {there.mean:.2f}, most {there.max:.1f}"
        case "behaviour" if point.behaviour is not None and response.baseline_behaviour is not None:
            asked, plain_answers = point.behaviour, response.baseline_behaviour
            both = f"{asked.difference:+.3f} [{asked.low:+.3f}, {asked.high:+.3f}] nat"
            share = f"share {asked.share:.2f}, chosen {asked.chosen * asked.n:g} of {asked.n}"
            return f"{both}, plain {plain_answers.difference:+.3f}; {share}"
    loss_of = ", ".join(f"{value:+.3f}" for value in point.random_delta)
    kl_of = ", ".join(f"{value:.2f}" for value in point.random_kl)
    return f"random directions: Δ loss {loss_of} nat; KL {kl_of} nat"


def _controls(random: Sequence[float], turned: float | None, places: int) -> str:
    parts = []
    if random:
        parts.append(f"random {sum(random) / len(random):+.{places}f}")
    if turned is not None:
        parts.append(f"flipped {turned:+.{places}f}")
    return f"; {', '.join(parts)}" if parts else ""


def _shape(curve: Curve | None) -> Content:
    """Where a curve bends and turns back; nothing of a control."""
    if curve is None:
        return Content("")
    parts = [] if curve.knee is None else [f"◆ knee at {short(curve.knee)}"]
    if curve.reversals:
        steps = ", ".join(f"{short(first)} to {short(second)}" for first, second in curve.reversals[:3])
        parts.append(f"↩ turns back from {steps}")
    return Content.styled("   ".join(parts) or "no knee, does not turn back", "$muted")


def _quote(label: str, text: str, width: int) -> Content:
    """One line: where the text is longer, its beginning."""
    quoted = fit(f"“{one_line(text.strip(), 500)}”", max(20, width - 9)).rstrip()
    return Content.assemble((f"{label:<8}", "$muted"), quoted)


def _definition(name: str) -> Content:
    label, words = DEFINITIONS[name]
    return Content.assemble((f"{label}  ", "bold $muted"), (words, "$muted"))


def search_lines(view: SearchView, row: BenchRow, place: int, take: str) -> list[Content]:
    """The scale under the cursor, and what the search came to."""
    label, unit, _ = QUANTITIES[view.quantity]
    goal = f"{label} {view.target:+g} {unit}".strip()
    lines = [Content.assemble(("target ", "$muted"), goal)]
    if place < len(view.scales):
        scale = view.scales[place]
        value = dict(view.tried)[view.sign * scale]
        lines.append(_head(row, scale, f"{label} {value:+.3f} {unit}".strip()))
    search = view.search
    if search is not None and view.found is not None:
        verdict = "reached at" if search.reached else "not reached; nearest"
        parts: list[Part] = [f"{verdict} ", (amount(row, view.found), "bold $accent"), f": {search.value:+.3f}"]
        if search.held_out is not None:
            over = "questions" if view.quantity == "behaviour" else "texts"
            parts.append(f" on half the {over}, {search.held_out:+.3f} on the half held out")
        lines += [Content(""), Content.assemble(*parts), Content.styled(f"{take} gives it to the row", "$muted")]
        if search.curve.reversals:
            lines.append(Content.styled("↩ the curve turns back on the way: the first crossing counts", "$muted"))
        lines += [Content(sentence) for sentence in search.notes]
    return [*lines, Content(""), _definition(view.quantity)]
