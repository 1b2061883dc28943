"""What is known of one feature, as lines of content. Pure but for the small widget at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import fit
from lens_tui.worker.events import FeaturePage, TokenWeight

from .ramps import BARS, DIGITS, bar, histogram, share_level
from .token_layout import NEWLINE, TAB, shown
from .token_paint import ShadeMode

_NO_LABEL = Content.styled("no label", "$muted")


@dataclass(frozen=True, slots=True)
class Example:
    """A stretch of text on which the feature was active, and the token where most."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True, slots=True)
class Extras:
    """What an index knows of a feature; everything may be missing."""

    label: str = ""
    source: str = ""
    score: float | None = None
    scorer: str = ""
    density: float | None = None
    maximum: float | None = None
    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    examples: tuple[Example, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Extras:
        """Read a page's ``extras``; what is malformed counts as missing."""
        return cls(
            one_line(str(data.get("label") or ""), 200),
            one_line(str(data.get("label_source") or ""), 60),
            _number(data.get("label_score")),
            one_line(str(data.get("label_scorer") or ""), 60),
            _number(data.get("density")),
            _number(data.get("max")),
            tuple(float(edge) for edge in data.get("hist_edges") or ()),
            tuple(float(count) for count in data.get("hist_counts") or ()),
            tuple(_example(item) for item in data.get("examples") or () if item.get("tokens")),
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _example(item: Mapping[str, Any]) -> Example:
    tokens = tuple(_one_row(str(token)) for token in item["tokens"])
    values = [float(value) for value in item.get("values") or ()][: len(tokens)]
    values += [0.0] * (len(tokens) - len(values))
    peak = item.get("peak")
    top = max(range(len(values)), key=values.__getitem__)
    return Example(tokens, tuple(values), peak if isinstance(peak, int) and 0 <= peak < len(tokens) else top)


def _one_row(token: str) -> str:
    from lens_tui.records.sanitise import sanitise_token

    return shown(sanitise_token(token)).replace("\n", NEWLINE).replace("\t", TAB)


def short_name(page: FeaturePage) -> str:
    """A feature's label, or the tokens it promotes most where nobody labelled it."""
    label = Extras.of({"label": page.extras.get("label")}).label
    return label or token_names(page.promoted)


def token_names(promoted: Sequence[TokenWeight]) -> str:
    """The first few tokens a direction promotes, as a name."""
    return ", ".join(one_line(item.text, 20) or "␣" for item in promoted[:4])


def feature_row(feature: int, value: float, maximum: float, name: str, width: int, pinned: bool) -> Content:
    """One line of the feature list: id, activation, bar, name."""
    bar_width = 10 if width >= 44 else 6
    head = f"{feature:>6} {value:>6.2f} "
    filled = bar(value / maximum if maximum > 0 else 0.0, bar_width)
    room = max(0, width - len(head) - bar_width - 2)
    return Content.assemble(
        head,
        (filled.ljust(bar_width), "$heat-5"),
        (" ◆" if pinned else "  ", "$accent"),
        fit(name, room),
    )


def page_lines(page: FeaturePage, width: int, here: float, mode: ShadeMode) -> list[Content]:
    """The feature page: what it is called, how often and how strongly it fires, what it writes, where it fires most.

    ``here`` is its largest activation in the text shown.
    """
    extras = Extras.of(page.extras)
    lines = [line.rstrip() for line in Content(extras.label).wrap(width)] if extras.label else [_NO_LABEL]
    if extras.label and extras.source not in ("", "mine"):
        score = "" if extras.score is None else f" · {extras.scorer or 'score'} {extras.score:.2f}"
        lines.append(Content.styled(f"says {extras.source}{score}", "$muted").truncate(width))
    lines += [Content(""), _figures(extras, here)]
    if extras.counts:
        lines += [Content(""), *_histogram(extras, here, width)]
    lines += [Content(""), *_tokens(page, width)]
    if extras.examples:
        lines += [Content(""), Content.styled("top examples", "$muted")]
        peak = max(max(example.values) for example in extras.examples)
        for example in extras.examples:
            lines += example_lines(example, width, peak, mode)
    return lines


def _figures(extras: Extras, here: float) -> Content:
    parts: list[str | tuple[str, str]] = []
    if extras.density is not None:
        parts += [("density ", "$muted"), f"{100 * extras.density:.2g} %  "]
    if extras.maximum is not None:
        parts += [("max ", "$muted"), f"{extras.maximum:.3g}  "]
    return Content.assemble(*parts, ("here ", "$muted"), f"{here:.3g}")


def _histogram(extras: Extras, here: float, width: int) -> list[Content]:
    each = max(1, min(width, 60) // len(extras.counts))  # cells a bin
    upper, lower = histogram([count for count in extras.counts for _ in range(each)], width)
    rows = [Content.styled(row, "$heat-5") for row in (upper, lower)]
    if len(extras.edges) < 2:
        return rows
    low, high = extras.edges[0], extras.edges[-1]
    axis = f"{low:.3g}".ljust(max(0, len(lower) - len(f"{high:.3g}"))) + f"{high:.3g}"
    if here > 0 and len(lower) > 1:
        above = sum(1 for edge in extras.edges[1:] if edge <= here)
        place = min(len(lower) - 1, (2 * above + 1) * len(lower) // (2 * len(extras.counts)))
        axis = axis[:place] + "▲" + axis[place + 1 :]
    return [*rows, Content.styled(axis, "$muted")]


def _tokens(page: FeaturePage, width: int) -> list[Content]:
    half = max(10, (width - 2) // 2)
    lines = [Content.assemble((fit("promotes", half), "$muted"), "  ", ("suppresses", "$muted"))]
    for row in range(max(len(page.promoted), len(page.suppressed))):
        pair = [items[row] if row < len(items) else None for items in (page.promoted, page.suppressed)]
        lines.append(Content("  ").join(_weight(item, half) for item in pair))
    return lines


def _weight(item: TokenWeight | None, width: int) -> Content:
    if item is None:
        return Content(" " * width)
    text = _one_row(item.text)
    text = "·" + text[1:] if text.startswith(" ") else text
    return Content.assemble(fit(text, width - 7), (f" {item.value:+6.2f}", "$muted"))


def example_lines(example: Example, width: int, maximum: float, mode: ShadeMode) -> list[Content]:
    """One line of an example around its peak, shaded; with bars or digits, a second line under it.

    The peak is bold and underlined, so that it shows without colour.
    """
    first, last = _around(example, width)
    text: list[str | tuple[str, str]] = []
    under: list[str | tuple[str, str]] = []
    for place in range(first, last):
        token = example.tokens[place]
        level = share_level(example.values[place], maximum)
        blank = " " if token.startswith(" ") and len(token) > 1 else ""
        word = token[len(blank) :]
        style = f"$heat-text-{level} on $heat-{level}" if level and mode == "tint" else ""
        if place == example.peak:
            style = f"bold underline {style}"
        text += [blank, (word, style)]
        cells = cell_len(word)
        glyph = (DIGITS[level] if level else "·").ljust(cells) if mode == "digits" else BARS[level] * cells
        under += [blank, (glyph, f"$heat-{max(3, level)}" if level else "$hairline")]
    lines = [Content.assemble(*text).truncate(width)]
    if mode in ("bars", "digits"):
        lines.append(Content.assemble(*under).truncate(width))
    return lines


def _around(example: Example, width: int) -> tuple[int, int]:
    """The tokens that fit around the peak, a little more of what comes before than after."""
    first, last = example.peak, example.peak + 1
    used = cell_len(example.tokens[first])
    while True:
        left = cell_len(example.tokens[first - 1]) if first > 0 else width + 1
        right = cell_len(example.tokens[last]) if last < len(example.tokens) else width + 1
        before, after = example.peak - first, last - 1 - example.peak
        if used + left <= width and (before <= 2 * after or used + right > width):
            first, used = first - 1, used + left
        elif used + right <= width:
            last, used = last + 1, used + right
        else:
            return first, last


class FeatureCard(Widget):
    """Shows lines made by :func:`page_lines` for its own width."""

    DEFAULT_CSS = "FeatureCard { height: auto; width: 1fr; }"

    page: reactive[FeaturePage | None] = reactive[FeaturePage | None](None, layout=True)
    here: reactive[float] = reactive(0.0)
    mode: reactive[ShadeMode] = reactive[ShadeMode]("tint", layout=True)
    empty: reactive[str] = reactive("")

    def render(self) -> RenderResult:
        """The page, or what to do to see one."""
        if self.page is None:
            return Content.styled(self.empty, "$muted")
        width = max(24, self.size.width)
        return Content("\n").join(self._lines(width))

    def _lines(self, width: int) -> Sequence[Content]:
        assert self.page is not None
        return page_lines(self.page, width, self.here, self.mode)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many rows as there are lines."""
        return 1 if self.page is None else len(self._lines(max(24, width)))
