"""One job under way, as its handler sees it: its id, whether to stop, what was dialled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .events import Event, Progress

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .jobs import Job


class Stopped(Exception):
    """Raised in a handler, at its yield or in :meth:`Control.check`, when the user stopped the job."""


@dataclass(slots=True)
class Control:
    """What a handler holds besides its job.

    ``report`` sends an event from inside a callback, where a handler cannot yield.
    """

    id: int
    job: Job
    report: Callable[[Event], None]
    stop: threading.Event = field(default_factory=threading.Event)
    _dials: dict[int, tuple[Intervention, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise :class:`Stopped` if the user asked to stop."""
        if self.stop.is_set():
            raise Stopped

    def progress(self, stage: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """Report how far a stage is, and stop here if asked to."""
        self.check()
        self.report(Progress(self.id, stage, done, total, unit))

    def dial(self, arm: int, interventions: tuple[Intervention, ...]) -> None:
        """Leave new interventions for an arm; the last call before the job looks wins."""
        with self._lock:
            self._dials[arm] = interventions

    def take_dials(self) -> dict[int, tuple[Intervention, ...]]:
        """What was dialled since the last look, by arm."""
        if not self._dials:  # looked at for every token: no lock for the usual case
            return {}
        with self._lock:
            taken, self._dials = self._dials, {}
        return taken
