"""The command ``mlx-lens-tui``: opens the app, or answers one question without it.

Nothing heavy is imported here; each verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_COMPLETION = "_MLX_LENS_TUI_COMPLETE"


def main() -> None:
    """Run the command line; the console script's entry point."""
    from .output import prepare_streams

    prepare_streams()
    asked = sys.argv[1:]
    if asked in ([], ["--demo"]) and _COMPLETION not in os.environ:
        _open(demo=bool(asked))
        return
    from .app import run

    run()


def _open(*, demo: bool) -> None:
    """The app as it is mostly opened. The parser of options is left out: it would hold up the first frame."""
    from .open_app import open_app
    from .output import sentences

    sentences(open_app)(demo=demo, model=None, theme=None)
