"""A feature's page as lines of text, and the widget that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui import demo
from lens_tui.records.features import ContrastedFeature, FeatureActivity, FeatureExample, FeatureFacts
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.records.wording import many
from lens_tui.tui.format import BARS, DIGITS, NEWLINE, bar, count, figure, fit, histogram, share_level, signed
from lens_tui.worker.events import FeaturePage, TokenWeight

from .token_layout import TAB, ShadeMode, standalone

if TYPE_CHECKING:
    from lens_tui.records.labels import Label


def one_row(token: str) -> str:
    """A token's text safe and in one row, its line breaks and tabs as marks."""
    return standalone(sanitise_token(token)).replace("\n", NEWLINE).replace("\t", TAB)


def example_lines(example: FeatureExample, width: int, maximum: float, mode: ShadeMode) -> list[Content]:
    """One line of an example around its peak, shaded; with bars or digits, a second line under it.

    The peaks of all examples are aligned. The peak is bold and underlined, so that it shows without colour.
    """
    tokens = [one_row(token) for token in example.tokens]
    first, last, indent = _around(tokens, example.peak, width)
    text: list[str | tuple[str, str]] = [" " * indent]
    under: list[str | tuple[str, str]] = [" " * indent]
    for place in range(first, last):
        token = tokens[place]
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


def _around(tokens: Sequence[str], peak: int, width: int) -> tuple[int, int, int]:
    """The tokens that fit around the peak, first and behind the last, and the cells to leave before them."""
    column = width * 11 // 20
    first, last = peak, peak + 1
    before, after = 0, cell_len(tokens[first])
    while first > 0 and before + cell_len(tokens[first - 1]) <= column:
        first -= 1
        before += cell_len(tokens[first])
    while last < len(tokens) and after + cell_len(tokens[last]) <= width - column:
        after += cell_len(tokens[last])
        last += 1
    return first, last, column - before


SECTIONS = {
    "top": "strongest token of each document",
    "sample": "at random from every octave",
    "near": "by cosine of decoder directions",
    "together": "by Jaccard index of their tokens",
}
"""What the lower half of a page can list, and what that is."""

_NO_INDEX = "No index of this SAE: {} makes one."
_NEVER = "Never active in this index."
_NO_SAMPLE = "The index of this SAE keeps no sample of weaker activations."
_NO_LABEL = Content.styled("no label", "$muted")


def page_name(page: FeaturePage) -> Content:
    """What a list calls a feature: its label, or behind an arrow the tokens it promotes where nobody labelled it."""
    label = _label(page.facts)
    return Content(label) if label else promoted_name(page.facts.promoted)


def promoted_name(promoted: Sequence[TokenWeight]) -> Content:
    """The tokens a feature promotes in the place of a label, so that it cannot be taken for one."""
    names = token_names(promoted)
    return Content.styled(f"→ {names}", "$muted italic") if names else Content("")


def short_name(page: FeaturePage) -> str:
    """A feature's label, or the tokens it promotes most where nobody labelled it."""
    return _label(page.facts) or token_names(page.facts.promoted)


def _label(facts: FeatureFacts) -> str:
    return one_line(facts.label.text, 200) if facts.label is not None else ""


def token_names(promoted: Sequence[TokenWeight]) -> str:
    """The first few tokens a direction promotes, as a name."""
    return ", ".join(one_line(item.text, 20) or "␣" for item in promoted[:4])


@dataclass(frozen=True, slots=True)
class FeatureMarks:
    """What stands before a feature's name: pinned, marked, and the share of tokens of a dense one."""

    pinned: bool = False
    marked: bool = False
    dense: float | None = None

    def content(self) -> Content:
        """Three cells, one sign in the middle of them, and the share behind its sign."""
        signs = ("✓" if self.marked else "") + ("◆" if self.pinned else "")
        return Content.assemble((signs.rjust(2), "$accent"), " ", self._share())

    def short(self) -> Content:
        """The signs that are set, with a blank behind each."""
        signs = ("✓ " if self.marked else "") + ("◆ " if self.pinned else "")
        return Content.assemble((signs, "$accent"), self._share())

    def _share(self) -> Content:
        return Content.styled("" if self.dense is None else f"≋{self.dense:.0%} ", "$muted")


def _with_name(head: Content, name: Content, width: int, marks: FeatureMarks) -> Content:
    """The figures of a row, its marks, and as much of the name as there is room for."""
    before = Content.assemble(head, marks.content())
    return Content.assemble(before, name.truncate(max(0, width - before.cell_length), ellipsis=True, pad=True))


def feature_row(
    feature: int, value: float, maximum: float, name: Content, width: int, marks: FeatureMarks | None = None
) -> Content:
    """One line of a token's features: id, activation, its bar as a share of ``maximum``, name.

    The name gives way last: the bar is as wide as a long name leaves it, and in a narrow pane as high as it was wide.
    """
    bar_width = 10 if width >= 72 else 4 if width >= 56 else 1
    share = value / maximum if maximum > 0 else 0.0
    filled = bar(share, bar_width).ljust(bar_width) if bar_width > 1 else BARS[share_level(value, maximum)]
    head = Content.assemble(f"{feature:>6} {value:>6.2f} ", (filled, "$heat-5"))
    return _with_name(head, name, width, marks or FeatureMarks())


def named_row(feature: int, name: Content, width: int, marks: FeatureMarks | None = None) -> Content:
    """One line of features that have no value here: id and name."""
    return _with_name(Content(f"{feature:>6}"), name, width, marks or FeatureMarks())


CONTRAST_HEAD = "      id  AUC     d     p"
"""The columns of :func:`contrast_row`, behind the list's caret."""


def contrast_row(row: ContrastedFeature, name: Content, width: int, marks: FeatureMarks | None = None) -> Content:
    """One line of a contrast: id, held-out AUC, standardised difference, p against relabelled texts, name."""
    p = "<.001" if row.p < 0.001 else f"{row.p:.3f}".lstrip("0") if row.p < 1 else "1"
    effect = signed(row.effect) if abs(row.effect) < 100 else _large(row.effect)
    figures = f"{figure(row.auc, 2):>4} {effect:>5} {p:>5}"
    return _with_name(Content.assemble(f"{row.feature:>6} ", figures), name, width, marks or FeatureMarks())


def _large(value: float) -> str:
    """A number of three digits or more, signed, in five cells; an infinite one as such."""
    if not isfinite(value):
        return "+∞" if value > 0 else "-∞"
    return f"{value:+.0f}" if abs(value) < 9999.5 else f"{value:+.0e}".replace("e+0", "e")


def near_row(feature: int, value: float, name: Content, width: int) -> Content:
    """One line of those like a feature: id, how alike, name."""
    head = Content.assemble(f"{feature:>6} ", (f"{value:>5.2f}  ", "$muted"))
    return Content.assemble(head, name.truncate(max(0, width - 14), ellipsis=True, pad=True))


def page_lines(
    page: FeaturePage, width: int, here: float, mode: ShadeMode, section: str = "top", key: str = "I"
) -> list[Content]:
    """The feature page: what it is called, how often and how strongly it fires, what it writes, where it fires.

    ``here`` is its largest activation in the text shown. Of the sections ``near`` and ``together`` only the
    heading is here: their rows are a list with a cursor. ``key`` makes an index.
    """
    facts = page.facts
    label, activity = _label(facts), facts.activity
    lines = [line.rstrip() for line in Content(label).wrap(width)] if label else [_NO_LABEL]
    if facts.label is not None and not facts.label.is_mine:
        lines.append(Content.styled(_says(facts.label), "$muted").truncate(width))
    lines += [Content(""), *_figures(activity, here, width)]
    if activity is not None and activity.counted_tokens:
        corpus = one_line(activity.corpus, 80)
        tokens = many(activity.counted_tokens, "token", count(activity.counted_tokens))
        over = f"{'never active ' if _is_silent(activity) else ''}in {tokens}" + (f" · {corpus}" if corpus else "")
        lines += [line.rstrip() for line in Content.styled(over, "$muted").wrap(width)]
    if activity is not None and any(activity.histogram):
        lines += [Content(""), *_histogram(activity, here, width)]
    lines += [Content(""), *_tokens(facts, width)]
    return [*lines, Content(""), *section_lines(facts, section, width, mode, key)]


def _is_silent(activity: FeatureActivity) -> bool:
    """Whether an index counted and found nothing."""
    return activity.count == 0 and bool(activity.counted_tokens)


def _says(label: Label) -> str:
    """Who says so, and how well it did."""
    score = "" if label.score is None else f" · {one_line(label.scorer, 60) or 'score'} {label.score:.2f}"
    whose = "bundled" if label.source == demo.LABEL_SOURCE else f"says {one_line(label.source, 60)}"
    return f"{whose}{score}"


def section_lines(facts: FeatureFacts, section: str, width: int, mode: ShadeMode, key: str = "I") -> list[Content]:
    """The names of the sections, what the chosen one is, and its examples."""
    names = [(f"▐{name}▌", "bold") if name == section else (f" {name} ", "$muted") for name in SECTIONS]
    lines = [Content.assemble(*names), Content.styled(SECTIONS[section], "$muted").truncate(width, ellipsis=True)]
    activity = facts.activity or FeatureActivity("")
    examples = [("", activity.examples)] if section == "top" else []
    if section == "sample":
        examples = [(f"from {edge:.3g}", group) for edge, group in activity.samples]
    peak = max((max(example.values) for _, group in examples for example in group), default=0.0)
    for heading, group in examples:
        lines += [Content.styled(heading, "$muted")] if heading else []
        for example in group:
            lines += example_lines(example, width, peak, mode)
    if len(lines) == 2 and section in ("top", "sample"):
        without = _NO_SAMPLE if activity.examples else _NEVER if _is_silent(activity) else _NO_INDEX.format(key)
        why = facts.problem or without
        lines[1:] = Content.styled(why, "$muted").wrap(width)
    return lines


def _figures(activity: FeatureActivity | None, here: float, width: int) -> list[Content]:
    """Density, maximum and the value in this text: in one line, or where there is no room each whole in one of two."""
    figures: list[tuple[str, str]] = []
    known = None if activity is None or _is_silent(activity) else activity
    if known is not None and known.density is not None:
        figures.append(("density ", f"{100 * known.density:.2g} %"))
    if known is not None and known.max is not None:
        figures.append(("max ", f"{known.max:.3g}"))
    figures.append(("here ", f"{here:.3g}"))
    parts = [Content.assemble((name, "$muted"), value) for name, value in figures]
    line = Content("  ").join(parts)
    return [line] if line.cell_length <= width else [parts[0], Content("  ").join(parts[1:])]


def _histogram(activity: FeatureActivity, here: float, width: int) -> list[Content]:
    """Two rows of bars over the bins between the first and the last that hold anything, and their axis."""
    filled = [place for place, number in enumerate(activity.histogram) if number > 0] or [0]
    counts = activity.histogram[filled[0] : filled[-1] + 1]
    edges = activity.edges[filled[0] : filled[-1] + 2]
    each = max(1, min(width, 60) // len(counts))  # cells a bin
    upper, lower = histogram([number for number in counts for _ in range(each)], width)
    rows = [Content.styled(row, "$heat-5") for row in (upper, lower)]
    if len(edges) < 2:
        return rows
    mark = None
    if here > 0 and len(lower) > 1:
        above = sum(1 for edge in edges[1:] if edge <= here)
        mark = min(len(lower) - 1, (2 * above + 1) * len(lower) // (2 * len(counts)))
    return [*rows, Content.styled(_axis(f"{edges[0]:.3g}", f"{edges[-1]:.3g}", mark, len(lower)), "$muted")]


def _axis(low: str, high: str, mark: int | None, width: int) -> str:
    """The ends of an axis, and the mark of this text on it, to which they give way."""
    start, end = 0, width - len(high)
    if mark is not None:
        start = mark + 2 if mark <= len(low) else start
        end = mark - 1 - len(high) if mark >= end - 1 else end
    cells = [" "] * width
    for place, text in ((start, low), (end, high)):
        if place >= 0 and (place == start or place > start + len(low)):
            cells[place : place + len(text)] = text
    if mark is not None:
        cells[mark] = "▲"
    return "".join(cells[:width])


def _tokens(facts: FeatureFacts, width: int) -> list[Content]:
    half = max(10, (width - 2) // 2)
    lines = [Content.assemble((fit("promotes", half), "$muted"), "  ", ("suppresses", "$muted"))]
    for row in range(max(len(facts.promoted), len(facts.suppressed))):
        pair = [items[row] if row < len(items) else None for items in (facts.promoted, facts.suppressed)]
        lines.append(Content("  ").join(_weight(item, half) for item in pair))
    return lines


def _weight(item: TokenWeight | None, width: int) -> Content:
    if item is None:
        return Content(" " * width)
    text = one_row(item.text)
    text = "·" + text[1:] if text.startswith(" ") else text
    return Content.assemble(fit(text, width - 7), (f" {item.value:+6.2f}", "$muted"))


class FeatureCard(Widget):
    """Shows lines made by :func:`page_lines` for its own width."""

    DEFAULT_CSS = "FeatureCard { height: auto; width: 1fr; }"

    page: reactive[FeaturePage | None] = reactive[FeaturePage | None](None, layout=True)
    here: reactive[float] = reactive(0.0)
    mode: reactive[ShadeMode] = reactive[ShadeMode]("tint", layout=True)
    section: reactive[str] = reactive("top", layout=True)
    empty: reactive[str] = reactive("")
    index_key = "I"

    def render(self) -> RenderResult:
        """The page, or what to do to see one."""
        if self.page is None:
            return Content.styled(self.empty, "$muted")
        width = max(24, self.size.width)
        return Content("\n").join(self._lines(width))

    @property
    def section_row(self) -> int:
        """The row with the names of the sections."""
        if self.page is None:
            return 0
        width = max(24, self.size.width)
        section = section_lines(self.page.facts, self.section, width, self.mode, self.index_key)
        return len(self._lines(width)) - len(section)

    def _lines(self, width: int) -> Sequence[Content]:
        assert self.page is not None
        return page_lines(self.page, width, self.here, self.mode, self.section, self.index_key)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many rows as there are lines."""
        return 1 if self.page is None else len(self._lines(max(24, width)))
