"""The lanes of Generate: which there are, what each shows of the run that is looked at, and how it is shaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.content import Content

from lens_tui.records.sanitise import one_line
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import fit
from lens_tui.tui.session import RunText, lane_names, plan, summary
from lens_tui.tui.set_text import SetText, bare_name
from lens_tui.tui.token_shades import MEASURES, Measure
from lens_tui.tui.widgets.frame import Hairline, LensScreen, takes_text
from lens_tui.tui.widgets.lane import Lane, LaneRow, Line, strength
from lens_tui.tui.widgets.measures_table import MeasuresTable
from lens_tui.tui.widgets.token_view import TokenView

from .chat_pane import ChatPane
from .generate_features import FeatureFollower
from .generate_monitors import MonitorFollower
from .set_pane import SetPane

if TYPE_CHECKING:
    from lens_tui.tui.widgets.prompt_area import PromptArea

EMPTY = "nothing yet"


class GenerateLanes(LensScreen):
    """Prompt, settings, lanes, and the run or the set that they show. What is done to them is in its subclasses."""

    mode: ClassVar[str] = "generate"
    AUTO_FOCUS = ""  # None would mean the app's, which is the first widget: the prompt
    BINDINGS = bindings("generate")
    measure: Measure = "surprise"

    def __init__(self) -> None:
        super().__init__()
        self.talk = ChatPane(id="talk")
        self.lanes = LaneRow(id="lanes")
        self.measures = MeasuresTable(id="measures")
        self.run: RunText | None = None
        self.history: list[RunText] = []
        self._stale = False
        self._due = False
        self.table: SetPane | None = None
        self.set: SetText | None = None
        self._sets: list[SetText] = []
        self.features = FeatureFollower(self.lanes)
        self.monitors = MonitorFollower(self.lanes)

    def body(self) -> ComposeResult:
        """Prompt, settings, lanes."""
        yield self.talk
        yield Line(id="settings")
        yield Hairline()
        yield self.lanes
        yield self.measures
        yield Hairline(id="set-rule")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)

    @property
    def prompt(self) -> PromptArea | None:
        """Where the prompt is written, once it is there."""
        return self.talk.area

    def focus_first(self) -> None:
        """The screen begins in its lanes, not in the prompt: letters are keys here."""
        self.call_after_refresh(self.lanes.focus_lane)

    def _tint_changed(self, tint: str) -> None:
        for lane in self.lanes.lanes:
            lane.shade = tint  # type: ignore[assignment]

    # -- what the lanes show -----------------------------------------------------------------------

    def _arrange(self) -> None:
        run = self.run if self.set is not None else None
        names = list(lane_names(self.session))
        if run is not None:
            amounts = [strength(arm.interventions).partition(" · ")[0] for arm in run.arms]
            pairs = zip(run.arms, amounts, strict=True)
            names = [(arm.number, bare_name(arm.arm.name, amount)) for arm, amount in pairs]
        self.lanes.set_lanes(names, self.measure, self.lens.tint, f"{EMPTY}: {self.lens.key_text('app.run')} runs it")
        for lane in self.lanes.lanes:
            lane.ends = self.talk.template
            # A new lane, or one whose arm is another one's since, in either way.
            shown = lane.text is not None and lane.text.number == lane.number
            wanted = self.run.arm_now(lane.number, self.session) is not None if self.run is not None else False
            if self.run is not None and shown != wanted and not (lane.number and lane.text is self.run.baseline):
                self._follow(lane)

    def _headings(self) -> None:
        """What is done in each lane, what it was when it ran, and whether the shown run is this session's."""
        run, stale = self.run, False
        arms = dict(plan(self.session)) if self.session.steers else {}
        if self.set is not None and run is not None:  # its lanes are what they were, whatever the bench says now
            arms = {arm.number: arm.arm for arm in run.arms}
        for lane in self.lanes.lanes:
            now = strength(arms[lane.number].interventions) if lane.number in arms else ""
            text = run.arm_now(lane.number, self.session) if run is not None else None
            ran = strength(text.interventions) if text is not None else now
            in_place = bool(lane.number and lane.text is not None and not lane.text.number)
            lane.does = "" if in_place else now if now == ran else f"{ran.partition(' · ')[0]} → {now}"
            stale = stale or now != ran or (run is not None and text is None)
        if run is not None and self.set is None:
            stale = stale or run.question != self.session.question or run.sampling != self.session.sampling
            stale = stale or len(run.arms) != max(1, len(arms)) or run.monitors != self.session.monitors
        self._stale = stale
        self._show_settings()

    def _show_settings(self) -> None:
        if self.set is not None and self.run is not None and self.table is not None:
            place = self.table.table.row or (0, 0)
            prompt = f"prompt {place[0] + 1} of {len(self.set.prompts)} “{one_line(self.run.prompt)}”"
            facts = f" · {summary(self.run.sampling)}"
            room = max(8, self.size.width - 2 - cell_len(facts))
            self.query_one("#settings", Line).content = Content.assemble(fit(prompt, room).rstrip(), (facts, "$muted"))
            return
        shade = self.monitors.name(self.lens, self.run) if self.measure == "monitor" else ""
        parts = self.features.settings(self.lens, self.run, len(self.history), self._stale, self.measure, shade)
        self.query_one("#settings", Line).content = Content.assemble(*parts)

    def _sync(self) -> None:
        self._due = False
        if not self.is_running:
            return
        for lane in self.lanes.lanes:
            lane.sync()
        self.monitors.show(self.run)
        if self.set is not None and self.table is not None:
            self.table.sync()

    def _show_run(self, run: RunText | None) -> None:
        self.run = run
        self._arrange()
        for lane in self.lanes.lanes:
            self._follow(lane)
        self.measures.show(run if self.set is None else None)
        self.monitors.show(run)
        self._headings()
        self.features.follow(self.lens, run)

    def _follow(self, lane: Lane) -> None:
        lane.follow(self.run, self.run.arm_now(lane.number, self.session) if self.run is not None else None)

    def _close_set(self) -> None:
        if self.set is not None:
            self.set = None
            self.run = None
            self.set_class(False, "-set")

    def on_lane_focused(self) -> None:
        """The table marks the column of the lane."""
        self._mark_arm()

    def _mark_arm(self) -> None:
        lane = self.lanes.focused_lane
        if self.table is not None and self.set is not None and lane is not None:
            self.table.arm = lane.number
            self.table.sync()

    # -- the token under the cursor --------------------------------------------------------------------

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        """Explain the same step in every lane."""
        if not event.view.has_focus:
            return
        for lane in self.lanes.lanes:
            lane.inspect(event.index)
        self.features.show(self.lens, self.run)

    def on_key(self, event: events.Key) -> None:
        """Escape closes the explanation first, then the set."""
        if event.key == "escape" and any(lane.view.cursor is not None for lane in self.lanes.lanes):
            for lane in self.lanes.lanes:
                lane.inspect(None)
            self.features.show(self.lens, self.run)
            event.stop()
            event.prevent_default()
        elif event.key == "escape" and self.set is not None and not takes_text(self.focused):
            self._close_set()
            self._show_run(self.history[-1] if self.history else None)
            self.lanes.focus_lane()
            event.stop()
            event.prevent_default()

    # -- actions: looking ----------------------------------------------------------------------------------

    def action_lane(self, step: int) -> None:
        """The lane before or after."""
        self.lanes.focus_lane(step)
        self._mark_arm()

    def action_flip(self) -> None:
        """Baseline and steered text in the same place."""
        lane = self.lanes.focused_lane
        if lane is None or self.run is None:
            self.lens.say("Nothing has run yet.")
            return
        if lane.number == 0:
            self.lens.say("This is the baseline: on a steered lane it is shown in that lane's place.")
            return
        steered = self.run.arm_of(lane.number)
        flipped = lane.text is not None and lane.text is not self.run.baseline
        lane.follow(self.run, self.run.baseline if flipped else steered)
        lane.title = "baseline, in place" if flipped or steered is None else steered.arm.name
        self._headings()

    def action_measure(self, name: str = "") -> None:
        """What the shade says: surprise, KL, what is not in the baseline, and what each monitor reads."""
        watched = self.session.monitors if self.run is None else self.run.monitors
        wheel = [
            *((measure, self.monitors.at) for measure in MEASURES),
            *(("monitor", at) for at in range(len(watched))),
        ]
        here = (self.measure, self.monitors.at)
        place = wheel.index(here) if here in wheel else -1
        following, at = wheel[(place + 1) % len(wheel)]
        wanted = following if not name else "surprise" if self.measure == name else name
        self.measure = wanted  # type: ignore[assignment]
        self.monitors.at = at if not name else self.monitors.at
        self.monitors.show(self.run)
        for lane in self.lanes.lanes:
            lane.measure = self.measure
        self._show_settings()

    def action_features(self) -> None:
        """List the features of what the arms write under each lane, or no more."""
        self.features.toggle(self.lens, self.run)
        if not self.features.on and self.measure == "feature":
            self.action_measure("surprise")

    def action_monitor(self) -> None:
        """Choose what reads every token."""
        self.monitors.ask(self.lens, self._shade_by_monitor)

    def _shade_by_monitor(self, at: int) -> None:
        self.monitors.at = at
        self.measure = "surprise"  # asked for again, the monitor would be let go
        self.action_measure("monitor")

    def action_feature(self, step: int) -> None:
        """Shade the lanes by the next of the features listed, or the one before."""
        if self.features.pick(self.lens, self.run, step):
            self._shade_by_feature()

    def _shade_by_feature(self) -> None:
        self.measure = "surprise"  # asked for again, the feature would be let go
        self.action_measure("feature")

    def action_find(self) -> None:
        """Type the number of a feature to shade the lanes by."""
        self.features.ask(self.lens, self.run, self._shade_by_feature)

    def action_dense(self) -> None:
        """Leave dense features out of the lists, or show them."""
        self.features.toggle_dense(self.lens, self.run)
