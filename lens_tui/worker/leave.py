"""End the process without waiting for a model."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn

from .protocol import WorkerLike


def leave(worker: WorkerLike, code: int = 0, timeout: float = 0.1) -> NoReturn:
    """Close the worker and end the process with ``code``, whatever the model is doing.

    Files and logs are flushed; exit hooks are not run. Tearing the interpreter
    down takes longer than people wait, and around a thread that is inside an
    evaluation (which cannot be interrupted) it may abort.
    """
    worker.close(timeout)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
