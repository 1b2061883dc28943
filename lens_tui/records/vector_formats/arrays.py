"""NumPy's and torch's files, without pickle: ``.npy`` of one array, ``.npz`` and ``.pt`` of one a layer or a name.

The names of an ``.npz`` end in the layer's number (``12``, ``layer_12``, ``direction.12``); an array of another
name takes the layer that is asked for. What the axes of an array are is found in ``common``.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..file_arrays import npy_header
from ..read_files import AGAIN, open_zip, read_member, regular_size, short_path
from ..sanitise import one_line
from ..steering_vector import SteeringVector
from ..torch_files import Fields, TorchTensor, load_torch
from .common import MAX_BYTES, Found, NamedArray, Row, by_layer, entry_of, raw, read_whole


def read_npy(path: Path) -> Found:
    """One array, of any shape that :mod:`.common` knows."""
    return Found([NamedArray("", None, _array(path, read_whole(path)))])


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
        entries = [NamedArray("", None, entries[0].array)]
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
        raise LensError(f"{short_path(path)} cannot be read as an array of numbers ({reason}).", AGAIN) from error
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


OBJECTS = ("steering_vectors.steering_vector.SteeringVector",)
_SITES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
_NAME = re.compile(r"(?:^|[_-])layer[_-]?([0-9]{1,4})(?:_(.+))?$", re.IGNORECASE)


def read_pt(path: Path) -> Found:
    """The vectors of a ``.pt`` file."""
    regular_size(path, MAX_BYTES)
    value = load_torch(path, OBJECTS)
    if isinstance(value, TorchTensor):
        layer, model = named(path.stem)
        facts = {"model_hint": model} if model else {}
        site = "resid_pre" if path.stem == "mean_diffs" and len(value.array.shape) == 3 else "resid_post"
        return Found([NamedArray("", layer, _numbers(path, value))], site=site, counted=True, facts=facts)
    if isinstance(value, Fields):
        kind = value.values.get("layer_type", "decoder_block")
        if not isinstance(kind, str) or kind not in _SITES:
            raise LensError(
                f"{short_path(path)} is for {one_line(str(kind)[:60], 30)}, which is not a site of this library."
            )
        return Found(_entries(path, value.values.get("layer_activations")), site=_SITES[kind], counted=True)
    return Found(_entries(path, value))


def named(stem: str) -> tuple[int | None, str]:
    """The layer and the model in the name of a CAA file."""
    found = _NAME.search(stem)
    return (int(found[1]), one_line(found[2] or "", 80)) if found else (None, "")


def _entries(path: Path, value: Any) -> list[NamedArray]:
    """The tensors of a dictionary, or of the dictionaries in it by their names."""
    if not isinstance(value, Mapping):
        raise LensError(f"{short_path(path)} holds a {type(value).__name__}, not vectors by layer or name.", AGAIN)
    found = []
    for key, item in value.items():
        if isinstance(item, TorchTensor):
            found.append(entry_of(key, _numbers(path, item)))
        elif isinstance(item, Mapping):
            inner = [entry_of(at, _numbers(path, part)) for at, part in item.items() if isinstance(part, TorchTensor)]
            found += [NamedArray(f"{key}{'.' if one.name else ''}{one.name}", one.layer, one.array) for one in inner]
    if not found:
        raise LensError(f"{short_path(path)} contains no tensor.", AGAIN)
    said = value.get("layer")
    if type(said) is int and len(found) == 1 and found[0].layer is None:
        return [NamedArray("", said, found[0].array)]
    return found


def _numbers(path: Path, tensor: TorchTensor) -> Row:
    if 4 * math.prod(tensor.array.shape) > MAX_BYTES:
        raise LensError(f"{short_path(path)} is too large for steering vectors.", "Is it a model?")
    return tensor.float32()
