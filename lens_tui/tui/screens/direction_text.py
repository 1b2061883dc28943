"""How the vector bench shows a row, and what its direction does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from lens_tui.records import ALL, SAEInfo
from lens_tui.records.gates import gate_text
from lens_tui.records.interventions import BenchRow, mode_of, positions_text
from lens_tui.records.sanitise import one_line
from lens_tui.tui.bench_text import amount, layers_text, mode_and_positions, relative
from lens_tui.tui.format import bar, fit, fit_left, nice_limit, scale_bar
from lens_tui.worker.events import TokenWeight

from .probe_forms import probe_lines

Part = str | tuple[str, str]


def bench_row(row: BenchRow, width: int) -> list[Content]:
    """Two lines: what, how, where, how much; and the scale as a slider."""
    tone = "" if row.enabled else "$muted"
    manner = mode_and_positions(row)
    manner_width = min(len(manner) + 2, max(0, width - 2 - 16 - 7 - 5 - 9)) if manner else 0
    place = layers_text(row)
    place_width = max(5, len(place) + 1)
    name_width = max(8, width - 2 - manner_width - 7 - place_width - 9)
    has_scale = mode_of(row.mode).amount != ""
    first = Content.assemble(
        ("■ " if row.enabled else "□ ", "$accent" if row.enabled else "$muted"),
        (fit(row.vector.name, name_width - 1) + " ", tone),
        (fit(manner, manner_width), "$muted"),
        (fit(f"arm {row.arm}", 7), tone or "$muted"),
        (fit(place, place_width), tone),
        (fit_left(amount(row) if has_scale else "–", 9), tone),
    )
    if not has_scale:
        return [first, Content.styled(f"  {mode_of(row.mode).does}", "$muted")]
    limit = nice_limit(row.unit, (row.scale,))
    multiples = relative(row)
    ends = f"{limit:.0f}" if limit >= 1.5 else f"{limit:.2g}"
    room = max(9, width - 2 - len(multiples) - 2 - 2 * len(ends) - 4)
    slider = scale_bar(row.scale, limit, min(61, room if room % 2 else room - 1))
    gap = max(2, width - 2 - 2 * len(ends) - 4 - len(slider) - len(multiples))
    second = Content.assemble(
        "  ",
        (f"-{ends} ", "$muted"),
        (slider, tone),
        (f" +{ends}", "$muted"),
        " " * gap,
        (multiples, "$muted"),
    )
    return [first, second]


def origin_lines(row: BenchRow, saes: Sequence[SAEInfo] = ()) -> list[str]:
    """How the direction was made, in plain words; an SAE is called by its name if it is among ``saes``."""
    facts = row.vector.origin.facts
    match row.vector.origin.kind:
        case "feature":
            said = str(facts.get("sae") or "an SAE")
            known = next((sae.name for sae in saes if said in (sae.id, sae.path)), said)
            sae = known.rstrip("/").rpartition("/")[2]
            return [f"feature {facts.get('feature', '?')} of {sae}"]
        case "prompts":
            return [
                f"toward  {_quote(facts.get('positive'))}",
                f"from    {_quote(facts.get('negative'))}",
                f"method  {str(facts.get('method', 'mean_difference')).replace('_', ' ')}",
            ]
        case "probe":
            return probe_lines(row.vector)
        case "random":
            return [f"a random direction (seed {facts.get('seed', 0)}): the control"]
        case "file":
            return [f"from {facts.get('path', 'a file')}"]
        case "token":
            return [f"the {facts.get('kind', 'unembedding')} of {_quote([facts.get('text', '?')])}"]
        case "arithmetic":
            return [_sum(facts)]
        case kind:
            return [f"made by: {kind}"]


def _sum(facts: Mapping[str, Any]) -> str:
    """A sum, or one without others, in the names of its parts."""
    if "without" in facts:
        others = ", ".join(one_line(str(part["name"]), 40) for part in facts["without"])
        return f"{one_line(str(facts['of']['name']), 40)} without {others}"
    terms = [f"{part['factor']:+g} × {one_line(str(part['name']), 40)}" for part in facts.get("sum", ())]
    return " ".join(terms).removeprefix("+") or "a sum"


def _quote(texts: object) -> str:
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
        return one_line(str(texts or "?"), 60)
    more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
    return f"“{one_line(str(texts[0]), 60)}”{more}"


def direction(row: BenchRow, width: int, narrow: bool, saes: Sequence[SAEInfo] = ()) -> Content:
    """The details pane: origin, place, norm, and the tokens it moves."""
    parts: list[Part] = [(row.vector.name, "bold")]
    if narrow:
        parts += [("  " + " · ".join(line.strip() for line in origin_lines(row, saes)), "$muted"), "\n"]
    else:
        parts += [(f"\n{line}", "$muted") for line in origin_lines(row, saes)]
        parts.append("\n\n")
    place = f"{row.vector.site} of layer {row.layer}"
    if row.rest:
        place = f"{row.vector.site} of {len(row.layers)} layers: {', '.join(map(str, row.layers))}"
    elif row.layer != row.vector.layer:
        place += f" (made at layer {row.vector.layer})"
    facts = [mode_and_positions(row), *norms(row)] if mode_and_positions(row) else norms(row)
    parts += [place, ("  " + " · ".join(facts), "$muted"), "\n"] if narrow else [place, "\n"]
    if not narrow:
        parts += [f"{mode_of(row.mode).does}\n", (f"positions: {positions_text(row.positions or ALL)}\n", "$muted")]
        parts += [] if row.gate is None else [(f"{one_line(gate_text(row.gate), 80)}\n", "$muted")]
        parts.append("\n")
        parts += [(f"{line}\n", "$muted") for line in norms(row)]
        parts.append("\n")
    parts += token_columns(row.promoted, row.suppressed, width)
    return Content.assemble(*parts)


def norms(row: BenchRow) -> list[str]:
    """The lengths a scale can be judged by."""
    lines = [f"norm {row.vector.norm:.3g}"]
    if row.rest:
        lengths = [vector.norm for vector in (row.vector, *row.rest)]
        lines = [f"norms {min(lengths):.3g} to {max(lengths):.3g}", f"tokens are those of layer {row.layer}"]
    if row.residual_norm:
        lines.append(f"median ‖h‖ {row.residual_norm:.3g}")
    if row.vector.max_activation:
        lines.append(f"max activation {row.vector.max_activation:.3g}")
    return lines


def token_columns(promoted: Sequence[TokenWeight], suppressed: Sequence[TokenWeight], width: int) -> list[Part]:
    """Promoted and suppressed tokens side by side, each with its weight and a bar."""
    if not promoted and not suppressed:
        return [("What it promotes is not known.", "$muted")]
    half = max(14, (width - 2) // 2)
    top = max((abs(token.value) for token in (*promoted, *suppressed)), default=1.0) or 1.0
    parts: list[Part] = [(fit("promotes", half + 2), "bold $muted"), (fit("suppresses", half), "bold $muted"), "\n"]
    for place in range(max(len(promoted), len(suppressed))):
        for side, tokens in enumerate((promoted, suppressed)):
            token = tokens[place] if place < len(tokens) else None
            parts += _token(token, half, top, "$sign-6" if side == 0 else "$sign-2") if token else [" " * half]
            parts.append("  " if side == 0 else "\n")
    return parts


def _token(token: TokenWeight, width: int, top: float, style: str) -> list[Part]:
    meter = max(3, width - 12 - 6)
    value = f"{token.value:+.2f}"
    return [
        fit(token.text.replace(" ", "·", 1) if token.text.startswith(" ") else token.text, width - meter - 7),
        (fit_left(value, 6) + " ", "$muted"),
        (bar(abs(token.value) / top, meter).ljust(meter), style),
    ]
