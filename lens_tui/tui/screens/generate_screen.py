"""Generate: prompt, settings, lanes; the run or the set of runs that they show, and what is asked for there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.timer import Timer

from lens_tui.records.interventions import BenchRow
from lens_tui.tui.bindings import bindings
from lens_tui.tui.lane_text import strength
from lens_tui.tui.run_text import RunText
from lens_tui.tui.session import Session, lane_names, plan
from lens_tui.tui.set_text import SetText, bare_name
from lens_tui.tui.token_shades import Measure
from lens_tui.tui.widgets.frame import Hairline, LensScreen, takes_text
from lens_tui.tui.widgets.lane import Lane, LaneRow
from lens_tui.tui.widgets.lane_foot import MeasuresTable
from lens_tui.tui.widgets.token_view import TokenView
from lens_tui.worker.events import ArmDone, DialRefused, Event, JobDone, JobFailed, RunStarted, SetCellDone, SetStarted

from .chat_pane import ChatPane
from .generate_features import Changes, FeatureFollower
from .monitors import MonitorFollower, ask_gate
from .run_settings import (
    SettingsLine,
    add_arm,
    ask_sampling,
    delete_arm,
    from_to,
    move_scale,
    next_place,
    no_rows,
    zero_scale,
)
from .set_pane import PromptSets, SetPane

if TYPE_CHECKING:
    from lens_tui.tui.widgets.prompt_area import PromptArea

EMPTY = "nothing yet"
REST = 0.3
"""Seconds of rest after a change of scale before the run is made again."""


class GenerateScreen(LensScreen):
    """Prompt, settings, lanes, and the run or the set that they show. The bench says which lanes there are."""

    CSS_PATH = "generate_screen.tcss"
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
        self.sets = PromptSets(lambda: self.set, self.show_set, self._take_set)
        self.features = FeatureFollower(self.lanes)
        self.monitors = MonitorFollower(self.lanes)
        self._job: int | None = None
        self._rest: Timer | None = None

    def body(self) -> ComposeResult:
        """Prompt, settings, lanes."""
        yield self.talk
        yield SettingsLine(id="settings")
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
            lane.does = "" if in_place else from_to(ran, now)
            stale = stale or now != ran or (run is not None and text is None)
        if run is not None and self.set is None:
            stale = stale or run.question != self.session.question or run.sampling != self.session.sampling
            stale = stale or len(run.arms) != max(1, len(arms)) or run.monitors != self.session.monitors
        self._stale = stale
        self._show_settings()

    def _show_settings(self) -> None:
        if self.set is not None and self.run is not None and self.table is not None:
            line = self.table.settings(self.set, self.run, self.size.width - 2)
            self.query_one(SettingsLine).of_set(line)
            return
        shade = self.monitors.name(self.lens, self.run) if self.measure == "monitor" else ""
        parts = self.features.settings(self.lens, self.run, len(self.history), self._stale, self.measure, shade)
        self.query_one(SettingsLine).of_run(parts)

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
            self.lanes.aside = False
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
        self.lanes.inspect(event.index)
        self.features.show(self.lens, self.run)

    def on_key(self, event: events.Key) -> None:
        """Escape closes the explanation first, then the set."""
        if event.key == "escape" and any(lane.view.cursor is not None for lane in self.lanes.lanes):
            self.lanes.inspect(None)
            self.features.show(self.lens, self.run)
            event.stop()
            event.prevent_default()
        elif event.key == "escape" and self.set is not None and not takes_text(self.focused):
            self.show_set(None)
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
        if lane.number:
            lane.flip(self.run)
            self._headings()
        else:
            self.lens.say("This is the baseline: on a steered lane it is shown in that lane's place.")

    def action_measure(self, name: str = "") -> None:
        """What the shade says: surprise, KL, what is not in the baseline, and what each monitor reads."""
        watched = self.session.monitors if self.run is None else self.run.monitors
        following, at = self.monitors.turned(self.measure, len(watched))
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

    def session_changed(self, old: Session, new: Session) -> None:
        """Prompt, settings and lanes follow the session; a change of scale reaches what is running."""
        self.talk.follow(old, new)
        if old.model != new.model and self.run is not None and old.model is not None:
            self._close_set()
            self._show_run(None)
        elif old.turns != new.turns and self.set is None:  # elsewhere in the conversation: what was answered there
            asked = (run for run in reversed(self.history) if run.question == new.question)
            self._show_run(next(asked, None))
        self._arrange()
        if old.steers != new.steers:
            self._after_edit(old, new)
        if old.monitors != new.monitors:
            self._after_monitors()
        self._headings()

    def _after_edit(self, old: Session, new: Session) -> None:
        """Hand a change to the run that is going, or make the run again after a rest."""
        run = self.run
        before, after = dict(plan(old)), dict(plan(new))
        if run is None or self.set is not None or before.keys() != after.keys():
            return
        changed = [number for number, arm in after.items() if arm.interventions != before[number].interventions]
        if run.going and self._job is not None:
            for number in changed:
                index = run.index_of(number)
                if index is not None and run.arm_now(number, new) is not None:
                    self.lens.worker.dial(self._job, index, after[number].interventions)
        elif changed and self.is_current:
            self._run_after_rest()

    def _after_monitors(self) -> None:
        """Make the run that shows again, so that it is read by what reads now."""
        if self.run is not None and self.run.going:
            self.lens.say(f"They read the next run: {self.lens.key_text('app.run')} runs it.")
        elif self.run is not None and self.set is None and self.is_current:
            self._run_after_rest()

    def _run_after_rest(self) -> None:
        if self._rest is not None:
            self._rest.stop()
        self._rest = self.set_timer(REST, self.start_run)

    # -- running -------------------------------------------------------------------------------------

    def on_run_wanted(self) -> None:
        """The key for it was pressed, here or on another screen."""
        self.start_run()

    def start_run(self) -> None:
        """Run the session: every arm from the start. A run in progress is stopped."""
        if self._rest is not None:
            self._rest.stop()
            self._rest = None
        if not self.talk.is_ready():
            return
        self._close_set()
        if self.run is not None and self.run.going:
            self.run.state = "stopped"
        self._send(RunText.begin(len(self.history) + 1, self.session))

    def _send(self, run: RunText, changes: Changes = ()) -> None:
        """Have a run made, and show it."""
        self.history.append(run)
        job = self.features.job(self.lens, run, changes)
        run.job = self._job = self.lens.submit(job, "run", lambda event: self._take(run, event))
        self._show_run(run)

    def _repeat(self, run: RunText, old: RunText) -> None:
        """Make a run again as it was, changes of scale included, and say whether it has the same tokens."""
        from lens_tui.tasks.replay import changes_of

        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        run.number, run.model = len(self.history) + 1, self.session.model.name
        self._send(run, tuple((arm, index, items) for (arm, index), items in changes_of(old.record()).items()))

    def _take(self, run: RunText, event: Event) -> None:
        if self.features.take(self.lens, run, event):
            return
        run.apply(event)
        if isinstance(event, RunStarted):
            self.talk.check_start(run)
        if isinstance(event, JobDone) and run.again is not None:
            from .history_screen import say_same_or_not

            say_same_or_not(self.lens, run, run.again)
        if isinstance(event, DialRefused):
            refused = f"{run.arms[event.arm].arm.name} continues as it was. {event.message} {event.hint}".strip()
            self.lens.say(refused)
            self.lens.remark(refused)
        if isinstance(event, ArmDone) and run is self.run:
            self.measures.show(run)
        if isinstance(event, JobDone | JobFailed):
            self._job = None
            self._headings()
            if run is self.run:
                self.lens.store.update(written=run.written())
                self.features.follow(self.lens, run)
        if run is self.run:
            self._sync_soon()

    def _sync_soon(self) -> None:
        """Show what has come, once for all events of a drain."""
        if not self._due:
            self._due = True
            self.call_next(self._sync)

    def on_prompt_area_run_asked(self, event: PromptArea.RunAsked) -> None:
        """Enter in the prompt."""
        self.lens.store.update(prompt=event.prompt)
        if event.prompt:  # one that is empty is asked for: what is typed next belongs in it
            self.lanes.focus_lane()
        self.lens.action_run()

    def on_prompt_area_left(self, event: PromptArea.Left) -> None:
        """The prompt was left: it is the session's now."""
        self.lens.store.update(prompt=event.prompt)
        if self.focused is None:
            self.lanes.focus_lane()

    # -- sets of prompts

    def action_prompt_set(self) -> None:
        """Ask for a set, and run it."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        self.talk.keep()
        acting = self._acting()
        self.sets.ask(self.lens, acting[0] if len(acting) == 1 else None)

    def show_set(self, shown: SetText | None) -> None:
        """Show a set: its table, and the lanes of its first prompt; without one, the last run."""
        if shown is None:
            self._close_set()
            self._show_run(self.history[-1] if self.history else None)
            self.lanes.focus_lane()
            return
        if self.table is None:
            self.table = SetPane(id="set")
            self.query_one("#body").mount(self.table)
        self.set = shown
        self.lanes.aside = True
        self.set_class(True, "-set")
        self.run = None
        self.measures.show(None)
        self.table.show(shown)
        self._mark_arm()
        self.call_after_refresh(self.table.table.focus)

    def _take_set(self, made: SetText, cell: tuple[int, int] | None, event: Event) -> None:
        if made is not self.set or self.table is None:
            return
        if isinstance(event, SetStarted):
            self.table.sync()
        run = made.runs.get(cell) if cell is not None else None
        if isinstance(event, SetCellDone) and run is not None and run is self.run:
            for lane in self.lanes.lanes:
                if lane.number == event.cell.arm:
                    lane.follow(run, run.arm_of(lane.number))
            self.features.follow(self.lens, run)
        self._sync_soon()

    def on_set_pane_turned(self, event: SetPane.Turned) -> None:
        """Another prompt: the lanes show what was written on it."""
        if self.set is not None and (run := self.set.runs.get(event.row)) is not None and run is not self.run:
            self._show_run(run)

    def action_page(self, step: int) -> None:
        """The lanes of the set's next prompt; without one, the next token where the shaded feature is active."""
        if self.set is None or self.table is None:
            self.features.go_on(self.lens, self.run, step)
        else:
            self.table.table.action_page(step)

    # -- the arm in the focused lane ------------------------------------------------------------------

    def _rows(self) -> list[BenchRow]:
        """The rows of the bench that act in the focused lane; says so if there are none."""
        rows = [] if self.set is not None else self._acting()
        if not rows:
            self.lens.say(no_rows(self.lens, of_set=self.set is not None))
        return rows

    def _acting(self) -> list[BenchRow]:
        lane = self.lanes.focused_lane
        return [row for row in self.session.steers if lane is not None and row.arm == lane.number and row.enabled]

    def action_positions(self) -> None:
        """The next positions for what steers the focused lane."""
        if rows := self._rows():
            next_place(self.lens, rows)

    def action_gate(self) -> None:
        """Choose what lets the focused lane's rows act."""
        if rows := self._rows():
            ask_gate(self.lens, rows)

    def action_scale(self, steps: int) -> None:
        """Scale of the focused lane, by steps; live while it is written, else it runs again after a rest."""
        if rows := self._rows():
            move_scale(self.lens, rows, steps)

    def action_zero(self) -> None:
        """Scale zero in the focused lane."""
        if rows := self._rows():
            zero_scale(self.lens, rows)

    def action_add_arm(self) -> None:
        """A new lane like the focused one, half as strong again."""
        if (rows := self._rows()) and (added := add_arm(self.lens, rows)) is not None:
            self.lanes.focus_arm(added)  # the next one added is higher again

    def action_delete_arm(self) -> None:
        """Take the focused lane's rows off the bench; undo brings them back."""
        if rows := self._rows():
            delete_arm(self.lens, rows)

    # -- the prompt

    def action_prompt(self) -> None:
        """Write the prompt."""
        self.talk.focus_area()

    def paste(self, text: str) -> None:
        """A paste among the lanes goes into the prompt, which is then being written."""
        self.talk.paste(text)

    def action_go_on(self) -> None:
        """Go on with the answer in the focused lane."""
        lane = self.lanes.focused_lane
        self.talk.go_on(self.run if self.set is None else None, lane.text if lane is not None else None)

    def action_chat(self) -> None:
        """Prompts are turns of a chat, or not."""
        self.talk.switch()

    def action_talk(self) -> None:
        """The system prompt, and a new conversation."""
        self.talk.edit()

    def action_template(self) -> None:
        """The prompt token by token."""
        self.talk.toggle_template()
        for lane in self.lanes.lanes:
            lane.ends = self.talk.template

    def action_thinking(self) -> None:
        """Open or fold what was thought."""
        unfolded = self.talk.fold()
        self.lens.say(f"What was thought {'shows in full' if unfolded else 'is folded into a line'}.")
        for lane in self.lanes.lanes:
            lane.unfolded = unfolded

    # -- runs, past and next

    def action_sampling(self) -> None:
        """The sampling form."""
        ask_sampling(self.lens)

    def action_history(self) -> None:
        """The runs of this session, and those kept on disk."""
        from lens_tui.tui.screens.history_screen import HistoryScreen

        self.app.push_screen(HistoryScreen(self.history, self.lens.history, self.sets.all), self._restore)

    def _restore(self, run: RunText | SetText | None) -> None:
        if isinstance(run, SetText):
            self.show_set(run)
        elif run is not None and run.again is not None and run.state == "waiting":
            self._restore(run.again)
            self._repeat(run, run.again)
            return
        if run is None or isinstance(run, SetText):
            return
        self._close_set()
        model, changes = self.session.model, self.talk.asked(run)
        changes |= {"sampling": run.sampling, "written": run.written(), "monitors": run.monitors}
        if run not in self.history:
            run.number = len(self.history) + 1
            self.history.append(run)
            if model is not None and run.model != model.name:
                self.lens.say(f"It was made with {run.model}; {model.name} is loaded.")
        self.run = run
        if model is None or all(row.vector.d_model == model.d_model for row in run.steers):
            changes["steers"] = self.lens.store.described(run.steers)
        self.lens.store.update(**changes)
        if self._rest is not None:
            self._rest.stop()
        self._show_run(run)

    def action_blind(self) -> None:
        """Judge the arms without knowing which is which; of a set that shows, one trial for each prompt."""
        from lens_tui.tui.screens.blind_screen import judge_arms, judge_set

        if self.set is not None and len(self.set.arms) > 1:
            judge_set(self.lens, self.set, self.history)
        else:
            judge_arms(self.lens, self.run if self.set is None else None, self.history, self._headings)

    # -- taking it elsewhere

    def action_copy(self) -> None:
        """Copy the focused lane's text."""
        lane = self.lanes.focused_lane
        if lane is None or lane.text is None:
            self.lens.say("There is no text in this lane yet.")
            return
        self.lens.copy(lane.text.text, f"the text of {lane.text.arm.name}")

    def action_copy_command(self) -> None:
        """Copy the command that makes this run, or the set that shows, again."""
        from lens_tui.tui.screens.export_form import command_of

        made = self.set or self.run or RunText.begin(0, self.session)
        self.lens.copy(command_of(made), "the command" if self.set is None else "the command of the set")

    def action_export(self) -> None:
        """Ask where, and write the run as JSON, Markdown, CSV, SVG and Python."""
        from lens_tui.tui.screens.export_form import ask_export

        if self.run is None:
            self.lens.say("Nothing has run yet.")
            return
        ask_export(self.lens, self.run)
