"""Weight files of strangers: which kind each is, and its tensors, read where they are looked at. Nothing is run."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui.records import LensError, read_files
from lens_tui.records.file_arrays import NUMBERS, FileArray, OpenFile, file_array, member_place, npy_array
from lens_tui.records.read_files import AGAIN, explained, open_zip, parse_json, shown
from lens_tui.records.sanitise import one_line
from lens_tui.records.torch_files import TorchTensor, load_torch

from .tensors import Stored

_MAX_JSON = 2 << 20
_MAX_HEADER = 2 << 20
"""Bytes of JSON: an empty list is two of them in a file, and seventy in memory."""
_MAX_ARRAYS = 10_000
_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 2 MB. Raises ``LensError`` for anything else."""
    value = read_files.read_json(path, _MAX_JSON)
    if not isinstance(value, dict):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not an object.", AGAIN)
    return value


def container(path: Path) -> str:
    """``safetensors``, ``npz`` or ``torch``, told by the first bytes of a file; ``""`` if it is none of them.

    Raises ``LensError`` for what cannot be read.
    """
    file = OpenFile(path)
    start = file.read(0, min(file.size, 9))
    if start[:4] == b"PK\x03\x04":
        if path.suffix in _BY_SUFFIX:  # what is wrong with it is said by the reader of what it wants to be
            return _BY_SUFFIX[path.suffix]
        with open_zip(path) as archive:
            return "npz" if any(name.endswith(".npy") for name in archive.namelist()) else "torch"
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= max(file.size, _MAX_HEADER):
        return "safetensors"
    return _BY_SUFFIX.get(path.suffix, "")


_BY_SUFFIX = {".npz": "npz", ".pt": "torch", ".pth": "torch"}


def read_values(path: Path) -> dict[str, Any]:
    """What a weight file holds by name, its tensors as :class:`Stored`, whatever its kind and name are.

    A torch file may hold other values beside them. Raises ``LensError`` for a file that is of no kind known here,
    is damaged, or asks for anything but tensors.
    """
    kind = container(path)
    if not kind and path.suffix != ".safetensors":
        raise LensError(
            f"{shown(path)} is not a weight file.", "Those that are read are safetensors, npz and torch files."
        )
    readers = {"npz": read_npz, "torch": read_torch, "safetensors": read_safetensors}
    return dict(readers[kind or "safetensors"](path))


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The float and integer tensors of a safetensors file by name, not read yet."""
    file = OpenFile(path)
    length = struct.unpack("<Q", file.read(0, 8))[0] if file.size >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, file.size - 8):
        raise LensError(
            f"{shown(path)} is not a whole safetensors file: its header is said to be {length} bytes.", AGAIN
        )
    try:
        header = parse_json(file.read(8, length), f"The header of {shown(path)}")
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _safetensor(file, name, entry, 8 + length) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except LensError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise LensError(f"{shown(path)} has a damaged safetensors header.", AGAIN) from error
    if sum(tensor.nbytes for tensor in found.values()) != end or 8 + length + end != file.size:
        raise LensError(f"{shown(path)} has other bytes than its header says.", AGAIN)
    return found


def _safetensor(file: OpenFile, name: str, entry: dict[str, Any], base: int) -> Stored:
    kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise LensError(
            f"The tensor {one_line(name, 60)} of {shown(file.path)} is of type {one_line(str(kind), 20)}.", NUMBERS
        )
    if not isinstance(shape, list) or not all(
        type(number) is int and 0 <= number < 1 << 62 for number in (start, stop, *shape)
    ):
        raise ValueError(name)
    array = file_array(file, _TYPES[kind], shape, base + start, stop - start)
    return Stored(one_line(name, 60), array, kind == "BF16")


def read_npz(path: Path) -> dict[str, Stored]:
    """The arrays of an ``.npz``, not read yet; compressed ones are refused, for their parts cannot be read alone."""
    file, found = OpenFile(path), {}
    with explained(path), open_zip(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > _MAX_ARRAYS:
            raise LensError(f"{shown(path)} holds {len(members)} arrays.", AGAIN)
        for member in members:
            name = member.filename.removesuffix(".npy")
            found[name] = Stored(one_line(name, 60), npy_array(file, *member_place(file, member)))
    return found


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary that a ``.pt`` file holds, its tensors as :class:`Stored`."""
    value = load_torch(path)
    if not isinstance(value, dict):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not a dictionary of tensors.", AGAIN)
    return {str(name): _stored(str(name), item) for name, item in value.items()}


def _stored(name: str, value: Any) -> Any:
    if not isinstance(value, TorchTensor):
        return value
    array = value.array if isinstance(value.array, FileArray) else np.asarray(value.array)
    return Stored(one_line(name, 60), array, value.bfloat16)
