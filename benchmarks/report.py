"""What was measured as rows, and the rows as Markdown: a part for each benchmark in a section for each device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

HEADS = ("what", "ours", "peer", "ratio", "before", "bound", "met")
TITLES = {"cpu": "On a CPU", "gpu": "On a GPU"}
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Bound:
    """A limit of a ratio, or of a figure with a unit."""

    sign: Literal["<=", ">="]
    limit: float

    def met(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


def at_most(limit: float) -> Bound:
    """A bound from above."""
    return Bound("<=", limit)


def at_least(limit: float) -> Bound:
    """A bound from below."""
    return Bound(">=", limit)


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    ``value`` is what the bound is on: usually the ratio of ours to the peer's, else our figure in ``unit``. ``None``
    where it could not be measured; ``peer`` says why then.
    """

    what: str
    ours: str
    peer: str
    value: float | None
    bound: Bound | None = None
    unit: str = ""

    @property
    def ratio(self) -> str:
        """The value as it is written."""
        return "" if self.value is None else f"{written(self.value)}{' ' + self.unit if self.unit else ''}"

    @property
    def met(self) -> str:
        """``yes``, ``no``, or nothing without a bound or a value."""
        if self.bound is None or self.value is None:
            return ""
        return "yes" if self.bound.met(self.value) else "**no**"


def written(value: float) -> str:
    """Three digits that count, and no fewer than are before the point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.995 else 3
    return f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds, milliseconds or microseconds, whichever is readable."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{written(seconds / size)} {unit}"
    return f"{written(seconds * 1e6)} µs"


def of_times(
    what: str, ours: float, peer: float, name: str, bound: Bound | None = None, *, ratio: float | None = None
) -> Row:
    """A row of two times in seconds: ours over the peer's, or a ``ratio`` taken turn by turn."""
    value = ours / peer if ratio is None else ratio
    return Row(what, duration(ours), f"{name}: {duration(peer)}", value, bound)


def of_speeds(
    what: str,
    ours: float,
    peer: float,
    name: str,
    bound: Bound | None = None,
    unit: str = "tokens/s",
    *,
    ratio: float | None = None,
) -> Row:
    """A row of two speeds: ours over the peer's, or a ``ratio`` taken turn by turn."""
    value = ours / peer if ratio is None else ratio
    return Row(what, f"{written(ours)} {unit}", f"{name}: {written(peer)} {unit}", value, bound)


def absent(what: str, reason: str) -> Row:
    """A row that could not be measured here."""
    return Row(what, "", reason, None)


def table(rows: Sequence[Row], before: Mapping[str, str]) -> str:
    """The rows as a Markdown table; ``before`` has the ratios of an earlier run by what was measured."""
    lines = [_line(HEADS), "|---|---|---|--:|--:|--:|---|"]
    for row in rows:
        bound = "" if row.bound is None else f"{row.bound}{' ' + row.unit if row.unit else ''}"
        old = before.get(_cell(row.what), "")
        lines.append(_line((row.what, row.ours, row.peer, row.ratio, old, bound, row.met)))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def ratios_of(part: str) -> dict[str, str]:
    """What a part of an earlier report measured, and its ratios."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    found = {cells[0]: cells[3] for cells in rows[2:] if len(cells) == len(HEADS)}
    return {what: ratio for what, ratio in found.items() if ratio}


def with_part(document: str, device: Device, name: str, facts: str, rows: Sequence[Row]) -> str:
    """The document with the part of one benchmark on one device made anew; all else stays as it is.

    A part is a heading with the benchmark's name, a line of ``facts`` about the machine, and the table. A section or
    part that is not there is added at its section's end; a document without the section gets one at its own end.
    """
    begin, end = f"<!-- {device} -->", f"<!-- end of {device} -->"
    if begin not in document or end not in document:
        document = f"{document.rstrip()}\n\n{begin}\n## {TITLES[device]}\n\n{end}\n".lstrip()
    head, _, rest = document.partition(begin)
    section, _, tail = rest.partition(end)
    heading = f"### {name}\n"
    pattern = re.compile(rf"^### {re.escape(name)}\n.*?(?=^### |\Z)", re.DOTALL | re.MULTILINE)
    old = pattern.search(section)
    made = f"{heading}\n{facts}\n\n{table(rows, ratios_of(old.group()) if old else {})}\n\n"
    section = pattern.sub(lambda _: made, section, count=1) if old else f"{section.rstrip()}\n\n{made}"
    return head + begin + section + end + tail
