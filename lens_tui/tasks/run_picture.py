"""A run as a picture (SVG): each arm's figures and text, tokens shaded by their KL, with a bar under each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from lens_tui.records.chat import Turn
from lens_tui.records.interventions import moved_of
from lens_tui.records.run_record import END, KL_STEPS, ArmRecord, RunRecord, figures, kl_level, pieces
from lens_tui.records.sanitise import sanitise
from lens_tui.records.wording import many

_COLUMNS = 108
_CELL, _LINE = 8.0, 24.0  # pixels
_MARGIN = 28.0
_SIZE = 13
_STYLE = (
    "text{font:13px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre;fill:#1f2328}"
    ".b{font-weight:bold}.m{fill:#6e7781}"
)
_HEAT = "#d9822b"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text in one line, from a column on; a level from 0 to 7 shades it."""

    column: int
    text: str
    cells: int
    level: int = 0
    style: str = ""


def as_svg(run: RunRecord) -> str:
    """The run as an SVG picture, its text selectable; it refers to nothing outside of itself."""
    sampling = run.sampling
    settings = f"seed {sampling.seed} · temperature {sampling.temp:g} · at most {many(sampling.max_tokens, 'token')}"
    lines: list[list[_Piece]] = [[_words(run.model or "model", "b")], [_words(settings, "m")], []]
    for turn in run.turns or (Turn("", run.prompt),):
        lines += [*_flow([(f"{turn.role}: {turn.content}" if turn.role else turn.content, 0)], "m"), []]
    for kept in run.arms:
        lines += [[_words(kept.arm.name, "b")], [_words(_facts(kept), "m")], *_arm_lines(kept), []]
    steps = " · ".join(f"{step:g}" for step in KL_STEPS)
    lines.append([_words(f"shade and bar: KL to the plain model on the arm's own text, from {steps} nat", "m")])
    width, height = 2 * _MARGIN + _COLUMNS * _CELL, 2 * _MARGIN + len(lines) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for row, line in enumerate(lines):
        for piece in line:
            parts += _drawn(piece, _MARGIN + row * _LINE)
    return "\n".join([*parts, "</svg>", ""])


def _facts(kept: ArmRecord) -> str:
    found = figures(kept.tokens)
    facts = [many(len(kept.tokens), "token")]
    if found["perplexity"] is not None:
        facts.append(f"ppl {found['perplexity']:.1f}")
    if not kept.arm.is_baseline and found["mean_kl"] is not None:
        plain = "" if found["plain_perplexity"] is None else f"plain ppl {found['plain_perplexity']:.1f} · "
        facts.append(f"{plain}mean KL {found['mean_kl']:.3f} nat")
    if kept.dose is not None:
        unit = moved_of(item.site for item in kept.arm.interventions)
        facts.append(f"moved {kept.dose:.2f} {unit}")
    return " · ".join(facts)


def _arm_lines(kept: ArmRecord) -> list[list[_Piece]]:
    steered = not kept.arm.is_baseline or bool(kept.changes)
    shown = pieces(kept.tokens, kept.reason or "stopped")
    levels = [kl_level(token.kl) if steered else 0 for token in kept.tokens]
    added = [
        "" if not token.text and (text == END or text.startswith("<")) else text
        for token, text in zip(kept.tokens, shown, strict=True)
    ]
    return _flow(list(zip(added, levels, strict=True)))


def _words(text: str, style: str = "") -> _Piece:
    shown = sanitise(text).replace("\n", "⏎")[:_COLUMNS]
    return _Piece(0, shown, _cells(shown), style=style)


def _flow(pieces: Sequence[tuple[str, int]], style: str = "") -> list[list[_Piece]]:
    """Pieces of one text in lines of the picture's width: broken before a piece that does not fit, and at line ends."""
    lines: list[list[_Piece]] = [[]]
    column = 0
    for text, level in pieces:
        for part in _parts(sanitise(text)):
            cells = _cells(part)
            if part == "\n":
                lines, column = [*lines, []], 0
                continue
            if column + cells > _COLUMNS:
                lines, column = [*lines, []], 0
            lines[-1].append(_Piece(column, part, cells, level, style))
            column += cells
    return lines


def _parts(text: str) -> Iterator[str]:
    """Words with the blanks before them, and line ends by themselves; what is longer than a line is cut."""
    word = ""
    for letter in text:
        begins = letter == "\n" or (letter == " " and not word.isspace()) or _cells(word) >= _COLUMNS - 1
        if begins and word:
            yield word
            word = ""
        if letter == "\n":
            yield letter
        else:
            word += letter
    if word:
        yield word


def _cells(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _drawn(piece: _Piece, top: float) -> list[str]:
    left, width = _MARGIN + piece.column * _CELL, piece.cells * _CELL
    drawn = []
    if piece.level:
        share = piece.level / 7
        bar = 0.6 * piece.level
        drawn.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{_SIZE + 3}" fill="{_HEAT}" '
            f'fill-opacity="{0.12 + 0.5 * share:.2f}"/>'
            f'<rect x="{left:g}" y="{top + _SIZE + 4:g}" width="{max(1.0, width - 1):g}" height="{bar:.1f}" '
            f'fill="#57606a"/>'
        )
    if piece.text.strip():
        kind = f' class="{piece.style}"' if piece.style else ""
        drawn.append(
            f'<text x="{left:g}" y="{top + _SIZE:g}"{kind} textLength="{width:g}" lengthAdjust="spacingAndGlyphs" '
            f'xml:space="preserve">{escape(piece.text)}</text>'
        )
    return drawn
