"""A stretch of text on which a feature is active, as a line around its peak. Pure."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content

from .feature_data import Example
from .ramps import BARS, DIGITS, share_level
from .token_paint import ShadeMode


def example_lines(example: Example, width: int, maximum: float, mode: ShadeMode) -> list[Content]:
    """One line of an example around its peak, shaded; with bars or digits, a second line under it.

    The peaks of all examples stand under each other. The peak is bold and underlined, so that it shows without colour.
    """
    first, last, indent = _around(example, width)
    text: list[str | tuple[str, str]] = [" " * indent]
    under: list[str | tuple[str, str]] = [" " * indent]
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


def _around(example: Example, width: int) -> tuple[int, int, int]:
    """The tokens that fit around the peak, first and behind the last, and the cells to leave before them."""
    column = width * 11 // 20
    first, last = example.peak, example.peak + 1
    before, after = 0, cell_len(example.tokens[first])
    while first > 0 and before + cell_len(example.tokens[first - 1]) <= column:
        first -= 1
        before += cell_len(example.tokens[first])
    while last < len(example.tokens) and after + cell_len(example.tokens[last]) <= width - column:
        after += cell_len(example.tokens[last])
        last += 1
    return first, last, column - before
