"""The lanes side by side: as many as fit, the baseline always first, the focused one always in view."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import Horizontal

from lens_tui.tui.run_text import Measure

from .lane import Lane
from .token_paint import ShadeMode

MIN_LANE = 36
DENSE_LANE = 23
WIDE = 100


def room_for(width: int) -> int:
    """How many lanes fit: roomy ones on a narrow terminal, all five of a full comparison from 115 columns on."""
    return max(1, width // (DENSE_LANE if width >= WIDE else MIN_LANE))


def window(count: int, focused: int, room: int, start: int) -> tuple[int, list[int]]:
    """Which of ``count`` lanes show when ``room`` fit: lane 0 and a run of the others that holds ``focused``.

    ``start`` is where that run began before, so that lanes move only when they must;
    returns where it begins now and the lanes.
    """
    if room >= count:
        return 1, list(range(count))
    if room <= 1:
        return 1, [focused]
    others = room - 1
    if focused:
        start = min(max(start, focused - others + 1), focused)
    start = max(1, min(start, count - others))
    return start, [0, *range(start, start + others)]


class LaneRow(Horizontal):
    """Owns the lanes; ``focused_lane`` is the one that keys act on."""

    DEFAULT_CSS = "LaneRow { height: 1fr; } LaneRow > Lane.-away { display: none; }"

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.lanes: list[Lane] = []
        self.position = 0
        self._start = 1

    @property
    def focused_lane(self) -> Lane | None:
        """The lane that keys act on."""
        return self.lanes[self.position] if self.lanes else None

    def set_lanes(self, wanted: Sequence[tuple[int, str]], measure: Measure, shade: ShadeMode, empty: str) -> None:
        """Have a lane for each ``(number, name)``, keeping those that are there."""
        numbers = [number for number, _ in wanted]
        if numbers != [lane.number for lane in self.lanes]:
            focused = self.focused_lane
            had_focus = focused is not None and focused.has_focus_within
            here = {lane.number: lane for lane in self.lanes}
            for lane in self.lanes:
                if lane.number not in numbers:
                    lane.remove()
            self.lanes = [
                here.get(number) or self._make(number, name, measure, shade, empty) for number, name in wanted
            ]
            for before, lane in zip([None, *self.lanes], self.lanes, strict=False):
                if lane.parent is None:
                    self.mount(lane, before=0) if before is None else self.mount(lane, after=before)
            kept = focused.number if focused is not None and focused.number in numbers else numbers[-1]
            self.position = numbers.index(kept)
            self._show()
            if had_focus:
                self.focus_lane()
        for (_, name), lane in zip(wanted, self.lanes, strict=True):
            lane.title = name

    @staticmethod
    def _make(number: int, name: str, measure: Measure, shade: ShadeMode, empty: str) -> Lane:
        lane = Lane(number, name, empty)
        lane.set_reactive(Lane.measure, measure)
        lane.set_reactive(Lane.shade, shade)
        lane.view.set_reactive(type(lane.view).mode, shade)
        return lane

    def focus_lane(self, step: int = 0) -> None:
        """Focus the lane ``step`` places on, or the current one again."""
        if not self.lanes:
            return
        self.position = (self.position + step) % len(self.lanes)
        self._show()
        self.lanes[self.position].view.focus()

    def on_lane_focused(self, event: Lane.Focused) -> None:
        """The focus came by another way."""
        if event.lane in self.lanes:
            self.position = self.lanes.index(event.lane)

    def on_resize(self) -> None:
        """More or fewer lanes fit."""
        self._show()

    def _show(self) -> None:
        self._start, shown = window(len(self.lanes), self.position, room_for(self.size.width), self._start)
        for place, lane in enumerate(self.lanes):
            lane.set_class(place not in shown, "-away")
        for lane in self.lanes:
            hidden = len(self.lanes) - len(shown)
            lane.set_class(hidden > 0, "-paged")
