"""The words under the curves of the dose pane: the scale under the cursor, one measure there, and what it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from lens_tui.records.measure_words import DEFINITIONS, QUANTITIES
from lens_tui.records.measures import Curve, DosePoint, DoseResponse
from lens_tui.records.sanitise import one_line
from lens_tui.tui.bench_text import amount, relative, short
from lens_tui.tui.dose_view import DoseView, SearchView, Series
from lens_tui.tui.format import figure, fit
from lens_tui.tui.session import Steer

Part = str | tuple[str, str]


def dose_lines(view: DoseView, row: Steer, place: int, series: Series, width: int) -> list[Content]:
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


def _head(row: Steer, scale: float, more: str) -> Content:
    parts: list[Part] = [("scale ", "$muted"), (amount(row, scale), "bold")]
    said = [part for part in (relative(row, scale), more) if part]
    parts += [(f"   {part}", "$muted") for part in said]
    return Content.assemble(*parts)


def _measured(point: DosePoint, response: DoseResponse, series: Series) -> str:
    match series.name:
        case "delta_loss":
            loss = point.delta_loss
            controls = _controls(point.random_delta, point.flipped_delta, 3)
            return f"Δ loss {loss.delta:+.3f} nat [{loss.low:+.3f}, {loss.high:+.3f}], {loss.n_texts} texts{controls}"
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
            return f"{both}; longest repeat {now.longest_repeat} of {now.n_tokens} tokens, zlib {now.zlib_ratio:.2f}"
        case "read_back" if point.read_back is not None and response.baseline_read_back is not None:
            here, there = point.read_back, response.baseline_read_back
            return f"read-back {here.mean:.2f}, most {here.max:.1f}; plain {there.mean:.2f}, most {there.max:.1f}"
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


def search_lines(view: SearchView, row: Steer, place: int, take: str) -> list[Content]:
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
            parts.append(f" on half the texts, {search.held_out:+.3f} on the half held out")
        lines += [Content(""), Content.assemble(*parts), Content.styled(f"{take} gives it to the row", "$muted")]
        if search.curve.reversals:
            lines.append(Content.styled("↩ the curve turns back on the way: the first crossing counts", "$muted"))
    return [*lines, Content(""), _definition(view.quantity)]
