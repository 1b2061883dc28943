"""Documents cut into passages about as long as a continuation that the model writes."""

from __future__ import annotations

import random
from collections.abc import Sequence

SIZE = 320
"""Characters of a passage: what some 80 tokens of the bundled model make."""


def passages(document: str, size: int = SIZE) -> list[str]:
    """Pieces of about ``size`` characters, each ending before white space; a last one under half of that is dropped."""
    found, begin = [], 0
    while len(document) - begin >= size / 2:
        end = begin + size
        if end < len(document):
            blank = max(document.rfind(mark, begin + size // 2, end) for mark in " \n")
            end = blank if blank > begin else end
        found.append(document[begin:end])
        begin = end
    return found


def draw(documents: Sequence[str], count: int, *, most: int = 40, seed: int = 0, size: int = SIZE) -> tuple[str, ...]:
    """``count`` passages (all if there are fewer) of documents in a seeded order, at most ``most`` of each document."""
    chance = random.Random(seed)
    order = list(documents)
    chance.shuffle(order)
    found: list[str] = []
    for document in order:
        pieces = passages(document, size)
        found += chance.sample(pieces, min(most, len(pieces)))
        if len(found) >= count:
            break
    return tuple(found[:count])
