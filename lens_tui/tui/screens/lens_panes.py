"""The views of Lens beside its grid: what adds to the followed token's logit, and where attention heads look."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from lens_tui.records.measures import AttentionPattern, LogitAttribution, LogitLens
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import fit
from lens_tui.tui.host import WAITING
from lens_tui.tui.lane_text import quoted
from lens_tui.tui.parts_text import (
    Lazily,
    Span,
    columns_of,
    head_line,
    largest,
    layer_line,
    layer_parts,
    look_cells,
    pattern_cells,
)
from lens_tui.tui.reading_text import READING
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.heat_grid import NAME, TALLEST, HeatGrid
from lens_tui.worker.events import Event, JobDone, JobFailed, JobStarted, PartsRead, PatternRead
from lens_tui.worker.jobs import ReadParts, ReadPattern

BAR_NAME, WIDEST_BAR, TALLEST_BAR = 6, 34, 3
FAR = 1 << 20


class PartBars(Widget, can_focus=True):
    """Layers from bottom to top. Posts :class:`Step` for where the cursor is to go, and shows what it is given."""

    BINDINGS = bindings("move")
    DEFAULT_CSS = "PartBars { height: 1fr; }"

    row: reactive[int] = reactive(0)
    empty: reactive[str] = reactive("")

    @dataclass
    class CursorMove(Message):
        """The cursor is to go so many layers up and so many tokens to the right."""

        layers: int
        tokens: int

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._parts: LogitAttribution | None = None
        self._top = 0

    def show(self, parts: LogitAttribution | None, empty: str = "") -> None:
        """Show a logit taken apart; or, with ``None``, a sentence."""
        self._parts, self.empty = parts, empty
        self.refresh()

    def render(self) -> RenderResult:
        """The layers around the cursor, the one there marked."""
        parts = self._parts
        if parts is None:
            return Content.styled(self.empty, "$muted")
        layers = layer_parts(parts)[::-1]
        columns, limit = columns_of(layers, self.size.width - BAR_NAME), largest(parts)
        width = max(BAR_NAME, min(WIDEST_BAR, (self.size.width - BAR_NAME) // len(columns)))
        tall = self._tall(len(layers))
        room = max(1, (self.size.height - 1) // tall)
        here = next((place for place, row in enumerate(layers) if row.layer == self.row), 0)
        self._top = max(0, min(max(self._top, here - room + 1), here, len(layers) - room))
        spans: list[Span] = [" " * BAR_NAME, *head_line(columns, width)]
        for row in layers[self._top : self._top + room]:
            marked = row.layer == self.row
            name = fit(f"{'▸' if marked else ' '}L{row.layer}", BAR_NAME)
            spans += ["\n", (name, "bold" if marked else "$muted"), *layer_line(row, columns, limit, width)]
            spans.append("\n" * (tall - 1))
        return Content.assemble(*spans)

    def _tall(self, count: int) -> int:
        """Rows of the screen to a layer: more than one only where all of them fit."""
        return max(1, min(TALLEST_BAR, (self.size.height - 1) // max(1, count)))

    def on_click(self, event: events.Click) -> None:
        """A click goes to the layer under it."""
        if self._parts is None or event.y < 1:
            return
        layers = layer_parts(self._parts)[::-1]
        place = self._top + (event.y - 1) // self._tall(len(layers))
        if place < len(layers):
            self.post_message(self.CursorMove(layers[place].layer - self.row, 0))

    def action_cursor_up(self) -> None:
        """A layer later."""
        self.post_message(self.CursorMove(1, 0))

    def action_cursor_down(self) -> None:
        """A layer earlier."""
        self.post_message(self.CursorMove(-1, 0))

    def action_cursor_left(self) -> None:
        """The logit after the token before."""
        self.post_message(self.CursorMove(0, -1))

    def action_cursor_right(self) -> None:
        """The logit after the next token."""
        self.post_message(self.CursorMove(0, 1))

    def action_first(self) -> None:
        """After the first token."""
        self.post_message(self.CursorMove(0, -FAR))

    def action_last(self) -> None:
        """After the last token."""
        self.post_message(self.CursorMove(0, FAR))

    def action_page_up(self) -> None:
        """Some layers up."""
        self.post_message(self.CursorMove(max(1, self.size.height // 2), 0))

    def action_page_down(self) -> None:
        """Some layers down."""
        self.post_message(self.CursorMove(-max(1, self.size.height // 2), 0))


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

    def want(self, job: ReadParts | None, why: str = "") -> None:
        """Have this read once the cursor has rested on it; what is shown stays until then. ``why`` there is nothing."""
        if job is not None and job == self._asked:
            return
        self._asked = job
        if self._rest is not None:
            self._rest.stop()
        if job is None:
            self.parts = None
            self.title, self.note = "What adds to the logit", ""
            self.bars.remove_class("-before")
            self.bars.show(None, why)
        else:
            self._rest = self.set_timer(REST, self._read)

    def _read(self) -> None:
        if self._asked is not None:
            self._mark(WAITING if self.lens.book.busy else READING)
            self.lens.submit(self._asked, "parts", self._take)

    def _mark(self, why: str) -> None:
        """Say of the numbers that show that they are of another place, and why they still are; or no more."""
        before = bool(why) and self.parts is not None
        self.bars.set_class(before, "-before")
        if before:
            self.note = f"as of before: {why}"

    def _take(self, event: Event) -> bool:
        if isinstance(event, JobStarted):
            self._mark(READING)
        elif isinstance(event, JobDone) and self._asked is not None and self.bars.has_class("-before"):
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


LEAST_ROWS = 3
"""Rows of a head's pattern at least; with fewer it says nothing that the row of the head does not say."""
SHARE = 5
"""Cells to a column of it."""


class HeadsPane(Pane):
    """The heads of one layer, and how much each looks from one token at those up to it.

    Where that leaves room, the pattern of the head under the cursor is below: a row for each token that looks. It is
    read only, and shows the place that the cursors of the grids above are on.
    """

    def __init__(self) -> None:
        self.grid = HeatGrid(id="heads")
        self.every = HeatGrid(cell=SHARE, id="every")
        self.every.can_focus, self.every.disabled = False, True
        self._every_title = Static(id="every-title")
        super().__init__("Attention heads", self.grid, self._every_title, self.every, id="heads-pane")
        self.pattern: AttentionPattern | None = None
        self._asked: ReadPattern | None = None
        self._rest: Timer | None = None
        self._at: tuple[LogitLens, int] | None = None
        self._why = ""

    @property
    def head(self) -> int:
        """The head under the cursor; the first one is above."""
        return 0 if self.pattern is None else self.pattern.weights.shape[0] - 1 - self.grid.row

    def want(self, job: ReadPattern | None, lens: LogitLens | None, place: int, why: str = "") -> None:
        """Have a layer's heads read, and show how they look from token ``place``; ``why`` there is nothing to read."""
        self._at = None if lens is None else (lens, place)
        if job is not None and job == self._asked:
            self._show()
            return
        self._asked, self.pattern, self._why = job, None, why
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
            self._arrange()
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
        self._show_every()

    # -- the pattern of one head

    def on_heat_grid_moved(self, event: HeatGrid.Moved) -> None:
        """Another head, or another token that is looked at."""
        if event.grid is self.grid:
            self._show_every()

    def on_resize(self, _event: events.Resize) -> None:
        """More or less room."""
        self._arrange()

    def _show_every(self) -> None:
        pattern = self.pattern
        if pattern is not None and self._at is not None and not self.grid.blank:
            lens, place = self._at
            words, count = [lens.texts[token] for token in pattern.token_ids], len(pattern.token_ids)
            names = Lazily(count, lambda row: fit(words[count - 1 - row].replace(" ", "·"), NAME - 1))
            self._every_title.update(Content.styled(f"H{self.head} from every token", "$muted"))
            self.every.mode = self.grid.mode
            self.every.show(words, names, pattern_cells(pattern, self.head))
            self.every.move_to(count - 1 - place, self.grid.column)
        self._arrange()

    def _arrange(self) -> None:
        """The rows of the heads as tall as the pattern leaves room for; without enough of that the heads alone."""
        pattern, gap = self.pattern, self._every_title.styles.margin.top
        room = self.content_size.height - 1 - self.grid.styles.margin.top
        heads = 0 if pattern is None or self.grid.blank else pattern.weights.shape[0]
        left = room - (heads + 1) - gap - 2  # the pattern's title and its own heads
        shows = bool(heads) and pattern is not None and left >= min(LEAST_ROWS, len(pattern.token_ids))
        self._every_title.display = self.every.display = shows
        if shows and pattern is not None:
            spare = room - gap - 2 - len(pattern.token_ids) - 1
            self.grid.styles.height = heads * max(1, min(TALLEST, spare // heads)) + 1
        else:
            self.grid.styles.height = "1fr"
