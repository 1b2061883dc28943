"""The shade of each token of a lane, what else it could have been, and what a monitor read of it. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lens_tui.records import Candidate, Token
from lens_tui.records.run import kl_level, readings_of
from lens_tui.records.sanitise import one_line

from .format import BARS, figure, surprisal_level
from .run_text import ArmText, RunText

Measure = Literal["surprise", "kl", "diff", "feature", "monitor"]
MEASURES: tuple[Measure, ...] = ("surprise", "kl", "diff")
MEASURE_NAMES = {
    "surprise": "own surprise, −logp from 3 nats",
    "kl": "KL to plain, 0.01 to 10 nats",
    "diff": "not in the baseline",
    "feature": "a feature, as a share of its largest",
    "monitor": "a monitor, above its threshold",
}


def token_levels(arm: ArmText, measure: Measure, baseline: ArmText, start: int = 0) -> list[int]:
    """The shade of each token of an arm from ``start`` on.

    ``diff`` marks (7) the tokens that the longest common run of tokens with the
    baseline leaves over; while text still comes, those that differ place by place.
    """
    tokens = arm.tokens[start:]
    if measure == "feature":
        return [*arm.shade[start:], *([0] * len(tokens))][: len(tokens)]
    if measure == "monitor":
        return [*arm.read[start:], *([0] * len(tokens))][: len(tokens)]
    if measure == "kl":
        return [kl_level(token.kl) for token in tokens]
    if measure == "surprise":
        return [surprisal_level(token.logprob) for token in tokens]
    if arm.reason and baseline.reason:
        return changed_levels(_ids(baseline), _ids(arm))[start:]
    other = _ids(baseline)
    return [0 if n < len(other) and t.token_id == other[n] else 7 for n, t in enumerate(tokens, start)]


def changed_levels(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """7 for each item of ``after`` that an alignment with ``before`` leaves over, else 0."""
    levels = [7] * len(after)
    for block in difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        levels[block.b : block.b + block.size] = [0] * block.size
    return levels


def _ids(arm: ArmText) -> list[int]:
    return [token.token_id for token in arm.tokens]


def candidates(arm: ArmText | None, index: int) -> tuple[Token | None, tuple[Candidate, ...]]:
    """The token an arm wrote at a step, and what else it could have written, likeliest first."""
    if arm is None or not 0 <= index < len(arm.tokens):
        return None, ()
    token = arm.tokens[index]
    return token, tuple(sorted(token.top, key=lambda candidate: -candidate.logprob))


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
