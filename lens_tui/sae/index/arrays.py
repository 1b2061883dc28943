"""The arrays of an index on disk: whole numbers in the smallest type that holds them, read by name where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.file_arrays import FileArray, OpenFile, npy_array
from lens_tui.records.read_files import FileAbsent, read_json
from lens_tui.records.sanitise import one_line

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


def called(folder: Path) -> str:
    """The name of an index, safe to show."""
    return f"the index {one_line(folder.name, 60)}"


def damaged(folder: Path, name: str) -> LensError:
    """What is raised for a file of an index whose numbers cannot be."""
    return LensError(f"The file {one_line(name, 60)} of {called(folder)} is damaged.", "Build it anew.")


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of an index; raises :class:`LensError` if that would lie outside its folder."""
    try:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # a name that is none, links in a circle
        pass
    raise LensError(f"The manifest of {called(folder)} names a file outside it.", "Do not use it.")


def open_array(
    folder: Path, manifest: dict[str, Any], name: str, kind: Any, shape: tuple[int, ...] | None
) -> FileArray:
    """``NAME.npy``, not read yet. ``kind`` is a type or letters for kinds of type (``u``, ``f``, ``WHOLE``).

    Raises :class:`LensError` if its type is not that, nor what the manifest says of it, or its shape is another.
    """
    try:
        file = OpenFile(inside(folder, f"{name}.npy"), keep=False)
        array = npy_array(file, 0, file.size)
    except LensError as error:
        message = f"The file {one_line(name, 60)}.npy of {called(folder)} cannot be read."
        raise LensError(message, "Build it anew.") from error
    good = array.dtype.kind in kind if isinstance(kind, str) else array.dtype == kind
    good &= array.dtype.name == manifest.get("types", {}).get(f"{name}.npy", array.dtype.name)
    if not good or (shape is not None and array.shape != shape):
        raise damaged(folder, f"{name}.npy")
    return array


def types_of(folder: Path) -> dict[str, str]:
    """The type of every array below a folder, by file name; nothing but the files' headers is read."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.npy"))
    arrays = {name: open_array(folder, {}, name.removesuffix(".npy"), "biuf", None) for name in names}
    return {name: array.dtype.name for name, array in arrays.items()}


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``manifest.json`` says; raises :class:`LensError` where there is no index, or one of another version."""
    try:
        manifest = read_json(path / "manifest.json")
    except FileAbsent as error:
        where = one_line(str(path), 200)
        raise LensError(f"There is no index at {where!r}.", "Make one with `mlx-lens-tui index`.") from error
    except LensError as error:
        raise LensError(f"The manifest of {called(path)} is damaged.", "Build it anew.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise LensError(f"{called(path).capitalize()} is of another version.", "Build it anew.")
    for name in ("types", "files"):
        if not isinstance(manifest.get(name, {}), dict):
            raise LensError(f"The manifest of {called(path)} is damaged: {name} is no object.", "Build it anew.")
    return manifest


def octaves_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The octaves of activation that histogram and sample hold: first, and the one to end before."""
    first, end = manifest.get("octaves", (0, N_OCTAVES))
    if type(first) is not int or type(end) is not int or not 0 <= first < end <= N_OCTAVES:
        raise ValueError("octaves")
    return first, end
