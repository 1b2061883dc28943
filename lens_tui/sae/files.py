"""Weight files of strangers, opened as memory maps. Sizes are checked before anything is read; nothing is run."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.mapped import AGAIN, mapped, member_start, shown
from lens_tui.records.sanitise import one_line

from .tensors import Stored

_MAX_JSON = 4 << 20
_MAX_HEADER = 16 << 20
_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 4 MB. Raises ``LensError`` for anything else."""
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise LensError(f"{shown(path)} has {size / 1e6:.0f} MB, too many for a configuration.", AGAIN)
        value = json.loads(path.read_text(encoding="utf-8"))
    except LensError:
        raise
    except OSError as error:
        raise LensError(
            f"{shown(path)} cannot be read: {error.strerror}.", "Check the path and permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise LensError(f"{shown(path)} is not valid JSON.", AGAIN) from error
    if not isinstance(value, dict):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not an object.", AGAIN)
    return value


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The float and integer tensors of a safetensors file by name, as memory maps."""
    size = _size(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise LensError(
                f"{shown(path)} is no whole safetensors file: its header is said to be {length} bytes.", AGAIN
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _safetensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    except LensError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise LensError(f"{shown(path)} has a damaged safetensors header.", AGAIN) from error


def _safetensor(path: Path, name: str, entry: dict[str, Any], base: int, size: int) -> Stored:
    kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _TYPES:
        raise LensError(
            f"The tensor {one_line(name, 60)} of {shown(path)} is of type {one_line(str(kind), 20)}.", _KINDS
        )
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError(name)
    return Stored(
        one_line(name, 60), mapped(path, _TYPES[kind], tuple(shape), base + start, stop - start, size), kind == "BF16"
    )


_KINDS = "Only float and integer tensors can be read."


def read_npz(path: Path) -> dict[str, Stored]:
    """The arrays of an ``.npz`` as memory maps; compressed ones are refused, for they cannot be mapped."""
    size = _size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.filename.removesuffix(".npy"): _npy(path, archive, member, size) for member in archive.infolist()
            }
    except LensError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise LensError(f"{shown(path)} is no whole .npz file.", AGAIN) from error


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> Stored:
    start = member_start(path, member)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        offset = file.tell()
    name = one_line(member.filename.removesuffix(".npy"), 60)
    if dtype.kind not in "fi" or dtype.hasobject:
        raise LensError(f"The array {name} of {shown(path)} is of type {one_line(str(dtype), 20)}.", _KINDS)
    nbytes = member.file_size - offset
    if fortran:
        return Stored(name, mapped(path, dtype, shape[::-1], start + offset, nbytes, size).T)
    return Stored(name, mapped(path, dtype, shape, start + offset, nbytes, size))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise LensError(
            f"{shown(path)} cannot be read: {error.strerror}.", "Check the path and permissions."
        ) from error
