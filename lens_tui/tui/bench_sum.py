"""Sums of rows of the bench as a person types them: ``1 + 0.5*2 - 3``, ``1 without 2, 3``. Pure."""

from __future__ import annotations

import re

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
