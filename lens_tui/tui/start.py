"""Starting the app: the terminal kept clean, the log, the settings, and a way out that never waits."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lens_tui.records import Sampling, paths
from lens_tui.records.info import Dequantize
from lens_tui.records.log import open_for_appending, start_log
from lens_tui.worker.thread import Worker, WorkerLike, end_process

from .preferences import Start, dark_by_variable, preferences

if TYPE_CHECKING:
    from lens_tui.records.session_file import CutOff

    from .app import LensApp

REDUCED_MOTION = "LENS_TUI_REDUCED_MOTION"
CLOSE_PATIENCE = 0.15
MAX_STDERR = 1 << 20
ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)
"""What ends the app from outside, the session kept; the exit status is 128 and the signal's number."""
END_PATIENCE = 5.0
"""Seconds that an app that was asked to end may take; after them the process ends without it."""


def run(
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
    dequantize: Dequantize | None = None,
    resume: bool = False,
) -> int:
    """Open the app on a terminal and return the exit status.

    ``demo`` opens on Generate with the bundled model; ``model`` (a folder, a hub
    id or ``"demo"``) is loaded at once. ``theme``, ``keymap`` and ``dequantize`` win over the
    settings. ``resume`` takes up the newest session, cut off or not.
    Whatever C code writes to file descriptor 2 goes to the log.
    """
    from .driver import guard

    log_path = start_log()
    with guard, _Quiet(paths.log_file().with_name("stderr.log")), rare_collections() as app_is_up:
        lost = unkept()
        keep = preferences().keep_history and "data" not in lost
        worker = Worker(history=paths.database_file() if keep else None)
        try:
            app = make_app(
                worker,
                demo=demo,
                model=model,
                theme=theme,
                keymap=keymap,
                log_path=log_path,
                unkept=lost,
                dequantize=dequantize,
                resume=resume,
            )
            app.after_first_frame(app_is_up)
            with ended_by_signals(app):
                app.run()
            app.recovery.end(well=not app.return_code)
        finally:
            worker.close(CLOSE_PATIENCE)
    if app.last_words:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(app.last_words, file=sys.stderr)  # noqa: T201
    return app.return_code or 0


def make_app(
    worker: WorkerLike,
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    unkept: Mapping[str, str] | None = None,
    dequantize: Dequantize | None = None,
    resume: bool = False,
) -> LensApp:
    """The app as :func:`run` opens it, not yet running; ``unkept`` as the function of that name says it."""
    from .app import LensApp

    user = preferences()
    lost = unkept or {}
    start = Start(
        screen="generate" if demo else "load",
        model="demo" if demo else model or user.model,
        theme=theme or user.theme,
        theme_folders=(paths.themes_folder(),),
        dark=dark_by_variable(os.environ.get("COLORFGBG", "")),
        keys={**user.keys, **(keymap or {})},
        tint=user.tint,
        reduced_motion=user.motion == "reduced" or os.environ.get(REDUCED_MOTION, "") not in ("", "0"),
        resume=resume,
        tour=None if "state" in lost else paths.folder("state") / "tour",
        sampling=user.sampling or Sampling(),
        problems=user.problems,
        log_path=log_path,
        notices=tuple(lost.values()),
        cut_off=_resumable if resume else _cut_off,
        autosave=user.keep_session and "state" not in lost,
        history=paths.database_file() if user.keep_history and "data" not in lost else None,
        dequantize=dequantize or user.dequantize,
    )
    return LensApp(worker, start)


def unkept() -> dict[str, str]:
    """What the disk will not keep because its folder cannot be written: the folder's kind, and a sentence on it."""
    kinds: dict[paths.Kind, str] = {"state": "This session", "data": "What is made here (runs, labels, vectors)"}
    found: dict[str, str] = {}
    for kind, what in kinds.items():
        folder = paths.folder(kind)
        if reason := paths.refusal(folder):
            found[kind] = f"{what} will not be kept: {folder} cannot be written ({reason})."
    if found:
        found["hint"] = f"{paths.HOME_VARIABLE} names another folder."
    return found


def _cut_off() -> Sequence[CutOff]:
    if not paths.session_file().exists() and next(paths.sessions_folder().glob("*.json"), None) is None:
        return ()
    from lens_tui.records.session_file import interrupted_sessions

    return interrupted_sessions()


def _resumable() -> Sequence[CutOff]:
    from lens_tui.records.session_file import resumable_sessions

    return resumable_sessions()


GARBAGE = (5_000, 10, 50)
"""Python's three thresholds while the app runs. A picture makes and drops some ten thousand objects."""


@contextmanager
def rare_collections() -> Iterator[Callable[[], None]]:
    """Inside, no collection of garbage until what is given is called, and afterwards rarely and of little.

    A collection of everything took four times as long as the picture in which it fell, one in four of them. So what
    has been made by then, which stays until the app ends, is taken out of later collections, and what a frame leaves
    is looked at a few times a frame, no longer thirty.
    """
    before, collects = gc.get_threshold(), gc.isenabled()

    def begin() -> None:
        gc.freeze()
        gc.set_threshold(*GARBAGE)
        if collects:
            gc.enable()

    gc.disable()
    try:
        yield begin
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
        if collects:
            gc.enable()


@contextmanager
def ended_by_signals(app: LensApp) -> Iterator[None]:
    """Inside, a signal of ``ENDINGS`` ends the app in good order and keeps its session.

    One that is ignored from the start, as under ``nohup``, stays ignored. An
    app that cannot end (a full terminal that nobody reads, a handler that does
    not return) is left after ``END_PATIENCE``, the terminal given back.
    """
    timers: list[threading.Timer] = []

    def end(number: int, _frame: object) -> None:
        status, driver = 128 + number, app._driver
        if driver is None:  # the terminal is as it was
            raise SystemExit(status)
        if not timers:
            timers.append(threading.Timer(END_PATIENCE, _end_without, (app, status)))
            timers[0].daemon = True
            timers[0].start()
            driver._loop.call_soon_threadsafe(app.end, status)

    before = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_without(app: LensApp, status: int) -> None:
    """End the process around an app that does not."""

    app.recovery.end(well=False)
    if (restore := getattr(app._driver, "restore_now", None)) is not None:
        restore()
    end_process(status)


class _Quiet:
    """Textual draws on the terminal through file descriptor 2; all else that writes there goes to the log.

    Metal, tokenizers and crashing C code print on descriptor 2, in the middle
    of the picture. So the terminal gets a descriptor of its own, which
    ``sys.__stderr__`` names while the app runs, and descriptor 2 is the log.
    """

    def __init__(self, log_path: Path) -> None:
        self._path = log_path

    def __enter__(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._log = self._opened()
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._before = sys.__stderr__
        self._terminal: TextIO = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        sys.__stderr__ = self._terminal  # type: ignore[misc]
        os.dup2(self._log.fileno(), 2)
        faulthandler.enable(self._log)

    def _opened(self) -> FileIO:
        """The log, or nowhere: a folder that cannot be written keeps nobody from working."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            keep = self._path.exists() and self._path.stat().st_size < MAX_STDERR
            return open_for_appending(self._path, afresh=not keep)
        except OSError:
            return open(os.devnull, "wb", buffering=0)

    def __exit__(self, *_error: object) -> None:
        faulthandler.disable()
        sys.__stderr__ = self._before  # type: ignore[misc]
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._terminal.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        with contextlib.suppress(OSError):
            self._terminal.close()
        self._log.close()
