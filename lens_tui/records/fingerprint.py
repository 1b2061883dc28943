"""A hash of a file or folder's contents, quick enough for weights of many gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .errors import LensError
from .read_files import explained, open_regular

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
