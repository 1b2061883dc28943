"""Sets of prompts on Generate: asked for, run, shown as a table over the lanes of one prompt."""

from __future__ import annotations

from lens_tui.records import LensError
from lens_tui.tui.session import plan
from lens_tui.tui.set_text import SetText, asked_set
from lens_tui.tui.widgets.lane import strength
from lens_tui.worker.events import Event, SetCellDone, SetStarted
from lens_tui.worker.jobs import ComparePrompts

from .generate_lanes import GenerateLanes
from .set_pane import SetPane, set_form


class GenerateSets(GenerateLanes):
    """Runs every arm over a set of prompts, and shows what came."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[str, str] = {}

    def action_prompt_set(self) -> None:
        """Ask for a set, and run it."""
        self._ask_set("")

    def _ask_set(self, problem: str) -> None:
        if self.session.model is None:
            self.lens.say("Load a model first.")
            return
        self.talk.keep()
        lane = self.lanes.focused_lane
        acting = [row for row in self.session.steers if row.enabled and lane is not None and row.arm == lane.number]
        row = acting[0] if len(acting) == 1 else None

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            self._asked = values
            try:
                job = asked_set(values, self.session, row, self._arm_names())
            except LensError as error:
                self._ask_set(f"{error.message} {error.hint}".strip())
            else:
                self.start_set(job)

        self.app.push_screen(set_form(self.session, row, self._asked, problem), take)

    def _arm_names(self) -> list[str]:
        """What the arms of the bench are called in a table: with their scales."""
        amounts = ((arm, strength(arm.interventions).partition(" · ")[0]) for _, arm in plan(self.session))
        return [f"{arm.name} {amount}".strip() for arm, amount in amounts]

    def start_set(self, job: ComparePrompts) -> None:
        """Run a set; the one before is stopped, and kept."""
        made = SetText.begin(len(self._sets) + 1, job, self.session)
        self._sets.append(made)
        self.lens.submit(job, "set", lambda event: self._take_set(made, event))
        self.show_set(made)

    def show_set(self, shown: SetText) -> None:
        """Show a set: its table, and the lanes of its first prompt."""
        if self.table is None:
            self.table = SetPane(id="set")
            self.query_one("#body").mount(self.table)
        self.set = shown
        self.set_class(True, "-set")
        self.run = None
        self.measures.show(None)
        self.table.show(shown)
        self._mark_arm()
        self.call_after_refresh(self.table.table.focus)

    def _take_set(self, made: SetText, event: Event) -> None:
        row = made.apply(event)
        if made is not self.set or self.table is None:
            return
        if isinstance(event, SetStarted):
            self.table.sync()
        run = made.runs.get(row) if row is not None else None
        if isinstance(event, SetCellDone) and run is not None and run is self.run:
            for lane in self.lanes.lanes:
                if lane.number == event.cell.arm:
                    lane.follow(run, run.arm_of(lane.number))
        if not self._due:  # once for all events of a drain
            self._due = True
            self.call_next(self._sync)

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
