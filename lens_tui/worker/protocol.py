"""What the app may ask of a worker: the seam the real one and the tests' fake share."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .events import Event
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

        False is no harm: the process can exit regardless.
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
