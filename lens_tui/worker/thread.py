"""The one thread that imports mlx: takes jobs, runs their handlers, puts events in the mailbox.

MLX streams belong to the thread that made them, so everything MLX does happens
here: import, load, evaluate, free. Starting and importing this module imports
no MLX; the first job does.
"""

from __future__ import annotations

import atexit
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lens_tui.records.errors import heard_by

from .base_events import Event, JobDone, JobFailed, JobStarted, Notice
from .control import Control, Stopped
from .failures import explain
from .mailbox import Mailbox

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .jobs import Job

_log = logging.getLogger(__name__)

# A process that ends without close() still lets the token in flight finish: leaving
# MLX in mid-evaluation while the interpreter is torn down can abort the process.
_EXIT_PATIENCE = 5.0


class Runner(Protocol):
    """What does the jobs. Made, used and closed on the worker's thread alone."""

    def __call__(self, control: Control) -> Iterator[Event]:
        """Do ``control.job``, yielding events. :class:`Stopped` is thrown in at a yield when the user stops it."""

    def close(self) -> None:
        """Free what is held."""


class Worker:
    """The real :class:`~lens_tui.worker.protocol.WorkerLike`.

    ``history`` is the database that runs are kept in, token by token as they
    come; by default none are. ``runner`` makes something else than the usual
    handlers do the jobs; it is called once, on the thread.
    """

    def __init__(self, runner: Callable[[], Runner] | None = None, *, history: Path | None = None) -> None:
        self._make_runner = runner or (lambda: _handlers(history))
        self._runner: Runner | None = None
        self._mailbox = Mailbox()
        self._queue: queue.SimpleQueue[Control | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: dict[int, Control] = {}
        self._next = 1
        self._closing = False
        self._at_work = 0
        self._thread = threading.Thread(target=self._main, name="mlx", daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; ``wake`` is called when events begin to wait. Call once."""
        self._mailbox.connect(wake)
        atexit.register(self._at_exit)
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Queue a job and return its id. After :meth:`close` it is stopped before it begins."""
        with self._lock:
            control = Control(self._next, job, self._mailbox.put)
            self._next += 1
            if not self._closing:
                self._open[control.id] = control
                self._queue.put(control)
                return control.id
        self._mailbox.put(JobDone(control.id, stopped=True))
        return control.id

    def stop(self, job_id: int | None = None) -> None:
        """Stop one job, running or waiting, or all of them."""
        with self._lock:
            controls = [control for control in self._open.values() if job_id in (None, control.id)]
        for control in controls:
            control.stop.set()

    def dial(self, job_id: int, arm: int, interventions: tuple[Intervention, ...]) -> None:
        """Change the interventions of one arm of a running comparison, from its next token on."""
        with self._lock:
            control = self._open.get(job_id)
        if control is not None:
            control.dial(arm, interventions)

    def drain(self) -> list[Event]:
        """All events since the last drain, oldest first."""
        return self._mailbox.drain()

    def close(self, timeout: float = 0.15) -> bool:
        """Stop everything and end the thread; true if it ended within ``timeout`` seconds.

        Safe to call twice. A thread still inside one long evaluation ends after
        it; a process that will not wait leaves with ``os._exit``.
        """
        with self._lock:
            first, self._closing = not self._closing, True
        self.stop()
        if first:
            self._queue.put(None)
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        atexit.unregister(self._at_exit)
        return True

    def _at_exit(self) -> None:
        self.close(_EXIT_PATIENCE)

    def _main(self) -> None:
        try:
            with heard_by(self._notice):
                while (control := self._queue.get()) is not None:
                    self._at_work = control.id
                    self._do(control)
        finally:
            self._release()

    def _notice(self, message: str) -> None:
        """The library says that something is probably not meant."""
        self._mailbox.put(Notice(self._at_work, message))

    def _do(self, control: Control) -> None:
        put = self._mailbox.put
        try:
            if control.stop.is_set():
                return put(JobDone(control.id, stopped=True))
            put(JobStarted(control.id, type(control.job).__name__))
            for event in _until_stopped(self._ready()(control), control):
                put(event)
            put(JobDone(control.id, stopped=control.stop.is_set()))
        except Stopped:
            put(JobDone(control.id, stopped=True))
        except BaseException as error:  # whatever a job does, the thread lives on
            failure = explain(error)
            _log.error("job %d (%s) failed\n%s", control.id, type(control.job).__name__, failure.detail)
            put(JobFailed(control.id, failure.message, failure.hint, failure.detail))
        finally:
            with self._lock:
                self._open.pop(control.id, None)
        return None

    def _ready(self) -> Runner:
        if self._runner is None:
            self._runner = self._make_runner()
            # MLX registers its own exit hook when imported; hooks run last in, first
            # out, and ours must end the thread before MLX tears its caches down.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)
        return self._runner

    def _release(self) -> None:
        try:
            if self._runner is not None:
                self._runner.close()
                self._runner = None
        except Exception:
            _log.exception("closing the runner failed")
        if (mx := sys.modules.get("mlx.core")) is not None:
            # Without it a thread that used MLX and ended aborts the process at exit, sometimes.
            mx.clear_streams()


def _handlers(history: Path | None) -> Runner:
    from .handlers import Context, Handlers

    return Handlers(Context(history=history))


def _until_stopped(events: Iterator[Event], control: Control) -> Iterator[Event]:
    """The handler's events; once stopped, ``Stopped`` is thrown in so that it can say its last words."""
    told = False
    while True:
        try:
            if control.stop.is_set() and not told and hasattr(events, "throw"):
                told = True
                event = events.throw(Stopped())
            else:
                event = next(events)
        except StopIteration:
            return
        yield event
