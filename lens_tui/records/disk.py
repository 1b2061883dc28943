"""Whether another process still runs: what tells a crash from an app that is open elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from .errors import LensError
from .machine import launched_rank
from .read_files import explained, open_regular

_PS_PATIENCE = 2.0


def is_alive(process: int, born: str = "") -> bool:
    """Whether a process runs. Numbers are used again: ``born``, its :func:`birth`, tells it from a later one.

    Without ``born``, and where the system does not say when a process began, a true answer may be about another.
    """
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # no system has such a number
    except OSError:
        pass  # it is there and not ours
    return not born or birth(process) in ("", born)


def is_owner_alive(owner: int, born: str) -> bool:
    """Whether the process that wrote a record of its number and birth runs.

    This version always writes its birth, so a record of our number without one was left by an older version whose
    process had the same number: in a container every one has.
    """
    return born == own_birth() if owner == os.getpid() else is_alive(owner, born)


def birth(process: int) -> str:
    """When a process began, in the words of the system, the boot of the machine with it; empty if it does not say."""
    try:
        # The name in brackets may hold anything; the 22nd field is the start in ticks since the boot.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {fields[19]}"
    except (OSError, IndexError, ValueError):
        return "" if sys.platform == "linux" else _start_by_ps(process)


@cache
def own_birth() -> str:
    """The :func:`birth` of this process."""
    return birth(os.getpid())


def _start_by_ps(process: int) -> str:
    command = ["ps", "-o", "lstart=", "-p", str(process)]
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PS_PATIENCE, env=env, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(done.stdout.split())


_WHOLE = 64 << 20
_PIECE = 1 << 20
_PIECES = 16


def fingerprint(path: Path | str) -> str:
    """32 hex digits that name the contents of a file, or of every file below a folder.

    Files up to 64 MiB are hashed whole (SHA-256); of a larger one its size and
    16 pieces of 1 MiB, evenly spaced from its first to its last byte. Two
    different checkpoints do not collide; a file altered on purpose between the
    pieces can. Hidden files are left out. Raises :class:`LensError` where there
    is nothing to read.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p, root))
    if not files:
        raise LensError(f"There is no file to hash at {str(path)!r}.", "Check the path.")
    total = hashlib.sha256()
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        total.update(f"{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        total.update(_digest(file))
    return total.hexdigest()[:32]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _digest(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with explained(file), open_regular(file) as handle:
        if size <= _WHOLE:
            while piece := handle.read(_PIECE):
                digest.update(piece)
            return digest.digest()
        for step in range(_PIECES):
            handle.seek((size - _PIECE) * step // (_PIECES - 1))
            digest.update(handle.read(_PIECE))
    return digest.digest()


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
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Compact JSON with a newline at the end. NaN and infinity are refused (``ValueError``)."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n"


def free_files(folder: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
    """Files of one name in a folder, none of which is there: a number follows the name where one is.

    Args:
        folder: It need not be there.
        name: Without suffix.
        suffixes: Without the dot; a file for each.
    """
    number = 1
    while True:
        stem = f"{name}-{number}" if number > 1 else name
        files = [folder / f"{stem}.{suffix}" for suffix in suffixes]
        if not any(file.exists() for file in files):
            return files
        number += 1


def write_with(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Replace ``path`` with what ``fill`` writes into the open file it is given.

    The bytes are on the disk (fsync) before the new file takes the old one's
    name. A symbolic link is followed, so a settings file kept elsewhere stays
    there. If ``fill`` raises, the old file is untouched and nothing is left.
    """
    if launched_rank():  # another of the processes that were started together writes it
        with open(os.devnull, "wb") as nowhere:
            fill(nowhere)
        return
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
