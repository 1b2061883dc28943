"""A growing series as one row of bars with its mean, for the foot of a lane."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from lens_tui.tui.format import Trail, sparkline

Level = Callable[[float], int]
MEAN = 10
"""Cells kept for the mean and its unit."""


class SeriesStrip(Widget):
    """``label ▁▂▅▇▃ 0.94 nat``: each cell the mean of equally many tokens, on a fixed scale."""

    DEFAULT_CSS = "SeriesStrip { height: 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._values: list[float] = []
        self._trail = Trail(2)
        self._label, self._mean, self._empty, self._short = "", "", "", ""
        self._level: Level = lambda _value: 0

    def configure(self, label: str, level: Level, empty: str = "", short: str = "") -> None:
        """Start over: what the series is called, how a value becomes a level, what to say while there is none.

        ``short`` is shown where ``empty`` does not fit.
        """
        self._label, self._level, self._empty, self._short = label, level, empty, short
        self._values, self._mean = [], ""
        self._trail = Trail(self._room)
        self.refresh()

    def extend(self, values: Iterable[float], mean: str) -> None:
        """Add values at the end and show their mean, as text."""
        for value in values:
            self._values.append(value)
            self._trail.append(value)
        self._mean = mean
        self.refresh()

    @property
    def _room(self) -> int:
        return max(4, self.size.width - len(self._label) - 1 - MEAN)

    def render(self) -> RenderResult:
        """One row; the mean is right aligned."""
        width = self.size.width
        if self._trail.capacity != self._room:  # the width changed, perhaps while the lane was hidden
            self._trail = Trail(self._room)
            for value in self._values:
                self._trail.append(value)
        if not self._values:
            said = self._empty if len(self._empty) <= width else self._short or self._empty
            return Content.styled(said, "$muted").truncate(width, ellipsis=True)
        line = sparkline([self._level(mean) for mean in self._trail.means()])
        room = max(1, width - len(self._label) - len(self._mean) - 2)
        return Content.assemble((f"{self._label} ", "$muted"), (line[:room].ljust(room), "$heat-5"), " ", self._mean)
