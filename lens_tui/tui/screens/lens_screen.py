"""Lens: what every layer would predict at every token, and where a token that is followed comes up.

Two more views are of the grid's place: what each layer adds to the followed token's logit there, and where the heads
of its layer look from its token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Static

from lens_tui.records import Arm
from lens_tui.records.measures import LogitLens
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.bindings import bindings
from lens_tui.tui.host import WAITING
from lens_tui.tui.lane_text import quoted, strength
from lens_tui.tui.parts_text import logit_lines, look_lines
from lens_tui.tui.reading_text import (
    MEASURES,
    READING,
    ReadingText,
    beside_lines,
    cell_lines,
    cells,
    details,
    know_chat,
    sources,
)
from lens_tui.tui.session import Session, plan
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.frame import Hairline, LensScreen, Pane, Scroll
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.tui.widgets.lane import Line
from lens_tui.worker.events import Event, JobDone, JobFailed, JobStarted, LensRead, PromptRead, VectorMade
from lens_tui.worker.jobs import LENS_TOKENS, TOO_LONG, ReadLens, ReadParts, ReadPattern, ReadPrompt, VectorFromToken

from .lens_panes import HeadsPane, PartBars, PartsPane, PlaceRead

VIEWS = {"grid": "logit lens", "parts": "what adds to the logit", "heads": "attention heads"}
"""The views in the order that a key goes through them, and what they are called."""


def _read_of(session: Session) -> tuple[object, ...]:
    """What of a session another reading follows from."""
    return session.model, session.model is None and session.loading, session.steers, sources(session), session.question


class ReadoutScreen(LensScreen):
    """The grid of layers and tokens, and the cell under the cursor, whose layer and token the other views are of."""

    mode: ClassVar[str] = "lens"
    CSS_PATH = "lens_screen.tcss"
    AUTO_FOCUS = ""
    BINDINGS = bindings("lens")

    def __init__(self) -> None:
        super().__init__()
        self.grid = HeatGrid(empty="no text yet", id="grid")
        self.cell = Static(id="cell")
        self.parts, self.heads = PartsPane(), HeadsPane()
        self.view = "grid"
        self.token = Entry(placeholder="a token, with its leading space", id="token", classes="-closed")
        self.read_out: LogitLens | None = None
        self.measure = MEASURES[0]
        self.target: int | str = ""
        self._asked: ReadLens | None = None
        self._came = True
        self._place = self._arm = 0
        self.jacobian = False
        self.beside: LogitLens | None = None

    def body(self) -> ComposeResult:
        """Which text and arm; then the grid and the cell."""
        yield Line(id="which")
        yield Hairline()
        with Horizontal(id="panes"):
            yield Pane("Logit lens", self.grid, id="grid-pane")
            yield self.parts
            yield self.heads
            yield Pane("Cell", self.token, Scroll(self.cell, id="cell-scroll"), id="cell-pane")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)
        self._turn("grid")

    def focus_first(self) -> None:
        """Begin in what the view is of."""
        self.set_focus({"grid": self.grid, "parts": self.parts.bars, "heads": self.heads.grid}[self.view])

    def _tint_changed(self, tint: str) -> None:
        self.grid.mode = self.heads.grid.mode = self.heads.every.mode = tint

    # -- what is read ------------------------------------------------------------------------------------

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The baseline and the arms on the bench."""
        return self.session.arms()

    @property
    def arm(self) -> Arm:
        """The arm that is read."""
        return self.arms[min(self._arm, len(self.arms) - 1)]

    @property
    def source(self) -> ReadingText:
        """The text that is read."""
        every = sources(self.session)
        return every[min(self._place, len(every) - 1)]

    def session_changed(self, old: Session, new: Session) -> None:
        """Another model, prompt, run or bench: read again, if the screen shows."""
        if old.model != new.model:
            self._asked = None
        if _read_of(old) != _read_of(new):
            if self.is_current:
                self.read()
            self._show_which()

    def on_screen_resume(self) -> None:
        """Read what changed while the screen was away."""
        self.read()
        self._show_which()

    def read(self) -> None:
        """Have the text read, unless it already is."""
        coming = know_chat(self.lens)
        source = self.source
        if self.session.model is None or source.blank:
            self._asked = None
            self._show(None)
            if coming:
                self.grid.empty = READING
            return
        arm = None if self.arm.is_baseline else self.arm
        job = ReadLens(source.text, source.token_ids, arm, self.target, jacobian=self.jacobian)
        if job != self._asked:
            self._asked, self._came = job, False
            # No text has more tokens than bytes, but for one that the tokenizer may begin it with.
            if source.token_ids or len(source.text.encode(errors="surrogatepass")) < LENS_TOKENS:
                self._read_tokens(job, len(source.token_ids))
            else:
                self._count(job)

    def _count(self, job: ReadLens) -> None:
        """Have a long text's tokens counted, which waits for nothing that runs, before it is read."""
        found: list[int] = []

        def take(event: Event) -> bool | None:
            if isinstance(event, PromptRead):
                found.append(len(event.token_ids))
            elif isinstance(event, JobDone) and found and not event.stopped:
                self._read_tokens(job, *found)
            elif isinstance(event, JobDone | JobFailed):
                return self._take(event)
            return None

        self._say_coming()
        self.lens.submit(ReadPrompt(job.text, raw=True), "lens", take)

    def _read_tokens(self, job: ReadLens, tokens: int) -> None:
        """Have a text read, or say that it is too long, which no work is needed for."""
        if tokens > LENS_TOKENS:
            self.lens.forget("lens")
            self._came = True
            wrong, do = TOO_LONG
            self._show(None, f"{wrong.format(tokens)} {do}")
        else:
            self._say_coming()
            self.lens.submit(job, "lens", self._take)

    def _say_coming(self) -> None:
        """Say that what is about to be asked for is being read, or that it waits for what is before it."""
        self._say(WAITING if self.lens.book.busy else READING)

    def _say(self, why: str) -> None:
        """Say why what was asked for does not show: of the numbers of before, or in their place in every view."""
        self._mark(why)
        self.grid.empty = why
        self._ask_views()

    def _mark(self, why: str) -> None:
        """Say of the numbers that show that they are of what was read before, and why they still are; or no more."""
        before = bool(why) and self.read_out is not None
        shown = self.read_out
        name = "Logit lens" if shown is None or shown.method == "logit" else "Jacobian lens"
        self.query_one("#grid-pane", Pane).title = f"{name} · as of before: {why}" if before else name
        for part in (self.grid, self.cell):
            part.set_class(before, "-before")

    def _take(self, event: Event) -> bool | None:
        if isinstance(event, JobStarted) and not self._came:
            self._say(READING)
        elif isinstance(event, JobDone) and not self._came:
            self._asked = None
            self._say("stopped")
        elif isinstance(event, LensRead):
            self._came = True
            first = self.read_out is None
            self.beside = event.beside
            self._show(event.lens)
            if first:
                self.grid.move_to(len(event.lens.layers) - 1, len(event.lens.token_ids) - 1)
        elif isinstance(event, JobFailed):
            # A wrong token is corrected by typing another, and a lens that is not there by the other one.
            self.target, self._asked, self.jacobian, self.grid.empty = "", None, False, ""
            self._mark("it failed")
            return not self.is_current  # no dialogue over another screen: on coming back it is asked, and said, again
        return None

    def _show(self, lens: LogitLens | None, instead: str = "") -> None:
        """Show a reading; or, with ``None``, why there is none: ``instead``, or what there is none of."""
        self.read_out = lens
        pane = self.query_one("#grid-pane", Pane)
        if lens is None or self._came:
            self._mark("")
        if lens is None:
            key = self.lens.key_text
            no_text = f"No text: write a prompt on Generate ({key('app.generate')})."
            self.grid.empty = instead or (self.lens.without_model() if self.session.model is None else no_text)
            pane.note = ""
            self.grid.show([], [], [])
            self._ask_views()
            return
        shape = f"{many(len(lens.layers), 'layer')} × {many(len(lens.token_ids), 'token')}"
        pane.note = f"best next token · shade: {self.measure} · {shape}"
        heads = [lens.texts[token] for token in lens.token_ids]
        names = [f"L{layer}" for layer in lens.layers]
        self.grid.show(heads, names, cells(lens, self.measure), details(lens, self.measure))
        self._ask_views()

    def _show_which(self) -> None:
        parts: list[str | tuple[str, str]] = []
        for name, here in [
            *((source.name, source == self.source) for source in sources(self.session)),
            *((f"read {arm.name} {strength(arm.interventions)}".rstrip(), arm == self.arm) for arm in self.arms),
        ]:
            parts.append((f"▐{name}▌" if here else f" {name} ", "bold" if here else "$muted"))
        self.query_one("#which", Line).content = Content.assemble(*parts)

    def on_heat_grid_moved(self, event: HeatGrid.Moved) -> None:
        """Another cell: the other views are of its layer and token."""
        if event.grid is self.grid:
            self._ask_views()
        if event.grid is not self.heads.every:
            self._show_cell()

    def on_part_bars_cursor_move(self, event: PartBars.CursorMove) -> None:
        """The bars say where the cursor goes."""
        self.action_go(event.layers, event.tokens)

    def on_place_read(self, event: PlaceRead) -> None:
        """The parts or heads of the place are there."""
        self._show_cell()

    def _ask_views(self) -> None:
        """Have read what the view shows of the grid's place; a view that is not seen reads nothing."""
        lens, job = self.read_out, self._asked
        if lens is None or job is None or self.grid.blank or self.view == "grid":
            if lens is None:
                self.parts.want(None, self.grid.empty)
                self.heads.want(None, None, 0, self.grid.empty)
            return
        row, at = self.grid.row, self.grid.column
        self.parts.bars.row = lens.layers[row]
        text = job.text, job.token_ids, job.arm
        self.parts.want(ReadParts(*text, int(lens.target_ids[at]), at))
        if self.view == "heads":
            self.heads.want(ReadPattern(*text, lens.layers[row]), lens, at)

    def _show_cell(self) -> None:
        pane = self.query_one("#cell-pane", Pane)
        lens, model = self.read_out, self.session.model
        if lens is None or model is None or self.grid.blank:
            pane.note = ""
            self.cell.update("")
            return
        row, column = self.grid.row, self.grid.column
        width = max(16, self.cell.size.width)
        if self.view != "grid":
            pane.note = ""
            self.cell.update(Content("\n").join(self._view_lines(lens, row, column, width)))
            return
        pane.note = f"L{lens.layers[row]} @ {column} {quoted(lens.texts[lens.token_ids[column]])}"
        lines = cell_lines(lens, row, column, width, model.vocab_size)
        if self.beside is not None and lens.method == "jacobian":
            lines += beside_lines(lens, self.beside, row, column)
        self.cell.update(Content("\n").join(lines))

    def _view_lines(self, lens: LogitLens, row: int, column: int, width: int) -> list[Content]:
        """What the other views say of the layer and token."""
        parts, heads = self.parts.parts, self.heads
        if self.view == "parts":
            return logit_lines(parts, lens.layers[row], width) if parts is not None else []
        if heads.pattern is None or heads.grid.blank:
            return []
        place = (heads.head, column, min(heads.grid.column, column))
        return look_lines(heads.pattern, lens.texts, place, parts, width)

    def on_resize(self) -> None:
        """The cell's bars follow the width."""
        self.call_after_refresh(self._show_cell)

    # -- actions -----------------------------------------------------------------------------------------

    def action_source(self, step: int) -> None:
        """The text before or after."""
        if len(sources(self.session)) == 1:
            self.lens.say(f"There is no other text: {self.lens.key_text('app.run')} on Generate writes some.")
            return
        self._place = (self._place + step) % len(sources(self.session))
        self.read()
        self._show_which()

    def action_view(self) -> None:
        """The next view of the same place."""
        names = list(VIEWS)
        self._turn(names[(names.index(self.view) + 1) % len(names)])
        self.focus_first()

    def _turn(self, view: str) -> None:
        self.view = view
        for name, pane in (("grid", self.query_one("#grid-pane", Pane)), ("parts", self.parts), ("heads", self.heads)):
            pane.display = name == view
        self.query_one("#cell-pane", Pane).title = {"grid": "Cell", "parts": "Logit", "heads": "Head"}[view]
        self._ask_views()
        self._show_cell()

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Each view, by name."""
        for view, name in VIEWS.items():
            yield f"Show {name}", partial(self._go_to, view)

    def _go_to(self, view: str) -> None:
        self._turn(view)
        self.focus_first()

    def action_go(self, layers: int, tokens: int) -> None:
        """So many layers up and tokens to the right: the place that every view is of."""
        before = self.grid.row, self.grid.column
        if not self.grid.blank:
            self.grid.move_to(self.grid.row + layers, self.grid.column + tokens)
        if before == (self.grid.row, self.grid.column):
            self.lens.say("There is nothing to go to on that side.")

    def action_flip(self) -> None:
        """The next arm: baseline and steered grids in the same place."""
        if len(self.arms) == 1:
            self.lens.say("There is no steered arm: put a vector on the bench first.")
            return
        self._arm = (min(self._arm, len(self.arms) - 1) + 1) % len(self.arms)
        self.read()
        self._show_which()

    def action_through(self) -> None:
        """The grid through the model's Jacobian lens, or the logit lens again."""
        self.jacobian = not self.jacobian
        self.read()
        self.lens.say(f"The grid is read through the {'Jacobian' if self.jacobian else 'logit'} lens.")

    def action_measure(self) -> None:
        """Another meaning of the shade."""
        self.measure = MEASURES[(MEASURES.index(self.measure) + 1) % len(MEASURES)]
        self._show(self.read_out)
        self.lens.say(f"The shade says: {self.measure}")

    def action_find(self) -> None:
        """Type a token to follow."""
        self.token.remove_class("-closed")
        self.token.value = self.target if isinstance(self.target, str) else ""
        self.token.focus()

    def action_follow(self) -> None:
        """Follow the best token of the cell, or again the one that comes next."""
        lens = self.read_out
        if lens is None or self.grid.blank:
            self.lens.say("There is no cell to take a token from.")
            return
        best = int(lens.top_ids[self.grid.row, self.grid.column, 0])
        self.target = "" if self.target == best else best
        self.read()

    def action_match(self, step: int) -> None:
        """The next cell, in reading order, whose best token is the one that is followed; or the one before."""
        lens, grid = self.read_out, self.grid
        if lens is None or grid.blank:
            self.lens.say("There is no cell to go to.")
            return
        hits = [divmod(at, len(lens.token_ids)) for at, rank in enumerate(lens.target_ranks.flat) if rank == 0]
        here = (grid.row, grid.column)
        after = [hit for hit in hits if (hit > here if step > 0 else hit < here)] or hits
        if not after:
            self.lens.say("The token that is followed is no cell's best.")
        else:
            grid.move_to(*(after[0] if step > 0 else after[-1]))

    def action_layer(self, step: int) -> None:
        """The cursor one layer earlier or later."""
        before = self.grid.row
        self.grid.row += step
        if self.grid.row == before:
            self.lens.say("There is no layer before this one." if step < 0 else "There is no layer behind this one.")

    def action_scale(self, steps: int) -> None:
        """Scale of the rows that act in the arm that is read, by steps; it is read again."""
        number = plan(self.session)[self.arms.index(self.arm)][0]
        rows = [row.moved(steps) for row in self.session.steers if row.arm == number and row.enabled]
        if not rows:
            self.lens.say(f"Nothing is steered in this arm: {self.lens.key_text('lens.flip')} reads the next one.")
            return
        self.lens.store.replace_steers(rows)

    def action_steer(self) -> None:
        """Put a token's row of the unembedding on the bench, at the cell's layer; pulled back where the grid is.

        Of the grid that is the followed token, or the cell's best; of the other views the one whose logit they are of.
        """
        lens = self.read_out
        if lens is None or self.grid.blank:
            self.lens.say("There is no cell to take a token from.")
            return
        row, column = self.grid.row, self.grid.column
        of_logit = self.target != "" or self.view != "grid"
        pulled = self.view == "grid" and lens.method == "jacobian"
        token = int(lens.target_ids[column] if of_logit else lens.top_ids[row, column, 0])
        name = f"{one_line(lens.texts[token].strip(), 24) or '␣'} L{lens.layers[row]}"

        def take(event: Event) -> None:
            if isinstance(event, VectorMade):
                what = f"{'The direction along the Jacobian lens' if pulled else 'The unembedding row'} of {name}"
                self.lens.put_on_bench(event, what, scaled=True)

        kind = "jacobian" if pulled else "unembedding"
        self.lens.submit(VectorFromToken(f"id:{token}", lens.layers[row], kind, name), "send", take)

    def action_copy(self) -> None:
        """Copy what the cell says, with where it is."""
        lens, model = self.read_out, self.session.model
        if lens is None or model is None or self.grid.blank:
            self.lens.say("There is no cell to copy.")
            return
        row, column = self.grid.row, self.grid.column
        where = (
            f"{self.arm.name}, layer {lens.layers[row]}, token {column} {quoted(lens.texts[lens.token_ids[column]])}"
        )
        shown = self._view_lines(lens, row, column, 60)
        if self.view == "grid":
            shown = cell_lines(lens, row, column, 60, model.vocab_size)
        lines = [line.plain.rstrip() for line in shown]
        self.lens.copy("\n".join([where, "", *lines]), "the cell")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Follow that token; nothing typed: the one that comes next."""
        self.target = event.value
        self._close_token()
        self.read()

    def _close_token(self) -> None:
        self.token.add_class("-closed")
        self.focus_first()

    def on_key(self, event: events.Key) -> None:
        """Escape closes the field, then lets the followed token go."""
        if event.key != "escape":
            return
        if self.target != "" and self.focused is not self.token and self.maximized is None:
            event.stop()
            event.prevent_default()
            self.target = ""
            self.read()

    def leave_text(self) -> None:
        """Escape in the field."""
        self._close_token()
