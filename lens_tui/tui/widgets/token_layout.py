"""Wrapping tokens into screen lines, by cells. Pure: no Textual here.

Tokens arrive one by one and are never lost: each has at least one cell. Lines
break between words as a reader expects, although a word may be many tokens, and
every line remembers which cells belong to which token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from lens_tui.records.sanitise import sanitise
from lens_tui.tui.themes import default_variables

from ..format import BARS, DIGITS, N_LEVELS, NEWLINE

Piece = tuple[int, str, int]
"""A stretch of one token on one line: token index, text, width in cells."""

TAB = "⇥"
_WORDS = re.compile(r" *[^ ]+| +")
_JOINERS = frozenset("‍︎️")
_PLACEHOLDER = "◌"


def standalone(token: str) -> str:
    """The token as it can stand alone between others, as wide as what it is measured to be.

    A mark that would melt into the character before it (a combining accent, a
    joiner, a skin tone) gets a dotted circle to stand on; a joiner at the end,
    which would swallow the next token, is dropped; an unpaired regional
    indicator becomes its letter. Newlines stay, they are the layout's business.
    """
    if token.isascii():
        return token or _PLACEHOLDER
    token = token.rstrip("‍")
    if not token or cell_len(token[0]) == 0 or unicodedata.combining(token[0]):
        token = _PLACEHOLDER + "".join(token[1:] if token[:1] in _JOINERS else token)
    if any("\U0001f1e6" <= char <= "\U0001f1ff" for char in token):
        token = _spell_flags(token)
    return token


def _spell_flags(token: str) -> str:
    return "".join(chr(ord(c) - 0x1F1E6 + ord("A")) if "\U0001f1e6" <= c <= "\U0001f1ff" else c for c in token)


def _at_line_start(text: str) -> str:
    return standalone(text[1:]) if text[0] == " " and len(text) > 1 else text


def width_of(text: str) -> int:
    """Cells a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def take_cells(text: str, cells: int) -> tuple[str, str]:
    """Split a text so that the first part fits ``cells`` and no character is cut. The first part is never empty."""
    if text.isascii():
        cut = max(1, cells)
        return text[:cut], text[cut:]
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cell_len(text[:middle]) <= cells else (low, middle - 1)
    # What is joined to the last character stays with it; a second joiner in a row joins nothing.
    while low < len(text) and (
        cell_len(text[low]) == 0 or (text[low - 1] == "‍" and cell_len(text[: low + 1]) == cell_len(text[:low]))
    ):
        low += 1
    return text[:low], text[low:]


class TokenLayout:
    """Tokens laid out in lines of at most ``width`` cells."""

    def __init__(self, width: int) -> None:
        self.width = max(4, width)
        self.lines: list[list[Piece]] = [[]]
        self.first_line: list[int] = []
        self._x = 0
        self._word = 0
        self._dirty = 0

    def __len__(self) -> int:
        return len(self.first_line)

    def extend(self, tokens: Iterable[str]) -> int:
        """Add tokens at the end; returns the first line that changed."""
        self._dirty = len(self.lines) - 1
        for token in tokens:
            self._add(token)
        return self._dirty

    def _add(self, text: str) -> None:
        text = sanitise(text).replace("\t", TAB)
        index = len(self.first_line)
        self.first_line.append(-1)
        if "\n" not in text:
            self._place(index, standalone(text))
            return
        *broken, rest = text.split("\n")
        for part in broken:
            self._place(index, (standalone(part) if part else "") + NEWLINE)
            self._new_line()
        if rest:
            self._place(index, standalone(rest))

    def _place(self, index: int, text: str) -> None:
        if " " not in text[1:]:
            self._place_word(index, text)
            return
        for word in _WORDS.findall(text):
            self._place_word(index, word)

    def _place_word(self, index: int, text: str) -> None:
        width = width_of(text)
        starts = text[0] == " " or (text[0] >= "ᄀ" and cell_len(text[0]) == 2)
        if starts:
            self._word = len(self.lines[-1])
        if self._x + width > self.width and self._x:
            if starts:
                self._new_line()
                text = _at_line_start(text)
                width = width_of(text)
            elif self._word:
                self._carry_word()
        while self._x + width > self.width:
            head, tail = take_cells(text, self.width - self._x)
            if self._x and self._x + width_of(head) > self.width:
                self._new_line()
                continue
            self._put(index, head, width_of(head))
            self._new_line()
            text, width = tail, width_of(tail)
        if text:
            self._put(index, text, width)

    def _put(self, index: int, text: str, width: int) -> None:
        if self.first_line[index] < 0:
            self.first_line[index] = len(self.lines) - 1
        self.lines[-1].append((index, text, width))
        self._x += width

    def _new_line(self) -> None:
        self.lines.append([])
        self._x = self._word = 0

    def _carry_word(self) -> None:
        """Move the unfinished last word, which began in mid-line, to a new line."""
        line = self.lines[-1]
        moved = line[self._word :]
        del line[self._word :]
        self._dirty = min(self._dirty, len(self.lines) - 1)
        stays = {piece[0] for piece in line}
        self._new_line()
        index, text, _ = moved[0]
        text = _at_line_start(text)
        moved[0] = (index, text, width_of(text))
        for index, text, width in moved:
            if index not in stays:
                self.first_line[index] = -1
            self._put(index, text, width)

    def token_at(self, line: int, x: int) -> int | None:
        """The token under cell ``x`` of a line, or the nearest one on it; ``None`` where the line is empty."""
        if not 0 <= line < len(self.lines):
            return None
        found, left = None, 0
        for index, _, width in self.lines[line]:
            found = index
            left += width
            if x < left:
                break
        return found

    def place_of(self, token: int) -> tuple[int, int]:
        """Line and first cell of a token."""
        line = self.first_line[token]
        x = 0
        for index, _, width in self.lines[line]:
            if index == token:
                break
            x += width
        return line, x

    def lines_of(self, token: int) -> Iterator[int]:
        """Every line a token is on."""
        line = self.first_line[token]
        while line < len(self.lines) and (
            any(p[0] == token for p in self.lines[line]) or (line == self.first_line[token])
        ):
            yield line
            line += 1


PEN = "▏"

ShadeMode = Literal["tint", "bars", "digits", "off"]


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

        def color(name: str) -> RichColor:
            return Color.parse(variables[name]).rich_color

        heat = tuple(
            base + Style(color=color(f"heat-text-{level}"), bgcolor=color(f"heat-{level}"))
            for level in range(1, N_LEVELS)
        )
        muted = base + Style(color=color("muted"))
        twin = tuple(base + Style(color=color(f"heat-{max(3, level)}")) for level in range(1, N_LEVELS))
        ground = color("cursor")
        return cls(
            base=base,
            heat=(base, *heat),
            twin=(base + Style(color=color("hairline")), *twin),
            muted=muted,
            accent=base + Style(color=color("accent")),
            cursor=base + Style(color=ground, bgcolor=color("cursor-text"), bold=True, reverse=True),
            cursor_edge=base + Style(color=ground),
            mark=Style(underline=True, bold=True),
        )


def _fallback() -> dict[str, str]:

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
