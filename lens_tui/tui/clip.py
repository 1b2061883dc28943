"""Copying text: through the terminal (OSC 52) and, where one is there, the system's own tool."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.app import App

_TOOLS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))


def copy(app: App[object], text: str, what: str) -> None:
    """Copy ``text``; ``what`` says in the remark what it was. Works over ssh where the terminal knows OSC 52."""
    app.copy_to_clipboard(text)
    app.run_worker(lambda: _native(text), thread=True, exit_on_error=False, group="clip")
    app.notify(f"Copied {what} ({len(text)} characters).", markup=False, timeout=3)


def _native(text: str) -> bool:
    """Hand the text to the first tool there is; true if it took it."""
    for command in _TOOLS:
        if shutil.which(command[0]):
            try:
                done = subprocess.run(command, input=text.encode(), timeout=2, capture_output=True, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return True
    return False
