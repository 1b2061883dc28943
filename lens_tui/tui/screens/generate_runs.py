"""Runs of the session on Generate: from the first event to the last, made again, changed while they write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.timer import Timer

from lens_tui.records.sanitise import one_line
from lens_tui.tui.session import RunText, Session, plan
from lens_tui.worker.events import ArmDone, DialRefused, Event, JobDone, JobFailed, RunStarted

from .generate_lanes import GenerateLanes

if TYPE_CHECKING:
    from lens_tui.tui.widgets.prompt_area import PromptArea

REST = 0.3
"""Seconds of rest after a change of scale before the run is made again."""


class GenerateRuns(GenerateLanes):
    """Makes runs of the session, and hands what changes meanwhile to the one that is going."""

    def __init__(self) -> None:
        super().__init__()
        self._job: int | None = None
        self._rest: Timer | None = None

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
            self._rest = self._restarted(self._rest)

    def _after_monitors(self) -> None:
        """Make the run that shows again, so that it is read by what reads now."""
        if self.run is not None and self.run.going:
            self.lens.say(f"They read the next run: {self.lens.key_text('app.run')} runs it.")
        elif self.run is not None and self.set is None and self.is_current:
            self._rest = self._restarted(self._rest)

    def _restarted(self, timer: Timer | None) -> Timer:
        if timer is not None:
            timer.stop()
        return self.set_timer(REST, self.start_run)

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
        run = RunText.begin(len(self.history) + 1, self.session)
        self.history.append(run)

        job = self.features.job(self.lens, run)
        run.job = self._job = self.lens.submit(job, "run", lambda event: self._take(run, event))
        self._show_run(run)

    def _repeat(self, run: RunText, old: RunText) -> None:
        """Make a run again as it was, changes of scale included, and say whether it has the same tokens."""
        from lens_tui.tasks.replay import changes_of

        if self.session.model is None:
            self.lens.say("Load a model first.")
            return
        run.number, run.model = len(self.history) + 1, self.session.model.name
        self.history.append(run)
        changes = tuple((arm, index, items) for (arm, index), items in changes_of(old.record()).items())
        job = self.features.job(self.lens, run, changes)
        run.job = self._job = self.lens.submit(job, "run", lambda event: self._take(run, event))
        self._show_run(run)

    def _held_against(self, run: RunText, old: RunText) -> None:
        from lens_tui.tasks.replay import held_against

        found = held_against(old.record(), run.record())
        said = one_line(found.sentence(), 400)
        self.lens.say(said) if found.same else self.lens.tell(said)

    def _take(self, run: RunText, event: Event) -> None:
        if self.features.take(self.lens, run, event):
            return
        run.apply(event)
        if isinstance(event, RunStarted):
            self.talk.check_start(run)
        if isinstance(event, JobDone) and run.again is not None:
            self._held_against(run, run.again)
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
        if run is self.run and not self._due:  # once for all events of a drain
            self._due = True
            self.call_next(self._sync)

    def on_prompt_area_run(self, event: PromptArea.Run) -> None:
        """Enter in the prompt."""
        self.lens.store.update(prompt=event.prompt)
        self.lanes.focus_lane()
        self.lens.action_run()

    def on_prompt_area_left(self, event: PromptArea.Left) -> None:
        """The prompt was left: it is the session's now."""
        self.lens.store.update(prompt=event.prompt)
        if self.focused is None:
            self.lanes.focus_lane()
