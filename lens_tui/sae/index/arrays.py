"""The arrays of an index on disk: whole numbers in the smallest type that holds them, read by name as memory maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .settings import FORMAT, N_OCTAVES

Unsigned = np.unsignedinteger[Any]

WHOLE = "iu"
"""For :func:`open_array`: whole numbers of any size. Indexes made before types were chosen hold some with a sign."""


def narrow(numbers: NDArray[Any]) -> NDArray[Unsigned]:
    """Whole numbers from 0 up, in the smallest unsigned type that holds the largest of them."""
    return numbers.astype(kind_for(int(numbers.max(initial=0))), copy=False)


def kind_for(largest: int) -> np.dtype[Unsigned]:
    """The smallest unsigned type that holds 0 to ``largest``."""
    return np.dtype(np.min_scalar_type(largest))


def nobody(kind: np.dtype[Any]) -> int:
    """What stands in a free place among token numbers: all bits set, which is no token's number."""
    return int(np.iinfo(kind).max)


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of an index; raises :class:`LensError` if that would lie outside its folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LensError(f"The manifest of the index {folder.name} names a file outside it.", "Do not use it.")
    return path


def open_array(
    folder: Path, manifest: dict[str, Any], name: str, kind: Any, shape: tuple[int, ...] | None
) -> NDArray[Any]:
    """``NAME.npy``, mapped if it is large. ``kind`` is a type or letters for kinds of type (``u``, ``f``, ``WHOLE``).

    Raises :class:`LensError` if its type is not that, nor what the manifest says of it, or its shape is another.
    """
    file = inside(folder, f"{name}.npy")
    try:
        mapped = np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LensError(f"The file {name}.npy of the index {folder.name} cannot be read.", "Build it anew.") from error
    good = mapped.dtype.kind in kind if isinstance(kind, str) else mapped.dtype == kind
    good &= mapped.dtype.name == manifest.get("types", {}).get(f"{name}.npy", mapped.dtype.name)
    if not good or (shape is not None and mapped.shape != shape):
        raise LensError(f"The file {name}.npy of the index {folder.name} is damaged.", "Build it anew.")
    return np.asarray(mapped)


def types_of(folder: Path) -> dict[str, str]:
    """The type of every array below a folder, by file name; nothing but the files' headers is read."""
    files = sorted(folder.rglob("*.npy"))
    return {file.relative_to(folder).as_posix(): np.load(file, mmap_mode="r").dtype.name for file in files}


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``manifest.json`` says; raises :class:`LensError` where there is no index, or one of another version."""
    try:
        with (path / "manifest.json").open("rb") as file:
            manifest = json.loads(file.read(16 << 20))
    except OSError as error:
        raise LensError(f"There is no index at {str(path)!r}.", "Make one with `mlx-lens-tui index`.") from error
    except (ValueError, RecursionError) as error:
        raise LensError(f"The manifest of the index {path.name} is damaged.", "Build it anew.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise LensError(f"The index {path.name} is of another version.", "Build it anew.")
    return manifest


def octaves_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The octaves of activation that histogram and sample hold: first, and the one to end before."""
    first, end = manifest.get("octaves", (0, N_OCTAVES))
    if not 0 <= int(first) < int(end) <= N_OCTAVES:
        raise ValueError(f"octaves {first} to {end}")
    return int(first), int(end)
