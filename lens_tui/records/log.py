"""The log file: rotating, private to the user, safe to print on a terminal."""

from __future__ import annotations

import errno
import logging
import os
import stat
from io import FileIO
from pathlib import Path

from . import paths
from .sanitise import sanitise

_MAX_BYTES = 1 << 20
_KEPT = 3


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return sanitise(super().format(record))


class _LateHandler(logging.Handler):
    """Opens the file with the first record: most starts of the app log nothing, and the first frame waits for none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        open_for_appending(path).close()  # an OSError if it cannot be written
        self._path = path
        self._file: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is None:
            try:
                self._file = _rotating(self._path)
            except OSError:  # what has happened to the disk since must not stop what is logged
                return
            self._file.setFormatter(self.formatter)
        self._file.emit(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _rotating(path: Path) -> logging.Handler:
    """A log file that rotates and that only its user may read: prompts and file names may be in tracebacks."""
    from logging.handlers import RotatingFileHandler  # not before there is something to log

    class PrivateFile(RotatingFileHandler):
        def _open(self) -> object:  # type: ignore[override]
            return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_private)

    return PrivateFile(str(path), maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def open_for_appending(path: Path, *, afresh: bool = False) -> FileIO:
    """A regular file open for writing, private to the user; ``afresh``: empty. An ``OSError`` if it cannot be.

    Opening a pipe in its place does not wait for a reader.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_TRUNC if afresh else 0)
    handle = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "ab", buffering=0)


def start_log(path: Path | None = None, level: int = logging.INFO) -> Path | None:
    """Send the package's log to a file (by default the user's own) and nowhere else.

    Returns the file, or ``None`` if it cannot be written: an app without a log
    still works.
    """
    file = path or paths.log_file()
    logger = logging.getLogger("lens_tui")
    stop_log()
    logger.setLevel(level)
    logger.propagate = False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = _LateHandler(file)
    except OSError:
        logger.addHandler(logging.NullHandler())
        return None
    handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    return file


def stop_log() -> None:
    """Close the log's file."""
    logger = logging.getLogger("lens_tui")
    for handler in tuple(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
