"""The one exception users meet: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .sanitise import sanitise

_LONGEST = 600
"""Characters of a message or a hint; of a longer one the middle is left out, for its end says what to do."""


class LensError(ValueError):
    """Something the user can put right.

    ``str(error)`` is one sentence saying what is wrong and where; ``hint`` says
    what to do about it. Everything this package refuses is refused with a
    ``LensError``; anything else that escapes is a defect. Messages quote what
    files and networks hold: both texts are made safe for a terminal, put in one
    line and kept short, whoever raises them. ``reported_elsewhere`` is true where several processes share
    a model and rank 0 is known to say what is wrong.
    """

    reported_elsewhere = False

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = _sentence(message)
        self.hint = _sentence(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip() if self.hint else self.message


class AskedToStop(Exception):
    """Raised between two steps of long work when no more of it is wanted; what began the work catches it."""


class NotFinite(LensError):
    """NaN or infinity where there should be numbers: a model, a steering or a file that overflows."""


class LensWarning(UserWarning):
    """Something that is done as asked, but is probably not meant; passed to ``warnings``.

    The command line writes it to standard error, the app shows it; each text appears once per process.
    """


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("lens_listener", default=None)


def warn(message: str) -> None:
    """Say that something asked for is probably not meant: to ``warnings``, or to the listener of this thread."""
    listener = _listener.get()
    if listener is not None:
        listener(_sentence(message))
        return

    warnings.warn(_sentence(message), LensWarning, stacklevel=3)


@contextmanager
def warnings_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside, ``listener`` gets what :func:`warn` says in this thread or task, each text once."""
    said: set[str] = set()

    def once(message: str) -> None:
        if message not in said:
            said.add(message)
            listener(message)

    token = _listener.set(once)
    try:
        yield
    finally:
        _listener.reset(token)


def _sentence(text: str) -> str:
    line = sanitise(_cut(str(text))).replace("\n", " ").replace("\t", " ").strip()
    return _cut(line)


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    tail = _LONGEST // 4
    return f"{text[: _LONGEST - tail - 3]} … {text[-tail:]}"
