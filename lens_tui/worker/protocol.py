"""What the app may ask of a worker: the seam the real one and the tests' fake share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .base_events import Event
    from .jobs import Job


class WorkerLike(Protocol):
    """Takes jobs, gives events. Every method returns at once and may be called from any thread.

    Jobs run one at a time in the order they came. Each job ends with exactly one
    ``JobDone`` or ``JobFailed``, also when it was stopped before it began.
    """

    def start(self, wake: Callable[[], None]) -> None:
        """Begin. ``wake()`` is called, from any thread, when events begin to wait.

        It is called once for each drain (edge-triggered) and never while nothing happens.
        """

    def submit(self, job: Job) -> int:
        """Queue a job; returns its id, which every event of the job carries. Ids rise."""

    def stop(self, job_id: int | None = None) -> None:
        """Stop one job, running or waiting, or all of them. At most one more token comes."""

    def dial(self, job_id: int, arm: int, interventions: tuple[Intervention, ...]) -> None:
        """Change the interventions of one arm of a running ``Compare``, from its next token on.

        Answered by a ``Dialed`` event; ignored if the job has ended. Of several calls for
        one arm between two tokens the last wins.
        """

    def drain(self) -> list[Event]:
        """All events since the last drain, oldest first."""

    def close(self, timeout: float = 0.15) -> bool:
        """Stop everything and end. True if the thread ended within ``timeout`` seconds.

        False is no harm: the process can exit regardless.
        """
