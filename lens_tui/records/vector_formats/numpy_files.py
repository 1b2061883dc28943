"""NumPy files, without pickle: ``.npy`` of (d_model,) or (n_layers, d_model), ``.npz`` of one array a layer.

Row L of a matrix is the output of block L, counted from 0. The names of an ``.npz`` end in the layer's
number (``12``, ``layer_12``, ``direction.12``); a single array of another name takes the layer that is asked for.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..read_files import AGAIN, shown
from ..sanitise import one_line
from ..vectors import SteeringVector
from .common import MAX_BYTES, Found, by_layer, raw, read_bytes


def read_npy(path: Path) -> Found:
    """One vector, or one a layer."""
    array = _array(path, read_bytes(path))
    if array.ndim == 2:
        return Found(list(enumerate(array)))
    return Found([(None, array)])


def read_npz(path: Path) -> Found:
    """Vectors by the number at the end of their names."""
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            if sum(item.file_size for item in members) > MAX_BYTES:
                raise LensError(f"{shown(path)} is too large for steering vectors.", "Is it a model?")
            arrays = {item.filename.removesuffix(".npy"): _array(path, archive.read(item)) for item in members}
    except LensError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error, struct.error) as error:
        raise LensError(f"{shown(path)} is no whole .npz file.", AGAIN) from error
    if len(arrays) == 1:
        ((name, array),) = arrays.items()
        if array.ndim == 2:
            return Found(list(enumerate(array)))
        return Found([(_layer(name), array)])
    rows = [(_layer(name), array) for name, array in arrays.items()]
    if any(layer is None for layer, _ in rows):
        wrong = next(name for name in arrays if _layer(name) is None)
        raise LensError(
            f"The array {one_line(wrong, 40)!r} of {shown(path)} names no layer.", "Name arrays layer_0, layer_1, ..."
        )
    return Found(rows)


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
    try:
        array = _parse(data)
    except LensError:
        raise
    except Exception as error:  # numpy evaluates the header as Python and meets every kind of nonsense
        reason = one_line(f"{type(error).__name__}: {error}", 60)
        raise LensError(f"{shown(path)} cannot be read as an array of numbers ({reason}).", AGAIN) from error
    if array.ndim not in (1, 2):
        raise LensError(f"{shown(path)} has shape {array.shape}.", "Vectors are (d_model,) or (n_layers, d_model).")
    return array


def _parse(data: bytes) -> NDArray[Any]:
    """The array of an ``.npy``: its size is checked against its bytes before there is an array at all."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    if dtype.kind not in "fiu" or dtype.hasobject:
        raise ValueError(f"it holds {dtype}")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shape} does not fit its bytes")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _layer(name: str) -> int | None:
    found = re.fullmatch(r"(?:.*[^0-9])?([0-9]{1,5})", name)
    return int(found[1]) if found else None
