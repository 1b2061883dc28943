"""The models used lately: ids and folders, newest first. Convenience only, so a broken file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

from . import atomic, paths

LIMIT = 20


def recent_models(path: Path | None = None) -> list[str]:
    """What was loaded lately (hub ids, folders, ``demo``), newest first."""
    try:
        found = json.loads((path or paths.recent_file()).read_text(encoding="utf-8"))
        return [str(item) for item in found["models"]][:LIMIT]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remember_model(model: str, path: Path | None = None) -> None:
    """Put ``model`` at the head of the list."""
    names = [model, *(name for name in recent_models(path) if name != model)]
    atomic.write_json(path or paths.recent_file(), {"models": names[:LIMIT]})


def forget_model(model: str, path: Path | None = None) -> None:
    """Take ``model`` off the list."""
    names = [name for name in recent_models(path) if name != model]
    atomic.write_json(path or paths.recent_file(), {"models": names})
