"""Starting the app: the terminal kept clean, the log, the settings, and a way out that never waits."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lens_tui.records import paths
from lens_tui.records.log import start_log
from lens_tui.tui.preferences import preferences

if TYPE_CHECKING:
    from lens_tui.records.info import Dequantize
    from lens_tui.records.session_file import SavedSession
    from lens_tui.tui.app import LensApp

CLOSE_PATIENCE = 0.15
MAX_STDERR = 1 << 20


def run(
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
    dequantize: Dequantize | None = None,
) -> int:
    """Open the app on a terminal and return the exit status.

    ``demo`` opens on Generate with the bundled model; ``model`` (a folder, a hub
    id or ``"demo"``) is loaded at once. ``theme``, ``keymap`` and ``dequantize`` win over the
    settings. Whatever C code writes to file descriptor 2 goes to the log.
    """
    log_path = start_log()
    with _Quiet(paths.log_file().with_name("stderr.log")):
        from lens_tui.worker.thread import Worker

        worker = Worker(history=paths.database_file() if preferences().keep_history else None)
        try:
            app = make_app(
                worker, demo=demo, model=model, theme=theme, keymap=keymap, log_path=log_path, dequantize=dequantize
            )
            app.run()
            app.recovery.end(well=not app.return_code)
        finally:
            worker.close(CLOSE_PATIENCE)
    if app.last_words:
        print(app.last_words, file=sys.stderr)  # noqa: T201
    return app.return_code or 0


def make_app(
    worker: object,
    *,
    demo: bool = False,
    model: str | None = None,
    theme: str | None = None,
    keymap: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    dequantize: Dequantize | None = None,
) -> LensApp:
    """The app as :func:`run` opens it, not yet running."""
    from lens_tui.tui.app import LensApp
    from lens_tui.tui.themes import DEFAULT_THEME

    user = preferences()
    opening = "demo" if demo else model or user.model
    return LensApp(
        worker,  # type: ignore[arg-type]
        start="generate" if demo else "load",
        open_model=opening or None,
        theme=theme or user.theme or DEFAULT_THEME,
        theme_folders=(paths.themes_folder(),),
        keymap={**user.keys, **(keymap or {})},
        tint=user.tint,
        sampling=user.sampling,
        problems=user.problems,
        log_path=log_path,
        take_up=None if demo or model else _cut_off(),
        autosave=user.keep_session,
        history=paths.database_file() if user.keep_history else None,
        dequantize=dequantize or user.dequantize,
    )


def _cut_off() -> SavedSession | None:
    if not paths.session_file().exists():
        return None
    from lens_tui.records.session_file import interrupted_session

    return interrupted_session()


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
        keep = self._path.exists() and self._path.stat().st_size < MAX_STDERR
        self._log = self._path.open("ab" if keep else "wb", buffering=0)
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
