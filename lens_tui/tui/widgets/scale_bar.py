"""A scale drawn as a slider: the zero in the middle, the knob where the scale is."""

from __future__ import annotations


def scale_bar(value: float, limit: float, width: int) -> str:
    """A slider of ``width`` cells from ``-limit`` to ``+limit``: ``┼`` zero, ``●`` the value, ``◀ ▶`` beyond the ends.

    The cells between zero and the value are drawn heavy, so that the size is
    seen without colour.
    """
    width = max(5, width | 1)
    middle = width // 2
    cells = ["─"] * width
    cells[middle] = "┼"
    share = max(-1.0, min(1.0, value / limit)) if limit > 0 else 0.0
    knob = middle + round(share * middle)
    for place in range(min(knob, middle) + 1, max(knob, middle)):
        cells[place] = "━"
    beyond = abs(value) > limit > 0
    cells[knob] = ("▶" if value > 0 else "◀") if beyond else "●"
    return "".join(cells)


def nice_limit(unit: float, values: tuple[float, ...] = ()) -> float:
    """The end of a slider: twice the unit, or as far as the largest value needs, in whole units."""
    steps = max([2.0, *(abs(value) / unit for value in values)]) if unit > 0 else 2.0
    return unit * (2 if steps <= 2 else -(-steps // 1))
