"""Write files so that a kill at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import LensError
from .process import is_alive

_SUFFIX = ".partial"
_DAY = 86_400.0


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``, creating its folder. Raises :class:`LensError` if the disk refuses."""
    write_with(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_bytes`, compact JSON with a newline at the end. NaN and infinity are refused."""
    write_text(path, json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def write_with(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Replace ``path`` with what ``fill`` writes into the open file it is given.

    The bytes are on the disk (fsync) before the new file takes the old one's
    name. A symbolic link is followed, so a settings file kept elsewhere stays
    there. If ``fill`` raises, the old file is untouched and nothing is left.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(partial, target.stat().st_mode & 0o777)
        os.replace(partial, target)
        _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LensError(f"Could not write {target}: {reason}.", "Check free space and permissions.") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder never was
            partial.unlink()


def remove_leftovers(folder: Path) -> int:
    """Delete what writers killed in mid-write left in ``folder``; returns how many.

    Live writers are spared, for a day: by then the number is another process's.
    """
    removed = 0
    for partial in folder.glob(f".*{_SUFFIX}"):
        owner = partial.name.removesuffix(_SUFFIX).rpartition(".")[2].partition("-")[0]
        with contextlib.suppress(OSError):
            recent = time.time() - partial.stat().st_mtime < _DAY
            if not (recent and owner.isdigit() and is_alive(int(owner))):
                partial.unlink()
                removed += 1
    return removed


def _sync_folder(folder: Path) -> None:
    # The rename itself is only safe from a power cut once the folder is on the disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
