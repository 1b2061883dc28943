"""Open the app on a terminal; elsewhere say what to use instead."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from lens_tui.records.errors import LensError

if TYPE_CHECKING:
    from lens_tui.records.info import Dequantize


def open_app(*, demo: bool, model: str | None, theme: str | None, dequantize: Dequantize | None = None) -> NoReturn:
    """Run the app and end the process with its status. Raises :class:`LensError` without a terminal."""
    if sys.stdout is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LensError(
            "The app needs a terminal, and this is none.", "Use `mlx-lens-tui compare` or `features`; see --help."
        )
    from lens_tui.tui.run import run
    from lens_tui.worker.protocol import end_process

    end_process(run(demo=demo, model=model, theme=theme, dequantize=dequantize))
