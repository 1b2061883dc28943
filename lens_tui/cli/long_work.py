"""Work that takes a while: how far it is on standard error, and signals that stop it in good order."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .output import note

_ON_A_TERMINAL = 0.2
_ON_A_PIPE = 10.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Meter:
    """One line that is written over on a terminal; on a pipe a line every ten seconds and at each new stage."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last, self._stage, self._width = 0.0, "", 0

    def say(self, stage: str, rest: str = "") -> None:
        """Show ``stage`` and what is known of it, unless something was shown a moment ago."""
        now = time.monotonic()
        if stage == self._stage and now - self._last < (_ON_A_TERMINAL if self._live else _ON_A_PIPE):
            return
        self._last, self._stage = now, stage
        line = f"{stage}  {rest}".rstrip()
        if self._live:
            with suppress(OSError):  # the terminal may be gone; the work is not for it alone
                sys.stderr.write("\r" + line.ljust(self._width))
                sys.stderr.flush()
            self._width = len(line)
        else:
            note(line)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._width:
            with suppress(OSError):
                sys.stderr.write("\n")
            self._width = 0


class Asked:
    """Whether a signal asked to stop: called, it says so. ``status`` is the exit status that tells which, or 0."""

    def __init__(self) -> None:
        self.status = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.status != 0

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        # A terminal that closes and the shell in it both say so, and supervisors repeat themselves: who insists is
        # somebody at a keyboard.
        if self.status and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.status and number == signal.SIGQUIT:
            raise SystemExit(128 + number)
        self.status = self.status or 128 + number
        note("\nmlx-lens-tui: stopping; ctrl+c again to stop without saving.")


@contextmanager
def interruptible() -> Iterator[Asked]:
    """Inside, the first ctrl+c, SIGTERM, SIGHUP or SIGQUIT only makes the object given say true.

    The second ctrl+c ends the process as ever. A signal that is ignored from the start (``nohup``, a job in the
    background of a script) stays ignored.
    """
    asked = Asked()
    before = {number: signal.getsignal(number) for number in _ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, asked._heard)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def duration(seconds: float | None) -> str:
    """``1:02:03``, ``4:05`` or ``?``."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def count(tokens: float) -> str:
    """``950``, ``12.3 k`` or ``4.56 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"
