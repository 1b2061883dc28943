"""Arrays inside files of strangers, as memory maps. Sizes are checked before anything is read."""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import warnings
import weakref
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .read_files import AGAIN, explained, open_regular, shown

__all__ = ["AGAIN", "mapped", "member_start", "npy_header", "shown"]

MAX_DIMENSIONS = 8
_MAX_NPY_HEADER = 64 << 10
_maps: weakref.WeakValueDictionary[tuple[int, ...], mmap.mmap] = weakref.WeakValueDictionary()
"""The maps in use, one a file: each holds a descriptor, and a file may have more tensors than there are of those."""


def mapped(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, nbytes: int, size: int
) -> NDArray[Any]:
    """``nbytes`` of a file from ``start`` on as a read-only array, not read yet.

    ``size`` is the file's. Raises ``LensError`` if the bytes do not fit the shape or the file.
    """
    if len(shape) > MAX_DIMENSIONS:  # before any product of them is made
        raise LensError(f"A tensor of {shown(path)} has {len(shape)} dimensions.", AGAIN)
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise LensError(f"A tensor of {shown(path)} has {nbytes} bytes, not those of its shape {shape}.", AGAIN)
    if start + nbytes > size:
        raise LensError(f"{shown(path)} is cut short: {size} bytes of {start + nbytes}.", AGAIN)
    if nbytes == 0:
        return np.zeros(shape, dtype)
    whole = _map(path)
    if start + nbytes > len(whole):
        raise LensError(f"{shown(path)} was changed while it was read.", "Try again.")
    return np.frombuffer(whole, np.uint8, nbytes, start).view(dtype).reshape(shape)


def _map(path: Path) -> mmap.mmap:
    with explained(path), open_regular(path) as file:
        facts = os.fstat(file.fileno())
        key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        found = _maps.get(key)
        if found is None:
            _maps[key] = found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return found


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of an ``.npy``; ``file`` stands at its first byte, then at its data.

    Raises ``ValueError`` for all that is no header of an array of plain numbers.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("not a NumPy file")
    counted = file.read(2 if magic[6] == 1 else 4)
    length = int.from_bytes(counted, "little")
    if length > _MAX_NPY_HEADER:  # NumPy reads it all before it looks
        raise ValueError("a header without end")
    header = io.BytesIO(counted + file.read(length))
    read = np.lib.format.read_array_header_1_0 if magic[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            shape, fortran, dtype = read(header)
    except Exception as error:  # the header is evaluated as Python and meets every kind of nonsense
        raise ValueError(f"{type(error).__name__} in the header") from error
    if dtype.hasobject or dtype.kind not in "biufc" or dtype.itemsize == 0:
        raise ValueError(f"it holds {str(dtype)[:40]}")
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("no shape of an array")
    return shape, fortran, dtype


def member_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin in a zip file. Raises ``LensError`` if it is compressed."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise LensError(f"{shown(path)} is compressed.", "Save it again without compression (numpy.savez).")
    with explained(path), open_regular(path) as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise LensError(f"{shown(path)} is damaged.", AGAIN)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(member.header_offset + 30 + name + extra)
