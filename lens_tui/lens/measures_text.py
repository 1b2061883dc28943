"""How repetitive a text is: plain functions of token ids and text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from lens_tui.records.measures import Degeneration

MAX_PERIOD = 64


def degeneration(ids: Sequence[int], text: str) -> Degeneration:
    """The numbers of :class:`~lens_tui.records.measures.Degeneration` for a continuation."""
    return Degeneration(
        len(ids),
        distinct(ids, 1),
        distinct(ids, 2),
        distinct(ids, 3),
        longest_repeat(ids),
        repeat_run(ids),
        ratio(text),
    )


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Different n-grams over all n-grams (Li et al. 2016, 1510.03055); ``None`` for fewer than n tokens."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest n-gram that occurs at least twice; occurrences may overlap."""
    low, high = 0, len(ids)
    while low < high - 1:  # a repeated n-gram holds a repeated (n-1)-gram, so that one can bisect
        middle = (low + high) // 2
        if _repeats(ids, middle):
            low = middle
        else:
            high = middle
    return low


def repeat_run(ids: Sequence[int], longest_period: int = MAX_PERIOD) -> int:
    """Tokens of the longest stretch made of one block of up to ``longest_period`` tokens, at least twice in a row."""
    best = 0
    for period in range(1, min(longest_period, len(ids) // 2) + 1):
        run = 0
        for at in range(period, len(ids)):
            run = run + 1 if ids[at] == ids[at - period] else 0
            if run >= period:
                best = max(best, run + period)
    return best


def ratio(text: str) -> float:
    """UTF-8 bytes over bytes after zlib at its strongest; 1.0 for an empty text."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 9)) if data else 1.0


def _repeats(ids: Sequence[int], n: int) -> bool:
    seen = set()
    for at in range(len(ids) - n + 1):
        gram = tuple(ids[at : at + n])
        if gram in seen:
            return True
        seen.add(gram)
    return False
