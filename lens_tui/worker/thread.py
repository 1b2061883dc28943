"""The one thread that runs MLX: jobs in, events out, and an error as one sentence.

:class:`WorkerLike` is the seam that the app is written against and that the real :class:`Worker` and the tests' fake
share; :class:`Control` is what a job's handler holds besides its job.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from lens_tui.records import LensError
from lens_tui.records.errors import warnings_to
from lens_tui.records.sanitise import one_line, sanitise

from .events import Event, JobDone, JobFailed, JobStarted, Notice, Progress, Stopping

if TYPE_CHECKING:
    from lens_tui.records import Intervention

    from .jobs import Job


class WorkerLike(Protocol):
    """Takes jobs, gives events. Every method returns at once and may be called from any thread.

    Jobs run one at a time in the order they came; but a run overtakes all that it does not depend on, and long
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


_NO_MEMORY = ("unable to allocate", "malloc", "out of memory", "insufficient memory", "attempting to allocate")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a screen shows it (``message``, ``hint``) and as the log keeps it (``detail``). All sanitised."""

    message: str
    hint: str
    detail: str


def explain(error: BaseException) -> Failure:
    """The sentence for any error a job can end with."""
    message, hint = _sentence(error)
    detail = "".join(traceback.format_exception(error))
    return Failure(one_line(message, 400), one_line(hint, 400), sanitise(detail))


def _sentence(error: BaseException) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, LensError):
        return error.message, error.hint
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text.lower() for sign in _NO_MEMORY)
    ):
        return (
            "There is not enough memory for this.",
            "Use a smaller or more quantised model, a shorter text or fewer arms.",
        )
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in {"mlx", "mlx_lm"}:
        return f"MLX could not be imported: {text}.", "On Linux install mlx[cpu] or mlx[cuda13]; on a Mac, mlx."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"The system refused: {error.strerror}{where}.", "Check the path, free space and permissions."
    name = type(error).__name__
    return (
        f"Something failed inside: {name}: {text}" if text else f"Something failed inside: {name}.",
        "The log has more.",
    )


_log = logging.getLogger(__name__)


class Mailbox:
    """A thread-safe queue of events with an edge-triggered bell.

    ``wake`` is called by the first ``put`` after a ``drain`` and by no other, so
    a reader that drains on each call misses nothing and is never woken in vain.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._rung = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None

    def connect(self, wake: Callable[[], None]) -> None:
        """Set the bell, and ring it if events already wait."""
        with self._lock:
            self._wake = wake
            self._rung = bool(self._events)
            ring = self._rung
        if ring:
            self._ring(wake)

    def put(self, event: Event) -> None:
        """Add an event; rings if the reader has drained since the last ring."""
        with self._lock:
            self._events.append(event)
            if self._rung:
                return
            self._rung = True
            wake = self._wake
        self._ring(wake)

    def drain(self) -> list[Event]:
        """Take everything, oldest first."""
        with self._lock:
            self._rung = False
            events = list(self._events)
            self._events.clear()
        return events

    @staticmethod
    def _ring(wake: Callable[[], None]) -> None:
        try:
            wake()
        except Exception:  # an app that is already gone must not end the thread
            _log.debug("the reader could not be woken", exc_info=True)


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
    """The real :class:`~lens_tui.worker.thread.WorkerLike`.

    ``history`` is the database that runs are kept in, token by token as they
    come; by default none are. ``runner`` makes something else than the usual
    handlers do the jobs; it is called once, on the thread.
    """

    def __init__(self, runner: Callable[[], Runner] | None = None, *, history: Path | None = None) -> None:
        self._make_runner = runner or (lambda: _handlers(history))
        self._runner: Runner | None = None
        self._mailbox = Mailbox()
        self._lock = threading.RLock()  # a wake may come back with another stop
        self._waiting: deque[Control] = deque()
        self._come = threading.Condition(self._lock)
        self._open: dict[int, Control] = {}
        self._next = 1
        self._closing = False
        self._at_work: list[int] = []  # those that have given way first
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
                self._waiting.append(control)
                self._come.notify()
                return control.id
        self._mailbox.put(JobDone(control.id, stopped=True))
        return control.id

    def stop(self, job_id: int | None = None) -> None:
        """Stop one job, running or waiting, or all of them."""
        with self._lock:
            for control in self._open.values():
                if job_id in (None, control.id) and not control.stop.is_set():
                    if control.id in self._at_work:
                        self._mailbox.put(Stopping(control.id))
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
            self._closing = True
            self._come.notify()
        self.stop()
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
            with warnings_to(self._notice):
                home = contextvars.copy_context()
                while (control := self._next_job()) is not None:
                    if control.job.gives_way:
                        control.pause = self._pause_of(control, home)
                    self._do(control)
        finally:
            self._release()

    def _next_job(self) -> Control | None:
        """The job whose turn it is, waited for; ``None`` once there will be none."""
        with self._lock:
            self._come.wait_for(lambda: self._waiting or self._closing)
            return self._overtaking() or (self._waiting.popleft() if self._waiting else None)

    def _pause_of(self, control: Control, home: contextvars.Context) -> Callable[[], None]:
        """What a job calls between two forwards: the runs that came meanwhile are made there, inside of it."""

        def pause() -> None:
            while (urgent := self._overtaking()) is not None:
                # In the context that every job begins in: what the paused one has opened is not the run's.
                home.copy().run(self._do, urgent)
                self._mailbox.put(JobStarted(control.id, type(control.job).__name__))

        return pause

    def _overtaking(self) -> Control | None:
        """The first run that waits for nothing that keeps its place."""
        if not self._waiting:  # asked before every forward: no lock for the usual case
            return None
        with self._lock:
            first = next((one for one in self._waiting if one.job.overtakes or one.job.place), None)
            if first is None or first.job.place:
                return None
            self._waiting.remove(first)
            return first

    def _notice(self, message: str) -> None:
        """The library says that something is probably not meant."""
        self._mailbox.put(Notice(self._at_work[-1] if self._at_work else 0, message))

    def _do(self, control: Control) -> None:
        put = self._mailbox.put
        try:
            with self._lock:
                if control.stop.is_set():
                    return self._end(JobDone(control.id, stopped=True))
                self._at_work.append(control.id)
            put(JobStarted(control.id, type(control.job).__name__))
            for event in _until_stopped(self._ready()(control), control):
                put(event)
            self._end(JobDone(control.id, stopped=control.stop.is_set()))
        except Stopped:
            self._end(JobDone(control.id, stopped=True))
        except BaseException as error:  # whatever a job does, the thread lives on
            failure = explain(error)
            _log.error("job %d (%s) failed\n%s", control.id, type(control.job).__name__, failure.detail)
            self._end(JobFailed(control.id, failure.message, failure.hint, failure.detail))
        return None

    def _end(self, event: JobDone | JobFailed) -> None:
        """A job's last event: none of it comes later, whoever stops it now."""
        with self._lock:
            if event.job in self._at_work:
                self._at_work.remove(event.job)
            self._open.pop(event.job, None)
            self._mailbox.put(event)

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
    """The handler's events; once stopped, ``Stopped`` is thrown in so that it can give its last events."""
    thrown = False
    while True:
        try:
            if control.stop.is_set() and not thrown and hasattr(events, "throw"):
                thrown = True
                event = events.throw(Stopped())
            else:
                event = next(events)
        except StopIteration:
            return
        yield event
