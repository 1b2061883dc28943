"""A lane of Generate: what an arm writes, its figures, its bars, and what is known of the token under the cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.cells import cell_len
from textual.app import RenderResult
from textual.containers import Horizontal
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget

from lens_tui.records import Candidate, Token
from lens_tui.records.run import kl_level, pieces
from lens_tui.tui.chat_text import OPEN, Thinking, folded, opens_thinking, thinking_in
from lens_tui.tui.format import figure, fit, kl_key, nats
from lens_tui.tui.lane_text import PEAKS, amount_text, candidate_row, quoted, stats
from lens_tui.tui.run_text import ArmText, RunText
from lens_tui.tui.token_shades import Measure, MonitorLine, candidates, token_levels

from .frame import Pane
from .lane_foot import LaneFeatures, SeriesStrip
from .token_layout import ShadeMode
from .token_view import TokenView

Value = TypeVar("Value")
N_CANDIDATES = 5
FACTS = 0.2
"""Seconds between two updates of a lane's figures while it is written."""


class Line(Widget):
    """One row of :class:`Content`, cut with an ellipsis."""

    DEFAULT_CSS = "Line { height: 1; }"

    content: reactive[Content] = reactive(Content(""))

    def render(self) -> RenderResult:
        """The content in the width there is."""
        return self.content.truncate(max(0, self.size.width), ellipsis=True)


class Candidates(Widget):
    """The token of one step, and the likeliest tokens of that step with their probabilities."""

    DEFAULT_CSS = f"Candidates {{ height: {N_CANDIDATES + 2}; display: none; }}"

    step: reactive[tuple[Token | None, tuple[Candidate, ...]]] = reactive((None, ()))
    read: reactive[tuple[str, ...]] = reactive((), layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """With monitors a row more for each of them."""
        return N_CANDIDATES + 2 + len(self.read)

    def render(self) -> RenderResult:
        """The token and its KL, both models' log-probability, then a row for each candidate of the arm's own model."""
        token, others = self.step
        width = self.size.width
        if token is None:
            return Content.styled("this arm wrote no token here", "$muted").truncate(width, ellipsis=True)
        steered = token.arm > 0
        kl = f"  KL {nats(token.kl)} nat" if steered and token.kl is not None else ""
        plain = f", plain {token.plain_logprob:.2f}" if steered and token.plain_logprob is not None else ""
        head = Content.assemble((f"{token.index} ", "$muted"), (quoted(token.token), "bold"), (kl, "$muted"))
        logp = Content.styled(f"logp {token.logprob:.2f}{' own' if steered else ''}{plain}", "$muted")
        said = [Content.styled(line, "$accent" if " > " in line else "$muted") for line in self.read]
        rows = [row.truncate(width, ellipsis=True) for row in (head, logp, *said)]
        rows += [candidate_row(item, width, item.token_id == token.token_id) for item in others[:N_CANDIDATES]]
        return Content("\n").join(rows)


class Lane(Pane):
    """A lane. ``number`` is the arm's place on the bench, 0 for the baseline.

    Of its head the scale as a multiple of the feature's maximum gives way first, then the name, then the rest of
    ``does``, what is done to the arm, and that before ``away``: how many lanes
    are out of sight on its left and on its right.
    """

    keeps_note, spare = True, PEAKS
    DEFAULT_CSS = """
    Lane { width: 1fr; height: 1fr; }
    Lane > PaneTitle, Lane > Line, Lane > SeriesStrip, Lane > Candidates { padding: 0 0 0 1; }
    Lane > TokenView { margin: 1 0; }
    Lane.-read > Candidates { height: auto; }
    Lane.-inspecting > Candidates, Lane.-features > LaneFeatures { display: block; }
    """

    measure: reactive[Measure] = reactive[Measure]("surprise", init=False)
    shade: reactive[ShadeMode] = reactive[ShadeMode]("tint", init=False)
    does: reactive[str] = reactive("", init=False)
    unfolded: reactive[bool] = reactive(False, init=False)
    ends: reactive[bool] = reactive(False, init=False)
    away: reactive[tuple[int, int]] = reactive((0, 0), init=False)

    @dataclass
    class Focused(Message):
        """The lane was entered, by key or mouse."""

        lane: Lane

    def __init__(self, number: int, name: str, empty: str) -> None:
        self.stats = Line()
        self.view = TokenView(empty=empty)
        self.strip = SeriesStrip()
        self.foot = Line()
        self.inspector = Candidates()
        self.features = LaneFeatures()
        super().__init__(name, self.stats, self.view, self.features, self.strip, self.foot, self.inspector)
        self.number, self._empty = number, empty
        self.text: ArmText | None = None
        self._run: RunText | None = None
        self._in_view = 0
        self._in_strip = 0
        self._step: int | None = None
        self._folded: Thinking | None = None
        self._facts_due: Timer | None = None
        self._waits = False
        self._heard: tuple[MonitorLine, ...] = ()
        self._by: MonitorLine | None = None

    def on_mount(self) -> None:
        """Nothing has run, or it was shown before the lane was there."""
        if self.text is None:
            self._configure_strip()

    def on_resize(self) -> None:
        """Other facts fit."""
        self._show_facts()

    def on_descendant_focus(self) -> None:
        """Tell the screen which lane is meant."""
        self.post_message(self.Focused(self))

    def watch_does(self) -> None:
        """Something else is done to it."""
        self._show_head()

    def watch_away(self) -> None:
        """Other lanes are out of sight."""
        self._show_head()

    def _show_head(self) -> None:
        left, right = self.away
        self.edges = (f"◂{left}" if left else "", f"{right}▸" if right else "")
        self.note = self.does

    # -- following a run ---------------------------------------------------------------------------

    def follow(self, run: RunText | None, text: ArmText | None) -> None:
        """Show an arm of a run from its beginning, or nothing."""
        self._run, self.text, self._in_view, self._in_strip = run, text, 0, 0
        self._folded = None
        self._heard, self._by = (), None
        self.view.empty = self._empty if text is None else ""  # what was asked for has facts that say how far it is
        self.view.streaming = bool(text and run and run.going and not text.reason)
        self.view.set_tokens([])
        self.inspect(None)
        self._configure_strip()
        self._show_facts()
        self.sync()

    def flip(self, run: RunText) -> None:
        """Show the baseline's text of a run in this lane's place, or its own again."""
        steered = run.arm_of(self.number)
        flipped = self.text is not None and self.text is not run.baseline
        self.follow(run, run.baseline if flipped else steered)
        self.title = "baseline, in place" if flipped or steered is None else steered.arm.name

    def sync(self) -> None:
        """Show what has come since the last time."""
        run, text = self._run, self.text
        if run is None or text is None:
            self._show_facts()
            return
        self._append(run, text)
        ended = bool(text.reason) or not run.going
        if ended and self.view.streaming:
            self.view.streaming = False
            if self.measure == "diff":
                self.shade_again()
        parted = text.parted if text.parted is not None and text.parted < len(text.tokens) else None
        self.view.mark = None if parted is None else self._seen(parted)
        if ended or (text.tokens and self._waits):  # its first token is said at once
            self._show_facts()
        elif self._facts_due is None:
            self._facts_due = self.set_timer(FACTS, self._show_facts)

    def watch_measure(self) -> None:
        """Shade by something else; a monitor has the bars too."""
        self.shade_again()
        self._in_strip = 0
        self._configure_strip()
        self._show_strip()
        self._show_foot()

    def hear(self, lines: tuple[MonitorLine, ...], at: int) -> None:
        """Take what monitors have read so far; number ``at`` is the one that shades and has the bars."""
        by = lines[at % len(lines)] if lines else None
        if lines == self._heard and by is self._by:
            return
        self._heard, self._by = lines, by
        self.set_class(bool(lines), "-read")
        if self.text is not None:
            self.text.read = [by.shade(value) for value in by.values] if by is not None else []
        if self.measure == "monitor":
            self.shade_again()
            self._show_strip()
        self._show_read()

    def _show_read(self) -> None:
        """What was read of the token that is explained."""
        step = self._step
        self.inspector.read = () if step is None else tuple(line.at(step) for line in self._heard)
        self._show_foot()

    def watch_shade(self, shade: ShadeMode) -> None:
        """Show levels another way."""
        self.view.mode = shade

    def shade_again(self) -> None:
        """The levels of all tokens anew."""
        if self.text is not None and self._run is not None:
            self.view.set_levels(self._unfolded(token_levels(self.text, self.measure, self._run.baseline), 0))

    def _configure_strip(self) -> None:
        key = ("", "") if self._steered else (f"KL to plain: {kl_key()}", kl_key())
        self.strip.configure("KL", kl_level, *key)

    @property
    def _steered(self) -> bool:
        """Whether what it shows is an arm's: the baseline may be shown in an arm's place."""
        return bool(self.number if self.text is None else self.text.number)

    def _series(self, tokens: Sequence[Token]) -> list[float]:
        return [token.kl for token in tokens if token.kl is not None] if self._steered else []

    def _mean(self) -> str:
        mean = self.text.mean_kl if self.text is not None else None
        return "" if mean is None else f"{nats(mean)} nat"

    # -- facts -------------------------------------------------------------------------------------

    def _show_facts(self) -> None:
        """Counts, means and the strip: numbers that change thirty times a second cannot be read."""
        if self._facts_due is not None:
            self._facts_due.stop()
            self._facts_due = None
        text, run = self.text, self._run
        if text is not None:
            self._show_strip()
        if text is None or run is None or not (text.tokens or text.reason):
            self._waits = run is not None and run.going
            self.stats.content = Content.styled("waiting" if self._waits else "", "$muted")
            self.foot.content = Content("")
            return
        self._waits = False
        self.stats.content = Content.styled(stats(text, run.sampling.max_tokens, self.size.width - 1), "$muted")
        self._show_foot()

    def _show_strip(self) -> None:
        """The bars: KL token by token, or what the monitor that shades has read."""
        if self.text is None:
            return
        if self.measure != "monitor":
            self.strip.extend(self._series(self.text.tokens[self._in_strip : self._in_view]), self._mean())
            self._in_strip = self._in_view
        elif self._by is not None:
            known = self._by.known
            self.strip.configure(fit(self._by.name, min(12, len(self._by.name))), self._by.bar, self._by.key)
            self.strip.extend(known, figure(sum(known) / len(known), 2) if known else "")

    def _show_foot(self) -> None:
        if self.text is not None and (self.text.tokens or self.text.reason):
            facts = self._foot_facts(self.text)
            while len(facts) > 1 and cell_len(" · ".join(facts)) > self.size.width - 1:
                facts.pop()  # whole facts, not the beginnings of words
            self.foot.content = Content.styled(" · ".join(facts), "$muted")

    def _foot_facts(self, text: ArmText) -> list[str]:
        facts = [self._by.above] if self.measure == "monitor" and self._by is not None else []
        if text.parted is not None:
            word = quoted(text.tokens[text.parted].token) if text.parted < len(text.tokens) else "its end"
            explained = self._step is not None and self._step > text.parted
            facts.append(f"{'other text since' if explained else 'parts at'} {text.parted} {word}")
        elif self._steered and text.reason and text.tokens:
            facts.append("same text as the baseline")
        if text.dials:
            index, items = text.dials[-1]
            facts.append(f"{', '.join(map(amount_text, items)) or 'off'} from {index}")
        facts += {"stop": ["ended"], "length": ["full length"], "stopped": ["stopped"]}.get(text.reason, [])
        return facts

    @property
    def step(self) -> int | None:
        """The token that is explained, if one is."""
        return self._step

    def inspect(self, index: int | None) -> None:
        """Explain the token of one step, or close the explanation."""
        self.set_class(index is not None, "-inspecting")
        self.features.close = index is not None
        if index is not None:
            self.inspector.step = candidates(self.text, index)
        self._step = index
        self._show_read()
        here = index is not None and self.text is not None and index < self._in_view
        seen = self._seen(index) if here and index is not None else None
        if self.view.cursor != seen:
            self.view.move_to(seen)

    # -- thinking ----------------------------------------------------------------------------------

    def watch_ends(self) -> None:
        """The tokens that end texts show as they are, or as a sign."""
        self._show_anew()

    def watch_unfolded(self) -> None:
        """The thinking is opened, or folded into a line."""
        self._show_anew()

    def _show_anew(self) -> None:
        step = self._step
        self.follow(self._run, self.text)
        if step is not None:
            self.inspect(step)

    def _append(self, run: RunText, text: ArmText) -> None:
        """Show the tokens that came; those of the thinking as one, unless it is open."""
        now = self._folded
        if not self.unfolded and (now is None or not now.ended) and self._thinks(run, text):
            now = thinking_in(text.pieces, opens_thinking(run))
        if now is not None and now != self._folded and (self._folded is None or now.ended):
            self._in_view = 0
            self.view.set_tokens([])
        self._folded = now
        start = self._in_view
        ended = text.reason or ("" if run.going else run.state)
        new = pieces(text.tokens[start:], ended, ends=self.ends)
        count, shown = len(new), self._unfolded(new, start)
        if now is not None and start <= now.start < start + count:
            shown[now.start - start] = folded(now)
        levels = token_levels(text, self.measure, run.baseline, start)[:count]
        self.view.append(shown, self._unfolded(levels, start))
        self._in_view = start + count

    @staticmethod
    def _thinks(run: RunText, text: ArmText) -> bool:
        """Whether a text begins by thinking."""
        return "".join(pieces(text.tokens[:16], text.reason)[:8]).lstrip().startswith(OPEN) or opens_thinking(run)

    def _unfolded(self, values: Sequence[Value], start: int) -> list[Value]:
        """Of values a token from ``start`` on, those of the tokens that show: of the thinking its first one."""
        hidden = range(0) if self._folded is None else range(self._folded.start + 1, self._folded.stop)
        return [value for step, value in enumerate(values, start) if step not in hidden]

    def _seen(self, step: int) -> int:
        """The place in the view of a token: of a folded one, that of the line it is folded into."""
        if self._folded is None or step <= self._folded.start:
            return step
        return max(self._folded.start, step - max(0, self._folded.stop - self._folded.start - 1))

    def _step_at(self, place: int) -> int:
        if self._folded is None or place <= self._folded.start:
            return place
        return place + max(0, self._folded.stop - self._folded.start - 1)

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        """Say which token it is, where the view shows fewer.

        News that the next key has overtaken ends here: the screen would put the cursor back, which is news again, and
        the two places would change for ever.
        """
        if event.index != event.view.cursor:
            event.stop()
            return
        event.index = None if event.index is None else self._step_at(event.index)


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
        self._chosen = False
        self._settling = False
        self.aside = False
        """Whether the focus goes to another pane: lanes that come then, early or late, do not take it back."""

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
            # Nobody chose the baseline: keys act on the first arm, on which they have something to act.
            self.position = numbers.index(kept) if self._chosen or len(numbers) == 1 else 1
            self._show()
            if had_focus and not self.aside:
                self.focus_lane()
            if not self._chosen:  # a lane that was only now mounted takes no focus yet
                self._settling = True
                self.call_after_refresh(self._settled, had_focus)
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
        self._chosen = self._chosen or step != 0
        self._show()
        self.lanes[self.position].view.focus()

    def on_lane_focused(self, event: Lane.Focused) -> None:
        """The focus came by another way."""
        if event.lane in self.lanes and not self._settling:  # else of a focus from before the lanes changed
            place = self.lanes.index(event.lane)
            self._chosen = self._chosen or place != self.position
            self.position = place

    def _settled(self, had_focus: bool) -> None:
        """The lanes that were added are there."""
        self._settling = False
        if (had_focus and not self.aside) or any(lane.has_focus_within for lane in self.lanes):
            self.focus_lane()

    def inspect(self, index: int | None) -> None:
        """Explain the token of one step in every lane, or close the explanations."""
        for lane in self.lanes:
            lane.inspect(index)

    def focus_arm(self, number: int) -> None:
        """Focus the lane of the arm of that number, if there is one."""
        place = next((at for at, lane in enumerate(self.lanes) if lane.number == number), None)
        if place is not None:
            self.focus_lane(place - self.position)

    def on_resize(self) -> None:
        """More or fewer lanes fit."""
        self._show()

    def _show(self) -> None:
        self._start, visible_lanes = window(len(self.lanes), self.position, room_for(self.size.width), self._start)
        for place, lane in enumerate(self.lanes):
            lane.set_class(place not in visible_lanes, "-away")
            lane.set_class(len(visible_lanes) < len(self.lanes), "-paged")
        for before, place in zip([-1, *visible_lanes], visible_lanes, strict=False):
            last = place == visible_lanes[-1]  # what is between two lanes that show is said by the second of them
            self.lanes[place].away = (place - before - 1, len(self.lanes) - 1 - place if last else 0)
