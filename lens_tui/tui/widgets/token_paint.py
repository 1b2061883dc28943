"""How a line of tokens is painted: the styles, read once per theme, and the rows as segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from .ramps import BARS, DIGITS, N_LEVELS
from .token_layout import Piece

PEN = "▏"

ShadeMode = Literal["tint", "bars", "digits", "off"]
SHADE_MODES: tuple[ShadeMode, ...] = ("tint", "bars", "digits", "off")


def next_mode(mode: ShadeMode) -> ShadeMode:
    """The mode that ``t`` goes to from here."""
    return SHADE_MODES[(SHADE_MODES.index(mode) + 1) % len(SHADE_MODES)]


@dataclass(frozen=True, slots=True)
class TokenStyles:
    """Ready Rich styles: nothing is parsed while painting.

    ``heat`` is one style per level (level 0 is plain text), ``twin`` paints the
    glyph row under the text.
    """

    base: Style
    heat: tuple[Style, ...]
    twin: tuple[Style, ...]
    muted: Style
    accent: Style
    cursor: Style
    cursor_edge: Style
    mark: Style

    @classmethod
    def of(cls, variables: Mapping[str, str], base: Style) -> TokenStyles:
        """Build from theme variables (``heat-0`` .. ``heat-7`` and their texts) over a widget's base style."""
        variables = variables if "heat-7" in variables else {**_fallback(), **variables}

        def color(name: str) -> str:
            return Color.parse(variables[name]).hex6

        heat = tuple(
            base + Style(color=color(f"heat-text-{level}"), bgcolor=color(f"heat-{level}"))
            for level in range(1, N_LEVELS)
        )
        muted = base + Style(color=color("muted"))
        twin = tuple(base + Style(color=color(f"heat-{max(3, level)}")) for level in range(1, N_LEVELS))
        foreground, background = color("foreground"), color("background")
        return cls(
            base=base,
            heat=(base, *heat),
            twin=(base + Style(color=color("hairline")), *twin),
            muted=muted,
            accent=base + Style(color=color("accent")),
            cursor=base + Style(color=background, bgcolor=foreground, bold=True),
            cursor_edge=base + Style(color=foreground),
            mark=Style(underline=True, bold=True),
        )


def _fallback() -> dict[str, str]:
    from lens_tui.tui.themes import default_variables

    return {"foreground": "#d5d9e0", "background": "#0f1115", "accent": "#7fb4e6", **default_variables()}


def text_row(
    pieces: Sequence[Piece],
    levels: Sequence[int] | None,
    styles: TokenStyles,
    cursor: int | None = None,
    mark: int | None = None,
    pen: bool = False,
) -> list[Segment]:
    """A line of text after a gutter of one cell.

    The blank before a token stays unshaded, so that neighbours can be told
    apart. The token at ``cursor`` is shown as ``▐token▌`` in the blanks around
    it, and nothing moves; the one at ``mark`` is underlined.
    """
    out: list[Segment] = []
    gap, closing = " ", False  # gap: the blank before a token, where the cursor's edge goes
    for token, text, _ in pieces:
        selected = token == cursor
        if text[0] == " " and len(text) > 1:
            gap, text = gap + " ", text[1:]
        if gap and closing:
            out.append(Segment("▌", styles.cursor_edge))
            gap = gap[1:]
        if gap and selected:
            out += [Segment(gap[:-1], styles.base), Segment("▐", styles.cursor_edge)]
        elif gap:
            out.append(Segment(gap, styles.base))
        style = styles.cursor if selected else styles.heat[levels[token] if levels else 0]
        out.append(Segment(text, style + styles.mark if token == mark else style))
        gap, closing = "", selected
    if pen:
        out.append(Segment(PEN, styles.accent))
    elif closing:
        out.append(Segment("▌", styles.cursor_edge))
    return out


def glyph_row(pieces: Sequence[Piece], levels: Sequence[int], styles: TokenStyles, digits: bool) -> list[Segment]:
    """The row under a line of text: for each token its level as a bar of its width, or as a digit."""
    out = [Segment(" ", styles.base)]
    for token, text, width in pieces:
        level = levels[token]
        blank = 1 if text[0] == " " and width > 1 else 0
        digit = DIGITS[level] if level else "·"
        run = digit.ljust(width - blank) if digits else BARS[level] * (width - blank)
        out += [Segment(" " * blank, styles.base), Segment(run, styles.twin[level])]
    return out
