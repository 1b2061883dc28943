"""A rotating log file that only its user may read."""

from __future__ import annotations

import os
from logging.handlers import RotatingFileHandler

MAX_BYTES = 1 << 20
KEPT = 3


class PrivateFile(RotatingFileHandler):
    """Prompts and file names may be in tracebacks: nobody else may read them."""

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8")

    def _open(self) -> object:  # type: ignore[override]
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
