"""Work that takes a while: how far it is on standard error, and ctrl+c that stops it in good order."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .output import note

_ON_A_TERMINAL = 0.2
_ON_A_PIPE = 10.0


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
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = len(line)
        else:
            note(line)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._width:
            sys.stderr.write("\n")
            self._width = 0


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first ctrl+c only makes the given function say true; the second one ends the process as ever."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        note("\nmlx-lens-tui: stopping; ctrl+c again to stop without saving.")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


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
