"""Weight files of strangers, opened as memory maps. Sizes are checked before anything is read; nothing is run."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
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
}
_AGAIN = "Fetch it again, or check that it is the right file."


def shown(path: Path) -> str:
    """The end of a path, safe to show."""
    return one_line("/".join(path.parts[-3:]), 120)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 4 MB. Raises ``LensError`` for anything else."""
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise LensError(f"{shown(path)} has {size / 1e6:.0f} MB, too many for a configuration.", _AGAIN)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LensError(
            f"{shown(path)} cannot be read: {error.strerror}.", "Check the path and permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise LensError(f"{shown(path)} is not valid JSON.", _AGAIN) from error
    if not isinstance(value, dict):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not an object.", _AGAIN)
    return value


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The float and integer tensors of a safetensors file by name, as memory maps."""
    size = _size(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise LensError(
                f"{shown(path)} is no whole safetensors file: its header is said to be {length} bytes.", _AGAIN
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _safetensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    except LensError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise LensError(f"{shown(path)} has a damaged safetensors header.", _AGAIN) from error


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


def mapped(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, nbytes: int, size: int
) -> NDArray[Any]:
    """``nbytes`` of a file from ``start`` on as an array, not read yet. Raises ``LensError`` if they do not fit."""
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise LensError(f"A tensor of {shown(path)} has {nbytes} bytes, not those of its shape {shape}.", _AGAIN)
    if start + nbytes > size:
        raise LensError(f"{shown(path)} is cut short: {size} bytes of {start + nbytes}.", _AGAIN)
    if nbytes == 0:
        return np.zeros(shape, dtype)
    whole = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(nbytes,))
    return whole.view(dtype).reshape(shape)


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
        raise LensError(f"{shown(path)} is no whole .npz file.", _AGAIN) from error


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


def member_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin in a zip file. Raises ``LensError`` if it is compressed."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise LensError(f"{shown(path)} is compressed.", "Save it again without compression (numpy.savez).")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise LensError(f"{shown(path)} is damaged.", _AGAIN)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(member.header_offset + 30 + name + extra)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise LensError(
            f"{shown(path)} cannot be read: {error.strerror}.", "Check the path and permissions."
        ) from error
