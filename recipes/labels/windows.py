"""Windows of held-out text for the quiz: some where a feature is active, some where it is silent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.labels.material import Material

LENGTH = 24
LEVEL = 0.25
"""A window counts as active if the feature reaches this share of its maximum (over the cards' text) in it."""

DENSE_LEVELS = ((0.5, 0.25), (0.75, 0.5))
"""The shares for a feature so dense that hardly a window is without it: active from one on, silent under the other.

The second pair is for a feature that passes a quarter of its maximum nearly everywhere.
"""

N_ACTIVE = 5
N_RANDOM, N_HARD = 3, 2
_LEAD = (10, 20)
"""The place in its window of the token that was drawn."""

_TRIES = 400


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``low`` to ``high`` (not in it) of a held-out index; ``kind`` is active, random or hard."""

    low: int
    high: int
    kind: str
    value: float


def pick(material: Material, feature: int, maximum: float, seed: int) -> list[Window] | None:
    """Five active windows and five silent ones of a feature, shuffled; ``None`` if its text has not so many.

    Active ones are around random tokens at ``LEVEL`` of the maximum or more. The feature is silent throughout the
    others: two come from the domain of an active one, three from anywhere. No two windows overlap, and
    active ones are of different documents where there are enough. A feature that is active nearly everywhere has no
    silent windows: its quiz asks for windows that are strong against windows that stay weak, by ``DENSE_LEVELS``.
    """
    shares = ((LEVEL, 0.0), *DENSE_LEVELS)
    quizzes = (_pick(material, feature, loud * maximum, quiet * maximum, seed) for loud, quiet in shares)
    return next((quiz for quiz in quizzes if quiz), None)


def _pick(material: Material, feature: int, loud: float, quiet: float, seed: int) -> list[Window] | None:
    """A quiz of windows around a token of ``loud`` or more, and of windows without one above ``quiet``."""
    rng = np.random.default_rng([seed, feature])
    tokens, values = material.index.everywhere(feature)
    strong = int(np.searchsorted(-values, -loud, side="right"))
    active = _active(material, tokens[:strong].astype(np.int64), values[:strong], rng)
    if len(active) < N_ACTIVE:
        return None
    firing = np.sort(tokens[values > quiet].astype(np.int64))
    silent: list[Window] = []
    for _ in range(N_HARD):
        domain = material.domain_of_token[active[int(rng.integers(N_ACTIVE))].low]
        pool = material.tokens_of_domain[domain]
        silent += _silent(material, firing, pool, "hard", 1, [*active, *silent], rng)
    missing = N_HARD + N_RANDOM - len(silent)  # a feature may fire all over its own domain
    silent += _silent(material, firing, None, "random", missing, [*active, *silent], rng)
    if len(silent) < N_RANDOM + N_HARD:
        return None
    windows = [*active, *silent]
    return [windows[place] for place in rng.permutation(len(windows))]


def enough(material: Material, feature: int, maximum: float) -> bool:
    """Whether the text has active windows enough: so many documents hold a token at ``LEVEL`` of the maximum."""
    tokens, values = material.index.everywhere(feature)
    strong = int(np.searchsorted(-values, -LEVEL * maximum, side="right"))
    sequences = material.sequences(tokens[:strong].astype(np.int64))
    return len(np.unique(material.documents[sequences])) >= N_ACTIVE


def _active(
    material: Material, tokens: NDArray[np.int64], values: NDArray[np.float32], rng: np.random.Generator
) -> list[Window]:
    order = rng.permutation(len(tokens))
    documents = material.documents[material.sequences(tokens)]
    chosen: list[Window] = []
    seen: set[int] = set()
    for fresh in (True, False):  # first from documents not met yet, then from any
        for place in order.tolist():
            if len(chosen) == N_ACTIVE:
                return chosen
            if fresh and int(documents[place]) in seen:
                continue
            window = _around(material, int(tokens[place]), "active", float(values[place]), rng)
            if window is None or _overlaps(window, chosen):
                continue
            chosen.append(window)
            seen.add(int(documents[place]))
    return chosen


def _silent(
    material: Material,
    firing: NDArray[np.int64],
    pool: NDArray[np.int64] | None,
    kind: str,
    n: int,
    others: list[Window],
    rng: np.random.Generator,
) -> list[Window]:
    """At most ``n`` windows without a token of ``firing``, around tokens of ``pool`` (or of all)."""
    chosen: list[Window] = []
    for _ in range(_TRIES):
        if len(chosen) >= n:
            break
        drawn = int(rng.integers(material.index.n_tokens if pool is None else len(pool)))
        window = _around(material, drawn if pool is None else int(pool[drawn]), kind, 0.0, rng)
        if window is None or _overlaps(window, [*others, *chosen]):
            continue
        low, high = np.searchsorted(firing, (window.low, window.high))
        if low == high:
            chosen.append(window)
    return chosen


def _around(material: Material, token: int, kind: str, value: float, rng: np.random.Generator) -> Window | None:
    """A window with a token at a random place, inside the token's sequence and without its special first token."""
    sequence = int(material.sequences(np.array([token]))[0])
    begin, end = int(material.starts[sequence]), int(material.starts[sequence + 1])
    while begin < end and material.index.special[begin]:
        begin += 1
    while end > begin and material.index.special[end - 1]:
        end -= 1
    if end - begin < LENGTH or not begin <= token < end:
        return None
    low = min(max(token - int(rng.integers(*_LEAD)), begin), end - LENGTH)
    return Window(low, low + LENGTH, kind, value)


def _overlaps(window: Window, others: list[Window]) -> bool:
    return any(window.low < other.high and other.low < window.high for other in others)
