"""The log file: rotating, private to the user, safe to print on a terminal."""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

from . import paths
from .sanitise import sanitise

_MAX_BYTES = 1 << 20
_KEPT = 3


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return sanitise(super().format(record))


class _PrivateHandler(RotatingFileHandler):
    """Prompts and file names may be in tracebacks: nobody else may read them."""

    def _open(self) -> object:  # type: ignore[override]
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_private)


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
        handler: logging.Handler = _PrivateHandler(file, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
