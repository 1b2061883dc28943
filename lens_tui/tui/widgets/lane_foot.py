"""What stands under lanes: a growing series as one row of bars, the features of a lane's tokens, a table of measures.

Features take whatever width the lane has: a label is cut only where no row is left for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.geometry import Size
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import BARS, Trail, bar, fit, fit_left, share_level, sparkline
from lens_tui.tui.lane_text import HEADS, amount_of_arm, cells
from lens_tui.tui.run_text import RunText

from .feature_card import FeatureMarks, feature_row

ROWS = 5
"""Features that are listed."""
WIDE = 44
"""Cells from which id, activation, bar and label stand in one row."""
TALL = 34
"""Rows of a terminal from which a label has a row of its own in a lane that is not wide."""
SHORT = 30
_FEW = 3
COLUMN = 11
"""Cells of a column of measures."""
NAME = 24
"""Cells at least of the arm's name before them."""


@dataclass(frozen=True, slots=True)
class ListedFeature:
    """A feature with its largest activation among the tokens that are listed, and what it is called."""

    feature: int
    value: float
    name: Content
    marks: FeatureMarks = field(default_factory=FeatureMarks)


class LaneFeatures(Widget):
    """A heading and the strongest features. Its height depends on the room alone, so that nothing moves as they change.

    ``listed`` is the heading, the features, strongest first, and what is said where there are none. ``close``: a row
    each in any terminal, as the token under the cursor is explained below, and the text needs the room.
    """

    DEFAULT_CSS = "LaneFeatures { height: auto; display: none; padding: 0 0 0 1; }"

    listed: reactive[tuple[str, tuple[ListedFeature, ...], str]] = reactive(("", (), ""))
    close: reactive[bool] = reactive(False, layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A row for the heading, and one or two for each feature."""
        if viewport.height < SHORT:
            return 1 + _FEW
        return 1 + (2 * ROWS if self._doubled(width, viewport.height) else ROWS)

    def _doubled(self, width: int, height: int) -> bool:
        return width < WIDE and height >= TALL and not self.close

    def render(self) -> RenderResult:
        """The lines."""
        heading, rows, said = self.listed
        height = min(self.app.size.height, TALL - 1) if self.close else self.app.size.height
        return Content("\n").join(feature_lines(heading, rows, said, self.content_size.width, height))


def feature_lines(
    heading: str, rows: tuple[ListedFeature, ...], said: str, width: int, terminal_height: int
) -> list[Content]:
    """The lines of a list, each within ``width`` cells.

    Args:
        heading: Of which tokens they are.
        rows: The features, strongest first.
        said: What stands there without one.
        width: Cells of a line.
        terminal_height: Rows of the terminal, which say whether a label has a row of its own.
    """
    head = heading if len(heading) <= width else heading.removeprefix("features of ").removeprefix("the ")
    lines = [Content.styled(head, "$muted").truncate(width, ellipsis=True)]
    if not rows:
        return [*lines, *Content.styled(said, "$muted").wrap(max(8, width))]
    strongest, ids = rows[0].value, max(len(str(row.feature)) for row in rows)
    for row in rows:
        if width >= WIDE:
            lines.append(feature_row(row.feature, row.value, strongest, row.name, width, row.marks))
        elif terminal_height >= TALL:
            lines += _two_rows(row, strongest, ids, width)
        else:
            lines.append(_one_row(row, strongest, ids, width))
    return lines


def _two_rows(row: ListedFeature, strongest: float, ids: int, width: int) -> list[Content]:
    """``1736  15.28 ████``, and under it the label in all of the width."""
    figures = f"{row.feature:>{ids}} {row.value:>6.2f} "
    room = max(0, min(20, width - len(figures)))
    filled = bar(row.value / strongest if strongest > 0 else 0.0, room)
    head = Content.assemble(figures, (filled, "$heat-5")).truncate(width)
    name = Content.assemble(" ", row.marks.short(), row.name)
    return [head, name.truncate(width, ellipsis=True)]


def _one_row(row: ListedFeature, strongest: float, ids: int, width: int) -> Content:
    """``1736 15.3 ▇ label``: the bar is a cell, and the rest is the label's."""
    level = BARS[share_level(row.value, strongest)] if row.value > 0 else " "
    head = Content.assemble(f"{row.feature:>{ids}} {row.value:>4.1f} ", (level, "$heat-5"), " ", row.marks.short())
    return Content.assemble(head, row.name).truncate(width, ellipsis=True)


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


class MeasuresTable(Widget):
    """What the lanes say, in columns, a row an arm that has ended; shown where a tall terminal has room."""

    DEFAULT_CSS = "MeasuresTable { height: auto; padding: 0 1; }"

    run: reactive[RunText | None] = reactive["RunText | None"](None, layout=True)

    def show(self, run: RunText | None) -> None:
        """Show a run as it stands."""
        if run is not self.run:
            self.run = run
        else:
            self.refresh()

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """An empty line, one of heads, and one an arm."""
        return 0 if self.run is None else 2 + len(self.run.arms)

    def render(self) -> RenderResult:
        """The heads and the rows."""
        if self.run is None:
            return Content("")
        room = max(1, (self.size.width - NAME) // COLUMN)
        name = self.size.width - min(room, len(HEADS)) * COLUMN
        head = fit("measures", name) + "".join(fit_left(word, COLUMN) for word in HEADS[:room])
        rows = [
            Content.assemble(
                (fit(one_line(arm.arm.name), max(0, name - 1 - cell_len(amount))) + amount + " ", "$muted"),
                "".join(fit_left(cell, COLUMN) for cell in cells(arm)[:room]),
            )
            for arm in self.run.arms
            for amount in [amount_of_arm(arm)]
        ]
        return Content("\n").join([Content(""), Content.styled(head, "$muted"), *rows])
