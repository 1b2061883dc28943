"""What a monitor read of the tokens of an arm, as numbers, a shade and bars about its threshold. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lens_tui.records.run import readings_of
from lens_tui.records.sanitise import one_line

from .format import BARS, figure
from .session import RunText

LINE = 4
"""The level that bars begin at above a threshold: half of them is under the line."""


@dataclass(frozen=True, slots=True)
class MonitorLine:
    """A monitor's readings of an arm, ``None`` where there is none yet; ``low`` and ``high`` are of the whole run."""

    name: str
    threshold: float
    low: float
    high: float
    values: tuple[float | None, ...]

    def shade(self, value: float | None) -> int:
        """0 up to the threshold, then 1 to 7 by how much of the way to the run's largest reading it is above."""
        if value is None or value <= self.threshold:
            return 0
        way = self.high - self.threshold
        return min(7, 1 + int(6 * (value - self.threshold) / way)) if way > 0 else 7

    def bar(self, value: float) -> int:
        """The level of a bar: 0 to 3 up to the threshold, 4 to 7 above it."""
        if value > self.threshold:
            way = self.high - self.threshold
            return min(7, LINE + int(4 * (value - self.threshold) / way)) if way > 0 else LINE
        way = self.threshold - self.low
        return max(0, LINE - 1 - int(4 * (self.threshold - value) / way)) if way > 0 else LINE - 1

    @property
    def known(self) -> list[float]:
        """The readings there are, in order."""
        return [value for value in self.values if value is not None]

    @property
    def above(self) -> str:
        """How many of them are above the threshold."""
        known = self.known
        return f"{sum(value > self.threshold for value in known)} of {len(known)} above {self.threshold:g}"

    def at(self, step: int) -> str:
        """The reading of a token against the threshold: ``verse 1.24 > 0.5``."""
        value = self.values[step] if 0 <= step < len(self.values) else None
        if value is None:
            return f"{self.name} –"
        return f"{self.name} {figure(value, 2)} {'>' if value > self.threshold else '≤'} {self.threshold:g}"

    @property
    def key(self) -> str:
        """What its bars stand for."""
        return f"{self.name}: {BARS[LINE]} and higher above {self.threshold:g}"


def monitor_lines(run: RunText) -> list[tuple[MonitorLine, ...]]:
    """Of each arm of a run, the line of each monitor; a monitor has one scale in all arms."""
    read = [[tuple(readings_of(arm.tokens, arm.readings, at)) for at in range(len(run.monitors))] for arm in run.arms]
    found: list[list[MonitorLine]] = [[] for _ in run.arms]
    for at, watched in enumerate(run.monitors):
        known = [value for arm in read for value in arm[at] if value is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        for lines, arm in zip(found, read, strict=True):
            lines.append(MonitorLine(one_line(watched.monitor.name, 40), watched.threshold, low, high, arm[at]))
    return [tuple(lines) for lines in found]
