"""Runs on the Generate screen: their settings, those before, and taking one elsewhere. What the screen mixes in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui.tui import clip
from lens_tui.tui.run_text import RunText

if TYPE_CHECKING:
    from textual.timer import Timer

    from lens_tui.tui.widgets.lane_row import LaneRow

    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object


class RunActions(_Base):
    """Needs ``lanes``, ``run`` and ``history`` of the screen, and calls its ``_show_run``."""

    if TYPE_CHECKING:
        lanes: LaneRow
        run: RunText | None
        history: list[RunText]
        _rest: Timer | None

        def _show_run(self, run: RunText | None) -> None: ...

    def action_sampling(self) -> None:
        """The sampling form."""
        from . import sampling
        from .form import FormScreen

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self.lens.store.update(sampling=sampling.parse(values, self.session.sampling))

        self.app.push_screen(FormScreen("Sampling", sampling.fields(self.session.sampling)), take)

    def action_history(self) -> None:
        """The runs of this session, and those kept on disk."""
        from .history import HistoryScreen

        self.app.push_screen(HistoryScreen(self.history, self.lens.history), self._restore)

    def _restore(self, run: RunText | None) -> None:
        if run is None:
            return
        model, changes = self.session.model, {"prompt": run.prompt, "sampling": run.sampling, "written": run.written()}
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

    # -- actions: taking it elsewhere ------------------------------------------------------------------------

    def action_copy(self) -> None:
        """Copy the focused lane's text."""
        lane = self.lanes.focused_lane
        if lane is not None and lane.text is not None:
            clip.copy(self.app, lane.text.text, f"the text of {lane.text.arm.name}")

    def action_copy_command(self) -> None:
        """Copy the command that makes this run again."""
        from lens_tui.records.vectors_io import keep_vector
        from lens_tui.tui.run_export import as_command

        run = self.run or RunText.begin(0, self.session)
        clip.copy(self.app, as_command(run, self.session.saes, keep_vector), "the command")

    def action_export(self) -> None:
        """Write the run as JSON and Markdown into the working folder."""
        from lens_tui.tui.run_export import write

        if self.run is None:
            self.lens.say("Nothing has run yet.")
            return
        try:
            stem = write(self.run, Path.cwd())
        except OSError as error:
            self.lens.show_error(f"The run could not be written to {error.filename}: {error.strerror}.")
            return
        self.lens.say(f"Wrote {stem.name}.json and {stem.name}.md to {stem.parent}")
