"""Frames of a terminal as one animated SVG: pure functions from rows of styled text to text.

A line of the terminal that does not change is in the file once, whatever the number of frames, and is shown and
hidden by CSS. Block characters are drawn as rectangles, so that bars join whatever font the reader has. Where nothing
moves (``prefers-reduced-motion``, or a viewer without CSS animation) one frame, the poster, stands still.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

CELL_W, CELL_H, SIZE = 8.4, 18.0, 14
EDGE, BAR, PAD, FOOT = 12.0, 30.0, 6.0, 40.0
GROUND, FRAME, DIM, ACCENT = "#101114", "#292929", "#8a8f98", "#7cb7f2"
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
_EIGHTHS_UP = "▁▂▃▄▅▆▇█"
_EIGHTHS_LEFT = "▏▎▍▌▋▊▉"
_SHADES = {"░": 0.25, "▒": 0.5, "▓": 0.75}
_WORDS = re.compile(r"\S+(?: \S+)*")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring cells of one style. Colours are ``#rrggbb``, ``""`` for the terminal's own."""

    text: str
    fg: str = ""
    bg: str = ""
    bold: bool = False
    italic: bool = False
    underline: bool = False


Row = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the terminal shows for some time, with the key that was pressed and a line about it."""

    rows: tuple[Row, ...]
    seconds: float
    key: str = ""
    says: str = ""


def box_of(char: str) -> tuple[float, float, float, float, float] | None:
    """The rectangle of a block or line character in its cell: left, top, width and height as shares, and opacity."""
    if char in _EIGHTHS_UP:
        high = (_EIGHTHS_UP.index(char) + 1) / 8
        return (0.0, 1.0 - high, 1.0, high, 1.0)
    if char in _EIGHTHS_LEFT:
        return (0.0, 0.0, (_EIGHTHS_LEFT.index(char) + 1) / 8, 1.0, 1.0)
    if char in _SHADES:
        return (0.0, 0.0, 1.0, 1.0, _SHADES[char])
    return {
        "▀": (0.0, 0.0, 1.0, 0.5, 1.0),
        "▔": (0.0, 0.0, 1.0, 0.125, 1.0),
        "▐": (0.5, 0.0, 0.5, 1.0, 1.0),
        "▕": (0.875, 0.0, 0.125, 1.0, 1.0),
        "─": (0.0, 0.47, 1.0, 0.06, 1.0),
        "━": (0.0, 0.43, 1.0, 0.14, 1.0),
        "│": (0.44, 0.0, 0.12, 1.0, 1.0),
    }.get(char)


def spans(shown: Sequence[object]) -> dict[object, list[tuple[int, int]]]:
    """When each thing is there: its stretches of frames, first and one past the last."""
    found: dict[object, list[tuple[int, int]]] = {}
    start = 0
    for end in range(1, len(shown) + 1):
        if end == len(shown) or shown[end] != shown[start]:
            found.setdefault(shown[start], []).append((start, end))
            start = end
    return found


class _Palette:
    """Colours as short CSS classes."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def __call__(self, colour: str) -> str:
        return self.names.setdefault(colour, f"c{len(self.names)}")

    def css(self) -> str:
        return "".join(f".{name}{{fill:{colour}}}" for colour, name in self.names.items())


class _Clock:
    """The times of the frames, and a CSS animation for each set of stretches in which something is to be seen."""

    def __init__(self, frames: Sequence[Frame], poster: int) -> None:
        self.poster = poster % len(frames)
        self.starts = [0.0]
        for frame in frames:
            self.starts.append(self.starts[-1] + frame.seconds)
        self.sets: dict[tuple[tuple[int, int], ...], str] = {}

    def name(self, when: Sequence[tuple[int, int]]) -> str:
        """The class of what is to be seen in these stretches, ``""`` for always."""
        if list(when) == [(0, len(self.starts) - 1)]:
            return ""
        return self.sets.setdefault(tuple(when), f"a{len(self.sets)}")

    def css(self) -> str:
        whole = self.starts[-1]
        parts = []
        for when, name in self.sets.items():
            marks = {} if when[0][0] == 0 else {0.0: "hidden"}
            for first, end in when:
                marks[self.starts[first] / whole * 100] = "visible"
                marks[self.starts[end] / whole * 100] = "hidden"
            steps = "".join(f"{at:.6g}%{{visibility:{how}}}" for at, how in marks.items())
            still = "visible" if any(first <= self.poster < end for first, end in when) else "hidden"
            parts.append(f"@keyframes {name}{{{steps}}}")
            parts.append(f".{name}{{visibility:{still};animation:{name} {whole:.6g}s step-end infinite}}")
        return "".join(parts) + "@media (prefers-reduced-motion:reduce){*{animation:none!important}}"


def animated_svg(frames: Sequence[Frame], columns: int, title: str, poster: int = -1) -> str:
    """The frames as an SVG that plays them in a loop.

    Args:
        frames: What is shown, in order; all with as many rows.
        columns: Width of the terminal in cells.
        title: Written in the window's bar.
        poster: The frame that stands where nothing moves.

    Raises:
        ValueError: There is no frame, or they differ in the number of rows.
    """
    if len({len(frame.rows) for frame in frames}) != 1:
        raise ValueError("The frames must have the same number of rows, and there must be one.")
    palette, clock = _Palette(), _Clock(frames, poster)
    wide = columns * CELL_W + 2 * EDGE
    body = [_group(clock.name(when), _foot(*pair, len(frames[0].rows))) for pair, when in _captions(frames)]
    for line in range(len(frames[0].rows)):
        top = BAR + PAD + line * CELL_H
        for row, when in spans([frame.rows[line] for frame in frames]).items():
            assert isinstance(row, tuple)
            body.append(_group(clock.name(when), "".join(_row(row, top, palette))))
    tall = BAR + len(frames[0].rows) * CELL_H + 2 * PAD + FOOT
    style = (
        f"text{{font:{SIZE}px {FONTS};fill:#e4e6ea;white-space:pre}}.b{{font-weight:bold}}.i{{font-style:italic}}"
        f".u{{text-decoration:underline}}.d{{fill:{DIM}}}.k{{fill:{ACCENT};font-weight:bold}}"
    )
    lights = "".join(
        f'<circle cx="{18 + 18 * number}" cy="15" r="5.5" fill="{colour}"/>'
        for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {tall:g}" xml:space="preserve">'
        f"<title>{escape(title)}</title><style>{style}{palette.css()}{clock.css()}</style>"
        f'<rect width="{wide:g}" height="{tall:g}" rx="8" fill="{FRAME}"/>{lights}'
        f'<text class="d" x="{wide / 2:g}" y="20" text-anchor="middle">{escape(title)}</text>'
        f'<rect y="{BAR:g}" width="{wide:g}" height="{tall - BAR - FOOT:g}" fill="{GROUND}"/>'
        f"{''.join(body)}</svg>\n"
    )


def _captions(frames: Sequence[Frame]) -> list[tuple[tuple[str, str], list[tuple[int, int]]]]:
    pairs = spans([(frame.key, frame.says) for frame in frames])
    return [((str(key[0]), str(key[1])), when) for key, when in pairs.items() if isinstance(key, tuple)]


def _foot(key: str, says: str, rows: int) -> str:
    """The line under the terminal: the key that was pressed, and what it does."""
    across = EDGE + CELL_W * (len(key) + 2)
    y = BAR + rows * CELL_H + 2 * PAD + FOOT / 2 + SIZE / 3
    return (
        f'<text y="{y:.1f}"><tspan class="k" x="{EDGE:g}">{escape(key)}</tspan>'
        f'<tspan class="d" x="{across if key else EDGE:.1f}">{escape(says)}</tspan></text>'
    )


def _group(name: str, inside: str) -> str:
    if not inside:
        return ""
    return f'<g class="{name}">{inside}</g>' if name else f"<g>{inside}</g>"


def _row(row: Row, top: float, palette: _Palette) -> Iterator[str]:
    """Grounds and block characters as rectangles, then the words."""
    at, words = 0, []
    for run in row:
        left = EDGE + at * CELL_W
        if run.bg:
            yield _rect(left, top, len(run.text) * CELL_W, CELL_H, palette(run.bg))
        for start, piece in _pieces(run.text):
            box = box_of(piece[0])
            if box is None:
                words += _words(run, piece, left + start * CELL_W, palette)
                continue
            x, y, wide, high, opacity = box
            count = len(piece) if wide == 1.0 else 1
            for number in range(1 if wide == 1.0 else len(piece)):
                across = left + (start + number + x) * CELL_W
                sizes = (count * wide * CELL_W, high * CELL_H)
                yield _rect(across, top + y * CELL_H, *sizes, palette(run.fg or "#e4e6ea"), opacity)
        at += len(run.text)
    if words:
        yield f'<text y="{top + CELL_H * 0.76:.1f}">{"".join(words)}</text>'


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """A text cut into stretches of one block character and of everything else, each with its place."""
    for found in re.finditer(r"([▀-▟─━│])\1*|[^▀-▟─━│]+", text):
        yield found.start(), found[0]


def _words(run: Run, text: str, left: float, palette: _Palette) -> Iterator[str]:
    """The words of a stretch, each at its own column, so that no font can move it."""
    names = [palette(run.fg)] if run.fg else []
    names += [name for name, on in (("b", run.bold), ("i", run.italic), ("u", run.underline)) if on]
    marked = f' class="{" ".join(names)}"' if names else ""
    for found in _WORDS.finditer(text):
        long = f' textLength="{len(found[0]) * CELL_W:.1f}"' if len(found[0]) > 1 else ""
        yield f'<tspan x="{left + found.start() * CELL_W:.1f}"{long}{marked}>{escape(found[0], quote=False)}</tspan>'


def _rect(x: float, y: float, wide: float, high: float, name: str, opacity: float = 1.0) -> str:
    thin = f' opacity="{opacity:g}"' if opacity < 1.0 else ""
    return f'<rect x="{x:.5g}" y="{y:.5g}" width="{wide:.5g}" height="{high:.5g}" class="{name}"{thin}/>'
