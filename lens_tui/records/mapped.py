"""Arrays inside files of strangers, as memory maps. Sizes are checked before anything is read."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .sanitise import one_line

AGAIN = "Fetch it again, or check that it is the right file."


def shown(path: Path) -> str:
    """The end of a path, safe to show."""
    return one_line("/".join(path.parts[-3:]), 120)


def mapped(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, nbytes: int, size: int
) -> NDArray[Any]:
    """``nbytes`` of a file from ``start`` on as an array, not read yet. Raises ``LensError`` if they do not fit."""
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise LensError(f"A tensor of {shown(path)} has {nbytes} bytes, not those of its shape {shape}.", AGAIN)
    if start + nbytes > size:
        raise LensError(f"{shown(path)} is cut short: {size} bytes of {start + nbytes}.", AGAIN)
    if nbytes == 0:
        return np.zeros(shape, dtype)
    whole = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(nbytes,))
    return whole.view(dtype).reshape(shape)


def member_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin in a zip file. Raises ``LensError`` if it is compressed."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise LensError(f"{shown(path)} is compressed.", "Save it again without compression (numpy.savez).")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise LensError(f"{shown(path)} is damaged.", AGAIN)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(member.header_offset + 30 + name + extra)
