"""Which job belongs to whom: events of a job that was replaced or stopped are dropped here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lens_tui.worker.base_events import Event, JobDone, JobFailed

Handler = Callable[[Event], object]
"""Gets every event of its job. Returning True for a ``JobFailed`` says that the screen has shown it."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A job that still counts: its id, its slot and who hears of it."""

    id: int
    slot: str
    handler: Handler


class JobBook:
    """The jobs that count, at most one in each slot. Pure: it calls nothing but handlers."""

    def __init__(self) -> None:
        self._jobs: dict[int, Owned] = {}

    def open(self, job_id: int, slot: str, handler: Handler) -> int | None:
        """Enter a job; returns the id of the job it replaces in its slot, if one is still there."""
        old = self.in_slot(slot)
        if old is not None:
            del self._jobs[old]
        self._jobs[job_id] = Owned(job_id, slot, handler)
        return old

    def drop(self, slot: str) -> int | None:
        """Forget the job in a slot, so that its events are dropped; returns its id."""
        old = self.in_slot(slot)
        if old is not None:
            del self._jobs[old]
        return old

    def in_slot(self, slot: str) -> int | None:
        """The id of the job in a slot, if there is one."""
        return next((job.id for job in self._jobs.values() if job.slot == slot), None)

    def take(self, event: Event) -> Owned | None:
        """Who hears of an event; ``None`` if its job no longer counts. A job's last event closes it."""
        owned = self._jobs.get(event.job)
        if owned is not None and isinstance(event, JobDone | JobFailed):
            del self._jobs[event.job]
        return owned

    @property
    def busy(self) -> bool:
        """Whether any job is still going."""
        return bool(self._jobs)
