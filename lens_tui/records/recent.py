"""The models used lately: ids and folders, newest first. Convenience only, so a broken file counts as empty."""

from __future__ import annotations

from pathlib import Path

from . import disk, paths
from .errors import LensError
from .read_files import read_json

LIMIT = 20


def recent_models(path: Path | None = None) -> list[str]:
    """What was loaded lately (hub ids, folders, ``demo``), newest first."""
    try:
        found = read_json(path or paths.recent_file())
    except LensError:
        return []
    names = found.get("models") if isinstance(found, dict) else None
    return [name for name in names if isinstance(name, str)][:LIMIT] if isinstance(names, list) else []


def remember_model(model: str, path: Path | None = None) -> None:
    """Put ``model`` at the head of the list."""
    names = [model, *(name for name in recent_models(path) if name != model)]
    disk.write_json(path or paths.recent_file(), {"models": names[:LIMIT]})


def forget_model(model: str, path: Path | None = None) -> None:
    """Take ``model`` off the list."""
    names = [name for name in recent_models(path) if name != model]
    disk.write_json(path or paths.recent_file(), {"models": names})
