"""What passes between the app, the worker and a job's handler: the seam the real worker and the tests' fake share."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

from .events import Event, Progress

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .jobs import Job


class WorkerLike(Protocol):
    """Takes jobs, gives events. Every method returns at once and may be called from any thread.

    Jobs run one at a time in the order they came; but a run goes before all that it does not depend on, and long
    readings and measures pause for it between two forwards (``Job.overtakes``, ``gives_way``). Each job ends with
    exactly one ``JobDone`` or ``JobFailed``, also when it was stopped before it began.
    """

    def start(self, wake: Callable[[], None]) -> None:
        """Begin. ``wake()`` is called, from any thread, when events begin to wait.

        It is called once for each drain (edge-triggered) and never while nothing happens.
        """

    def submit(self, job: Job) -> int:
        """Queue a job; returns its id, which every event of the job carries. Ids rise."""

    def stop(self, job_id: int | None = None) -> None:
        """Stop one job, running or waiting, or all of them. At most one more token comes.

        A job at work answers at once with ``Stopping``.
        """

    def dial(self, job_id: int, arm: int, interventions: tuple[Intervention, ...]) -> None:
        """Change the interventions of one arm of a running ``Compare``, from its next token on.

        Answered by a ``Dialed`` event; ignored if the job has ended. Of several calls for
        one arm between two tokens the last wins.
        """

    def drain(self) -> list[Event]:
        """All events since the last drain, oldest first."""

    def close(self, timeout: float = 0.15) -> bool:
        """Stop everything and end. True if the thread ended within ``timeout`` seconds.

        False does no harm: the process can exit regardless.
        """


def leave(worker: WorkerLike, code: int = 0, timeout: float = 0.1) -> NoReturn:
    """Close the worker and end the process with ``code``, whatever the model is doing."""
    worker.close(timeout)
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End with ``code`` now: logs and streams are flushed, exit hooks are not run.

    Tearing down an interpreter that has MLX and a tokenizer in it takes up to a
    second on a busy machine, and around a thread that is inside an evaluation,
    which nothing can interrupt, it may abort.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


class Stopped(Exception):
    """Raised in a handler, at its yield or in :meth:`Control.check`, when the user stopped the job."""


@dataclass(slots=True)
class Control:
    """What a handler holds besides its job.

    ``report`` sends an event from inside a callback, where a handler cannot yield. ``pause`` does what may not wait
    for this job, if there is anything; called at each :meth:`check`.
    """

    id: int
    job: Job
    report: Callable[[Event], None]
    stop: threading.Event = field(default_factory=threading.Event)
    pause: Callable[[], None] = lambda: None
    _pausing: bool = False
    _dials: dict[int, tuple[Intervention, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Let a job that may not wait go first; raise :class:`Stopped` if the user asked to stop."""
        if self._pausing:  # asked from inside the other job: a stop of this one is not that one's
            return
        if self.stop.is_set():
            raise Stopped
        self._pausing = True
        try:
            self.pause()
        finally:
            self._pausing = False
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
