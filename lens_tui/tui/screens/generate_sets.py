"""The sets of prompts of a session: asked for, run, and kept."""

from __future__ import annotations

from collections.abc import Callable

from lens_tui.records import LensError
from lens_tui.records.interventions import BenchRow
from lens_tui.tui.host import LensHost
from lens_tui.tui.session import plan
from lens_tui.tui.set_text import SetText, asked_set
from lens_tui.tui.widgets.lane import strength
from lens_tui.worker.events import Event, JobFailed
from lens_tui.worker.jobs import ComparePrompts

from .set_pane import set_form

__all__ = ["PromptSets"]


class PromptSets:
    """Runs every arm over a set of prompts, and keeps what came.

    Args:
        shown: Says which set shows now.
        show: Called with each set as it begins; with what showed before (``None``: no set) where it cannot be read.
        took: Called with each event of a set, and the prompt and seed that it is of, if of one.
    """

    def __init__(
        self,
        shown: Callable[[], SetText | None],
        show: Callable[[SetText | None], None],
        took: Callable[[SetText, tuple[int, int] | None, Event], None],
    ) -> None:
        self.all: list[SetText] = []
        self._shown, self._show, self._took = shown, show, took
        self._asked: dict[str, str] = {}

    def ask(self, lens: LensHost, row: BenchRow | None, problem: str = "") -> None:
        """Ask for a set, and run it.

        Args:
            lens: The app.
            row: The row of the bench that a sweep would be of; None where there is no such one.
            problem: What was wrong with the answer before.
        """
        session = lens.store.session

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            self._asked = values
            try:
                job = asked_set(values, session, row, self._arm_names(lens))
            except LensError as error:
                self.ask(lens, row, f"{error.message} {error.hint}".strip())
            else:
                self.start(lens, job, row)

        lens.push_screen(set_form(session, row, self._asked, problem), take)

    @staticmethod
    def _arm_names(lens: LensHost) -> list[str]:
        """What the arms of the bench are called in a table: with their scales."""
        amounts = ((arm, strength(arm.interventions).partition(" · ")[0]) for _, arm in plan(lens.store.session))
        return [f"{arm.name} {amount}".strip() for arm, amount in amounts]

    def start(self, lens: LensHost, job: ComparePrompts, row: BenchRow | None = None) -> None:
        """Run a set; the one before is stopped, and kept. One that cannot be read is asked for again, of ``row``."""
        made, before = SetText.begin(len(self.all) + 1, job, lens.store.session), self._shown()

        def take(event: Event) -> bool:
            place = made.apply(event)
            if not isinstance(event, JobFailed) or made.rows:
                self._took(made, place, event)
                return False
            self.all.remove(made)
            if self._shown() is made:
                self._show(before)
            self.ask(lens, row, f"{event.message} {event.hint}".strip())
            return True

        self.all.append(made)
        lens.submit(job, "set", take)
        self._show(made)
