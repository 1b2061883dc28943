"""The hashes of the files that ship, so that a broken or changed one is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

LIST = "SHA256SUMS"


def listed(folder: Path) -> str:
    """A line a data file below ``folder``, as ``sha256sum`` writes them; the list itself is left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")]
    names = sorted(path.relative_to(folder).as_posix() for path in files if path.name != LIST)
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def write(folder: Path) -> Path:
    """Write the list into the folder; returns its path."""
    out = folder / LIST
    out.write_text(listed(folder), encoding="utf-8")
    return out
