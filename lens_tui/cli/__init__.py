"""The command ``mlx-lens-tui``: opens the app, or answers one question without it.

Nothing heavy is imported here; each verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

try:
    from lens_tui.records.errors import LensError

    from .output import INTERRUPTED, fail, prepare_streams, sentences
except KeyboardInterrupt:  # what says so everywhere else is not there yet
    if "--json" in sys.argv:
        print('{"error": {"message": "Stopped.", "hint": ""}}')  # noqa: T201 - what prints is not imported
    print("mlx-lens-tui: Stopped.", file=sys.stderr)  # noqa: T201
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from lens_tui.records.info import Dequantize

__all__ = ["main"]

_COMPLETION = "_MLX_LENS_TUI_COMPLETE"


def main() -> None:
    """Run the command line; the console script's entry point."""

    prepare_streams()
    asked = sys.argv[1:]
    try:
        os.getcwd()
    except OSError:  # what is imported from now on looks there, and would say of itself that it is not found
        fail("The folder that this was started in is gone.", "Change to one that exists.", as_json="--json" in asked)
    if asked in ([], ["--demo"]) and _COMPLETION not in os.environ:
        # As it is mostly opened: the parser of options is left out, for it would hold up the first frame.
        sentences(open_app)(demo=bool(asked))
        return
    try:
        from .command import run
    except KeyboardInterrupt:  # no verb is there yet to say so
        fail("Stopped.", as_json="--json" in asked, status=INTERRUPTED)
    run()


def open_app(
    *,
    demo: bool,
    model: str | None = None,
    theme: str | None = None,
    dequantize: Dequantize | None = None,
    resume: bool = False,
) -> NoReturn:
    """Run the app and end the process with its status. Raises ``LensError`` without a terminal that can show it.

    Args:
        demo: Open on Generate with the bundled model.
        model: A folder or hub id to load at once.
        theme: A theme by name.
        resume: Take up the newest session, cut off or not.
        dequantize: How weights are held; by default as the settings say.
    """
    in_browser = os.environ.get("TEXTUAL_DRIVER", "").startswith("textual.drivers.web_driver:")
    if sys.stdout is None or not (in_browser or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise LensError(
            "The app needs a terminal, and this is not one.", "Use `mlx-lens-tui compare` or `features`; see --help."
        )
    if not in_browser and os.environ.get("TERM") == "dumb":
        raise LensError(
            "The app draws on the whole screen, and by TERM=dumb this terminal cannot.",
            "Set TERM to what it is, as xterm-256color, or use `mlx-lens-tui compare` or `features`; see --help.",
        )
    from lens_tui.tui.start import run
    from lens_tui.worker.thread import end_process

    end_process(run(demo=demo, model=model, theme=theme, dequantize=dequantize, resume=resume))
