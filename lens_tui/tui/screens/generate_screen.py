"""Generate: prompt, settings, lanes. What a person asks for there, past runs, blind trials, taking a run elsewhere."""

from __future__ import annotations

from lens_tui.records.wording import many
from lens_tui.tui.session import RunText, plan
from lens_tui.tui.set_text import SetText

from .form import FormScreen
from .generate_arms import GenerateArms
from .generate_runs import GenerateRuns
from .generate_sets import GenerateSets
from .sampling_form import read_sampling, sampling_fields


class GenerateScreen(GenerateRuns, GenerateSets, GenerateArms):
    """Prompt, settings, lanes. The bench in the session says which lanes there are."""

    CSS_PATH = "generate_screen.tcss"

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

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self.lens.store.update(sampling=read_sampling(values, self.session.sampling))

        self.app.push_screen(FormScreen("Sampling", sampling_fields(self.session.sampling)), take)

    def action_history(self) -> None:
        """The runs of this session, and those kept on disk."""
        from lens_tui.tui.screens.history_screen import HistoryScreen

        self.app.push_screen(HistoryScreen(self.history, self.lens.history, self._sets), self._restore)

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
            changes["steers"] = run.steers
        self.lens.store.update(**changes)
        if self._rest is not None:
            self._rest.stop()
        self._show_run(run)

    def action_blind(self) -> None:
        """Judge the arms without knowing which is which; of a set that shows, one trial for each prompt."""
        from lens_tui.tui.screens.blind_screen import LETTERS, BlindScreen

        session = self.session
        if self.set is not None and len(self.set.arms) > 1:
            trials = [run for _, run in sorted(self.set.runs.items()) if run.state == "done"]
            if self.set.going or not trials:
                self.lens.say(f"The texts of the set are not all there: {self.lens.key_text('app.stop')} stops it.")
            elif len(self.set.arms) > len(LETTERS):
                self.lens.say(
                    f"A blind trial shows at most {many(len(LETTERS), 'text')}; this set has {len(self.set.arms)}."
                )
            else:
                self.app.push_screen(BlindScreen(session, self.history, self.lens.history, trials=trials))
            return
        if session.model is None or not session.prompt or len(plan(session)) < 2:
            self.lens.say("A blind judgement needs a model, a prompt and something that is steered.")
            return
        run, now = self.run if self.set is None else None, RunText.begin(0, session)
        first = run if run is not None and run.state == "done" and run.is_of(now) else None
        self.app.push_screen(BlindScreen(session, self.history, self.lens.history, first), lambda _: self._headings())

    # -- taking it elsewhere

    def action_copy(self) -> None:
        """Copy the focused lane's text."""
        lane = self.lanes.focused_lane
        if lane is None or lane.text is None:
            self.lens.say("There is no text in this lane yet.")
            return
        self.lens.copy(lane.text.text, f"the text of {lane.text.arm.name}")

    def action_copy_command(self) -> None:
        """Copy the command that makes this run again."""
        from lens_tui.tui.screens.export_form import command_of

        run = self.run or RunText.begin(0, self.session)
        self.lens.copy(command_of(run), "the command")

    def action_export(self) -> None:
        """Ask where, and write the run as JSON, Markdown, CSV, SVG and Python."""
        from lens_tui.tui.screens.export_form import ask_export

        if self.run is None:
            self.lens.say("Nothing has run yet.")
            return
        ask_export(self.lens, self.run)
