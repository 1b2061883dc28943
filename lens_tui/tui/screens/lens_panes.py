"""The views of Lens beside its grid: what adds to the followed token's logit, and where attention heads look."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message
from textual.timer import Timer

from lens_tui.records.measures import AttentionPattern, LogitAttribution, LogitLens
from lens_tui.tui.parts_text import look_cells
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.tui.widgets.lane import quoted
from lens_tui.tui.widgets.part_bars import PartBars
from lens_tui.worker.events import Event, JobDone, JobFailed, PartsRead, PatternRead
from lens_tui.worker.jobs import ReadParts, ReadPattern

REST = 0.08
"""Seconds the cursor rests on a place before it is read."""


@dataclass
class PlaceRead(Message):
    """What was asked of a place is there, or why it cannot be."""


class PartsPane(Pane):
    """The logit of the followed token at one position, by layer: attention, MLP and steering as bars."""

    def __init__(self) -> None:
        self.bars = PartBars(id="bars")
        super().__init__("What adds to the logit", self.bars, id="parts-pane")
        self.parts: LogitAttribution | None = None
        self._asked: ReadParts | None = None
        self._rest: Timer | None = None

    def want(self, job: ReadParts | None) -> None:
        """Have this read once the cursor has rested on it; what is shown stays until then."""
        if job == self._asked:
            return
        self._asked = job
        if self._rest is not None:
            self._rest.stop()
        if job is None:
            self.parts = None
            self.bars.show(None)
        else:
            self._rest = self.set_timer(REST, self._read)

    def _read(self) -> None:
        if self._asked is not None:
            self._mark("reading …")
            self.lens.submit(self._asked, "parts", self._take)

    def _mark(self, why: str) -> None:
        """Say of the numbers that show that they are of another place, and why they still are; or no more."""
        before = bool(why) and self.parts is not None
        self.bars.set_class(before, "-before")
        if before:
            self.note = f"as of before: {why}"

    def _take(self, event: Event) -> bool:
        if isinstance(event, JobDone) and self._asked is not None and self.bars.has_class("-before"):
            self._asked = None  # stopped: asked again when the cursor moves
            self._mark("stopped")
        elif isinstance(event, PartsRead):
            self.parts = event.parts
            self._mark("")
            self.bars.show(event.parts)
            at, target = event.parts.positions[0], event.parts.texts[event.parts.target_ids[0]]
            token = event.parts.texts[event.parts.token_ids[at]]
            self.title, self.note = f"What adds to {quoted(target)}", f"after @ {at} {quoted(token)} · logits"
            self.post_message(PlaceRead())
        elif isinstance(event, JobFailed):
            self.parts, self.note = None, ""
            self._mark("")
            self.bars.show(None, f"{event.message} {event.hint}".strip())
            self.post_message(PlaceRead())
            return True
        return False


class HeadsPane(Pane):
    """The heads of one layer, and how much each looks from one token at those up to it."""

    def __init__(self) -> None:
        self.grid = HeatGrid(id="heads")
        super().__init__("Attention heads", self.grid, id="heads-pane")
        self.pattern: AttentionPattern | None = None
        self._asked: ReadPattern | None = None
        self._rest: Timer | None = None
        self._at: tuple[LogitLens, int] | None = None
        self._why = ""

    @property
    def head(self) -> int:
        """The head under the cursor; the first one is above."""
        return 0 if self.pattern is None else self.pattern.weights.shape[0] - 1 - self.grid.row

    def want(self, job: ReadPattern | None, lens: LogitLens | None, place: int) -> None:
        """Have a layer's heads read, and show how they look from token ``place``."""
        self._at = None if lens is None else (lens, place)
        if job == self._asked:
            self._show()
            return
        self._asked, self.pattern, self._why = job, None, ""
        if self._rest is not None:
            self._rest.stop()
        if job is not None:
            self._rest = self.set_timer(REST, self._read)
        self._show()

    def _read(self) -> None:
        if self._asked is not None:
            self.lens.submit(self._asked, "pattern", self._take)

    def _take(self, event: Event) -> bool:
        if isinstance(event, PatternRead):
            self.pattern = event.pattern
            self._show()
            self.post_message(PlaceRead())
        elif isinstance(event, JobDone) and self.pattern is None and not self._why:
            self._asked, self._why = None, "stopped"
            self._show()
        elif isinstance(event, JobFailed):
            self._why = f"{event.message} {event.hint}".strip()
            self._show()
            self.post_message(PlaceRead())
            return True
        return False

    def _show(self) -> None:
        pattern = self.pattern
        if pattern is None or self._at is None or pattern.token_ids != self._at[0].token_ids:
            self.title, self.note, self.grid.empty = "Attention heads", "", self._why
            self.grid.show([], [], [])
            return
        lens, place = self._at
        first = self.grid.blank
        heads = pattern.weights.shape[0]
        words = [lens.texts[token] for token in pattern.token_ids[: place + 1]]
        self.title = f"Heads of L{pattern.layer} looking from @ {place} {quoted(words[-1])}"
        self.note = "share of the look"
        names = [f"H{head}" for head in reversed(range(heads))]
        cells = look_cells(pattern, place)
        self.grid.show(words, names, cells, [[""] * len(words)] * heads)  # no details, but rows of their height
        if first:
            self.grid.move_to(heads - 1, int(pattern.weights[0, place].argmax()))
