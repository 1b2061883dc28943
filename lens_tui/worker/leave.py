"""End the process without waiting for a model."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn

from .protocol import WorkerLike


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
