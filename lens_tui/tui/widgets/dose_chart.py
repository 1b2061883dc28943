"""Curves over scales in aligned columns: one row of blocks a measure, the row's own scale marked above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.tui.bench_text import short
from lens_tui.tui.bindings import bindings
from lens_tui.tui.dose_text import Series
from lens_tui.tui.format import fit

from .ramps import BARS, share_level

LABEL, VALUE, WIDEST = 12, 6, 6
Part = str | tuple[str, str]


class DoseChart(Widget, can_focus=True):
    """Left and right move along the scales, up and down along the measures; enter posts :class:`Taken`."""

    BINDINGS = [*bindings("move"), *bindings("dose")]
    DEFAULT_CSS = "DoseChart { height: auto; }"

    column: reactive[int] = reactive(0)
    row: reactive[int] = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor is elsewhere."""

    @dataclass
    class Taken(Message):
        """The scale under the cursor is wanted."""

        scale: float

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.scales: tuple[float, ...] = ()
        self.series: tuple[Series, ...] = ()
        self.now: float | None = None

    def show(
        self, scales: Sequence[float], series: Sequence[Series], now: float | None, column: int | None = None
    ) -> None:
        """Show these curves; ``now`` is the scale to mark. The cursor goes to ``column`` or stays where it is."""
        changed = len(series) != len(self.series)
        self.scales, self.series, self.now = tuple(scales), tuple(series), now
        self.set_reactive(DoseChart.column, self.validate_column(self.column if column is None else column))
        self.set_reactive(DoseChart.row, self.validate_row(self.row))
        self.refresh(layout=changed)

    def validate_column(self, value: int) -> int:
        """Within the scales."""
        return max(0, min(value, len(self.scales) - 1))

    def validate_row(self, value: int) -> int:
        """Within the measures."""
        return max(0, min(value, len(self.series) - 1))

    def watch_column(self) -> None:
        """Another scale."""
        self.post_message(self.Moved())

    def watch_row(self) -> None:
        """Another measure."""
        self.post_message(self.Moved())

    # ---- drawing

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """Two lines of head and one a measure."""
        return 2 + len(self.series)

    @property
    def step(self) -> int:
        """Cells of a column."""
        return max(1, min(WIDEST, (self.size.width - LABEL - VALUE) // max(1, len(self.scales))))

    def render(self) -> RenderResult:
        """Head, mark, curves."""
        if not self.scales:
            return Content("")
        lines = [self._head(), self._mark(), *(self._line(at, series) for at, series in enumerate(self.series))]
        return Content("\n").join(lines)

    def _head(self) -> Content:
        """The scales over their columns: that under the cursor always, then 0, the ends and whatever else has room."""
        labels = self._labels()
        order = [self.column, *(at for at, scale in enumerate(self.scales) if scale == 0), 0, len(self.scales) - 1]
        taken: dict[int, tuple[int, str]] = {}
        for at in dict.fromkeys([*order, *range(len(self.scales))]):
            label = labels[at]
            start = max(0, at * self.step + (self.step - 1 if self.step > 1 else 1) - cell_len(label))
            if all(start > first + len(text) or start + len(label) < first for first, text in taken.values()):
                taken[at] = (start, label)
        parts: list[Part] = [(fit("scale", LABEL), "$muted")]
        place = 0
        for at, (start, label) in sorted(taken.items(), key=lambda item: item[1][0]):
            parts += [" " * (start - place), (label, "bold $accent" if at == self.column else "$muted")]
            place = start + len(label)
        return Content.assemble(*parts)

    def _labels(self) -> list[str]:
        """Short names of the scales; where two would read the same, with a digit more."""
        labels = [short(scale) for scale in self.scales]
        return labels if len(set(labels)) == len(labels) else [f"{scale:.3g}" for scale in self.scales]

    def _mark(self) -> Content:
        """A dot where the row's own scale is: on a column, or between two."""
        if self.now is None:
            return Content("")
        place = self._place(self.now)
        glyph = "◀" if self.now < self.scales[0] else "▶" if self.now > self.scales[-1] else "●"
        return Content.assemble((fit("row is at", LABEL), "$muted"), " " * place, (glyph, "$accent"))

    def _place(self, scale: float) -> int:
        above = next((at for at, other in enumerate(self.scales) if other >= scale), len(self.scales) - 1)
        middle = max(0, (self.step - 2) // 2)
        if above == 0 or self.scales[above] <= scale:
            return above * self.step + middle
        low, high = self.scales[above - 1], self.scales[above]
        return round((above - 1 + (scale - low) / (high - low)) * self.step) + middle

    def _line(self, at: int, series: Series) -> Content:
        here = at == self.row
        style = "bold" if here else "$muted" if series.control else ""
        lead = ("▸" if here else " ", "$accent" if self.has_focus else "$muted")
        parts: list[Part] = [lead, (fit(series.label, LABEL - 1), style)]
        for column, value in enumerate(series.values):
            tone = "bold $accent" if column == self.column else "$muted" if series.control else "$heat-5"
            parts += [(self._bar(series, value), tone), (self._flag(series, column), "$muted")]
        value = series.values[self.column] if self.column < len(series.values) else None
        shown = "" if value is None else f"{value:.{series.places}f}" if abs(value) < 10_000 else f"{value:.0e}"
        parts.append((f"{shown:>{VALUE}}", style))
        return Content.assemble(*parts)

    def _bar(self, series: Series, value: float | None) -> str:
        width = max(1, self.step - 1)
        if value is None:
            return "·".center(width)
        if value - value != 0:
            return "×".center(width)  # the model's numbers overflowed there
        return BARS[share_level(value, series.top)] * width

    def _flag(self, series: Series, column: int) -> str:
        """After the bar of a knee a diamond, after one that a curve turns back to an arrow."""
        if self.step < 2:
            return ""
        scale = self.scales[column]
        if series.curve is not None and series.curve.knee == scale:
            return "◆"
        if series.curve is not None and any(second == scale for _, second in series.curve.reversals):
            return "↩"
        return " "

    # ---- moving

    def on_focus(self) -> None:
        """The cursor is drawn stronger."""
        self.refresh()

    def on_blur(self) -> None:
        """And weaker."""
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """A click goes there."""
        self.column = (event.x - LABEL) // self.step
        if event.y >= 2:
            self.row = event.y - 2

    def action_cursor_left(self) -> None:
        """The scale before."""
        self.column -= 1

    def action_cursor_right(self) -> None:
        """The scale after."""
        self.column += 1

    def action_cursor_up(self) -> None:
        """The measure above."""
        self.row -= 1

    def action_cursor_down(self) -> None:
        """The measure below."""
        self.row += 1

    def action_first(self) -> None:
        """The lowest scale."""
        self.column = 0

    def action_last(self) -> None:
        """The highest scale."""
        self.column = len(self.scales) - 1

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There are no pages; there is nothing to take before there is a scale."""
        return action not in ("page_down", "page_up") and (action != "take" or bool(self.scales))

    def action_take(self) -> None:
        """Ask for the scale under the cursor."""
        if self.scales:
            self.post_message(self.Taken(self.scales[self.column]))
