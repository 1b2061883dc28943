"""vLLM-Lens' vectors: JSON with the activations as base64 of zstd, and the layers, scale and positions they are for.

``{"activations": {"data", "dtype", "original_dtype", "shape", "compression"}, "layer_indices", "scale",
"norm_match", "position_indices"}``; a layer is the output of that block, counted from 0. bfloat16 is
stored as int16. Frames of older versions are not compressed.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..read_files import parse_json, short_path
from ..sanitise import one_line
from ..steering_vector import SteeringVector
from .common import MAX_BYTES, Found, NamedArray, by_layer, raw, read_whole

_FORM = "Vectors in JSON are one object as vLLM-Lens writes it, with activations and layer_indices."
_DTYPES = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "int16": "<i2"}


def read(path: Path) -> Found:
    """The vectors of a vLLM-Lens file; ``scale`` and ``norm_match`` are kept among the facts."""
    return parse(parse_json(read_whole(path), short_path(path), _FORM), short_path(path))


def parse(data: Any, where: str) -> Found:
    """As :func:`read`, of the JSON value itself; ``where`` names it in errors."""
    try:
        rows = _activations(data["activations"])
        layers = data["layer_indices"]
        if not isinstance(layers, list) or not all(type(at) is int for at in layers) or len(layers) != len(rows):
            raise ValueError("layer_indices do not fit the activations")
        scale = float(data.get("scale", 1.0))
    except LensError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 80)
        raise LensError(f"{where} is not a vLLM-Lens vector ({reason}).", _FORM) from error
    positions = data.get("position_indices")
    facts = {"scale": scale if math.isfinite(scale) else 1.0, "norm_match": data.get("norm_match") is True}
    if isinstance(positions, list):
        facts["positions"] = [at for at in positions if type(at) is int]  # type: ignore[assignment]
    entries = [NamedArray("", layer, row) for layer, row in zip(layers, rows, strict=True)]
    return Found(entries, counted=True, facts=facts)


def write(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """The file's bytes: float32, scale 1, all positions, ``norm_match`` off, unless the vectors came with others."""
    by_layer(vectors, "vLLM-Lens JSON")
    rows = np.stack([raw(vector) for vector in vectors]).astype("<f4")
    facts = vectors[0].origin.facts
    data = {
        "activations": {
            "data": base64.b64encode(_compress(rows.tobytes())).decode("ascii"),
            "dtype": "float32",
            "original_dtype": "torch.float32",
            "shape": list(rows.shape),
            "compression": "zstd",
        },
        "layer_indices": [vector.layer for vector in vectors],
        "scale": float(facts.get("scale", 1.0)) if isinstance(facts.get("scale", 1.0), int | float) else 1.0,
        "norm_match": facts.get("norm_match") is True,
        "position_indices": None,
    }
    return (json.dumps(data, allow_nan=False) + "\n").encode()


def _activations(entry: dict[str, Any]) -> NDArray[Any]:
    shape, dtype = entry["shape"], entry["dtype"]
    if dtype not in _DTYPES or not isinstance(shape, list) or len(shape) not in (2, 3):
        raise ValueError(f"dtype {dtype}, shape {shape}")
    if not all(type(size) is int and 0 < size < 1 << 24 for size in shape):
        raise ValueError(f"shape {shape}")
    kind = np.dtype(_DTYPES[dtype])
    size = math.prod(shape) * kind.itemsize
    if size > MAX_BYTES:
        raise ValueError("too large")
    data = base64.b64decode(entry["data"], validate=True)
    if entry.get("compression") == "zstd":
        data = _decompress(data, size)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes for shape {shape}")
    array = np.frombuffer(data, kind).reshape(shape)
    if entry.get("original_dtype") == "torch.bfloat16":
        if dtype != "int16":
            raise ValueError("bfloat16 that is not stored as int16")
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "int16":
        raise ValueError("integers")
    return array


def _decompress(data: bytes, size: int) -> bytes:
    """At most ``size`` + 1 bytes come out, whatever the frame claims."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        try:
            return zstd.ZstdDecompressor().decompress(data, size + 1)
        except zstd.ZstdError as error:
            raise ValueError(f"zstd: {error}") from error
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
            return bytes(reader.read(size + 1))
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error


def _compress(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.compress(data)
    import zstandard

    return bytes(zstandard.ZstdCompressor().compress(data))
