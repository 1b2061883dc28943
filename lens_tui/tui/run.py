"""Starting the app: the terminal kept clean, the log, the settings, and a way out that never waits."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lens_tui.records import paths

if TYPE_CHECKING:
    from lens_tui.tui.app import LensApp

CLOSE_PATIENCE = 0.15


def run(
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
) -> int:
    """Open the app on a terminal and return the exit status.

    ``demo`` opens on Generate with the bundled model; ``model`` (a folder, a hub
    id or ``"demo"``) is loaded at once. ``theme`` and ``keymap`` win over the
    settings. Whatever C code writes to file descriptor 2 goes to the log.
    """
    log_path = paths.log_file()
    with _Quiet(log_path):
        from lens_tui.worker.thread import Worker

        worker = Worker()
        try:
            app = make_app(worker, demo=demo, model=model, theme=theme, keymap=keymap, log_path=log_path)
            app.run()
            return app.return_code or 0
        finally:
            worker.close(CLOSE_PATIENCE)


def make_app(
    worker: object,
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
    log_path: Path | None = None,
) -> LensApp:
    """The app as :func:`run` opens it, not yet running."""
    from lens_tui.tui.app import LensApp
    from lens_tui.tui.themes import DEFAULT_THEME

    return LensApp(
        worker,  # type: ignore[arg-type]
        start="generate" if demo else "load",
        open_model="demo" if demo else model,
        theme=theme or DEFAULT_THEME,
        theme_folders=(paths.themes_folder(),),
        keymap=keymap,
        log_path=log_path,
    )


class _Quiet:
    """Textual draws on the terminal through file descriptor 2; all else that writes there goes to the log.

    Metal, tokenizers and crashing C code print on descriptor 2, in the middle
    of the picture. So the terminal gets a descriptor of its own, which
    ``sys.__stderr__`` names while the app runs, and descriptor 2 is the log.
    """

    def __init__(self, log_path: Path) -> None:
        self._path = log_path

    def __enter__(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = self._path.open("ab", buffering=0)
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._before = sys.__stderr__
        self._terminal: TextIO = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        sys.__stderr__ = self._terminal  # type: ignore[misc]
        os.dup2(self._log.fileno(), 2)
        faulthandler.enable(self._log)

    def __exit__(self, *_error: object) -> None:
        faulthandler.disable()
        self._terminal.flush()
        sys.__stderr__ = self._before  # type: ignore[misc]
        os.dup2(self._saved, 2)
        os.close(self._saved)
        self._terminal.close()
        self._log.close()
