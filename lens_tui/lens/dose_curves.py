"""Shapes of curves against the scale: where they bend, and where they turn back. Plain functions of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from lens_tui.records.measures import Curve

Shape = Literal["away", "fall", "rise"]
"""What is expected: a rise away from scale 0 on both sides, a fall away from it, or a rise from left to right."""
_FLAT = 1e-3
_NOISE = 0.02
_BEND = 0.1


def curve(name: str, scales: Sequence[float], values: Sequence[float], origin: float, shape: Shape = "away") -> Curve:
    """The curve of one quantity; ``origin`` is its value without steering, at scale 0.

    A reversal is a step against the expected shape of more than 2 % of the curve's range (and 0.001).
    The knee is found as by Kneedle (Satopaa et al. 2011): the inner point furthest from the chord
    between a branch's ends, both axes scaled to 1, if that is more than 0.1.
    """
    given = sorted(zip(map(float, scales), map(float, values), strict=True))
    pairs = given
    if not any(scale == 0 for scale, _ in pairs):
        pairs = sorted([*pairs, (0.0, float(origin))])
    reach = max(value for _, value in pairs) - min(value for _, value in pairs)
    least = max(_FLAT, _NOISE * reach)
    right = [(scale, value) for scale, value in pairs if scale >= 0]
    left = [(scale, value) for scale, value in reversed(pairs) if scale <= 0]
    steps = [(left, -1 if shape in ("fall", "rise") else 1), (right, -1 if shape == "fall" else 1)]
    reversals = [pair for branch, sign in steps for pair in _reversals(branch, sign, least)]
    longest = max((right, left), key=lambda branch: (len(branch), abs(branch[-1][0])))
    return Curve(
        name,
        tuple(scale for scale, _ in given),
        tuple(value for _, value in given),
        knee(longest),
        tuple(sorted(reversals)),
    )


def knee(branch: Sequence[tuple[float, float]]) -> float | None:
    """The scale where a branch, from 0 outwards, bends most; ``None`` for fewer than 3 points or next to no bend."""
    if len(branch) < 3 or abs(branch[-1][1] - branch[0][1]) < _FLAT:
        return None
    (x0, y0), (x1, y1) = branch[0], branch[-1]
    inner = [(abs((x - x0) / (x1 - x0) - (y - y0) / (y1 - y0)), x) for x, y in branch[1:-1]]
    furthest, at = max(inner, key=lambda item: item[0])
    return at if furthest > _BEND else None


def _reversals(branch: Sequence[tuple[float, float]], sign: int, least: float) -> list[tuple[float, float]]:
    steps = itertools.pairwise(branch)
    return [(here[0], there[0]) for here, there in steps if sign * (there[1] - here[1]) < -least]
