"""NumPy files, without pickle: ``.npy`` of one array, ``.npz`` of one array a layer or a name.

The names of an ``.npz`` end in the layer's number (``12``, ``layer_12``, ``direction.12``); an array of another
name takes the layer that is asked for. What the axes of an array are is found in ``common``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..file_arrays import npy_header
from ..read_files import AGAIN, open_zip, read_member, shown
from ..sanitise import one_line
from ..vectors import SteeringVector
from .common import MAX_BYTES, Entry, Found, by_layer, entry_of, raw, read_whole


def read_npy(path: Path) -> Found:
    """One array, of any shape that :mod:`.common` knows."""
    return Found([Entry("", None, _array(path, read_whole(path)))])


def read_npz(path: Path) -> Found:
    """Arrays by their names."""
    entries, left = [], MAX_BYTES
    with open_zip(path, MAX_BYTES) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                data = read_member(path, archive, member, left)
                left -= len(data)
                entries.append(entry_of(member.filename.removesuffix(".npy"), _array(path, data)))
    if len(entries) == 1 and entries[0].layer is None:
        entries = [Entry("", None, entries[0].array)]
    return Found(entries)


def write_npy(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """One vector, shape (d_model,), at its own length; layer and site are not in the file."""
    if len(vectors) != 1:
        raise LensError("A .npy file holds one vector.", "Use .npz, .gguf or .safetensors for several.")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, raw(vectors[0]), allow_pickle=False)
    return buffer.getvalue()


def write_npz(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """Arrays ``layer_L``, each (d_model,), at their own length."""
    by_layer(vectors, ".npz")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"layer_{vector.layer}": raw(vector) for vector in vectors}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _array(path: Path, data: bytes) -> NDArray[Any]:
    """The array of an ``.npy``: its size is checked against its bytes before there is an array at all."""
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = npy_header(file)
        if dtype.kind not in "fiu":
            raise ValueError(f"it holds {dtype}")
        if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"shape {shape} does not fit its bytes")
        flat = np.frombuffer(data, dtype, offset=file.tell())
    except ValueError as error:
        reason = one_line(str(error), 60)
        raise LensError(f"{shown(path)} cannot be read as an array of numbers ({reason}).", AGAIN) from error
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
