"""Sums of rows of the bench as a person types them: ``1 + 0.5*2 - 3``, ``1 without 2, 3``. Pure."""

from __future__ import annotations

import re

from lens_tui.records.bench import BenchRow, mode_of, positions_text

from .format import signed

_TERM = re.compile(r"([+-]?)\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*[*×]\s*)?(\d+)\s*")
_WITHOUT = re.compile(r"\s*(\d+)\s+without\s+(\d+(?:\s*,\s*\d+)*)\s*$")


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
    if row.vector.max_activation:
        parts.append(f"×{abs(scale) / row.vector.max_activation:.2f} max")
    if row.residual_norm:
        parts.append(f"×{abs(scale) / row.residual_norm:.2f} ‖h‖")
    return " ".join(parts)


def acts(row: BenchRow) -> str:
    """Mode and positions in a few words; nothing for what a row usually does: add, at all tokens."""
    parts = [] if row.mode == "add" else [mode_of(row.mode).label]
    parts += [] if row.positions is None else [positions_text(row.positions)]
    return " · ".join(parts)
