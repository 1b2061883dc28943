"""Safetensors files. Ours: one vector (``vectors_io``), or several as tensors ``0``, ``1``, ... with their records.

Others': tensors by their names, told apart as in ``common``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import to_json, vector_from_json
from ..errors import LensError
from ..read_files import AGAIN, explained, parse_json, shown
from ..vectors import SteeringVector
from ..vectors_io import FORMAT, check_header, kept_facts, load_vector
from .common import MAX_BYTES, MAX_LAYERS, Found, Row, entry_of, read_whole

SEVERAL = f"{FORMAT}s"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read(path: Path) -> tuple[SteeringVector, ...] | None:
    """The vectors of a file of ours, to the last bit; ``None`` if it is a safetensors file of others."""
    from safetensors import safe_open

    check_header(path, MAX_BYTES)
    with explained(path), safe_open(path, framework="np") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        if metadata.get("format") == FORMAT:
            return (load_vector(path),)
        if metadata.get("format") != SEVERAL:
            return None
        described = parse_json(metadata["records"], shown(path))
        if not isinstance(described, list) or not 0 < len(described) <= MAX_LAYERS:
            raise ValueError("records")
        tensors = [opened.get_tensor(str(index)) for index in range(len(described))]
        return tuple(_vector(path, data, tensor) for data, tensor in zip(described, tensors, strict=True))


def read_others(path: Path) -> Found:
    """The tensors of any safetensors file, by their names."""
    from safetensors import deserialize

    check_header(path, MAX_BYTES)
    with explained(path):
        tensors = deserialize(read_whole(path))  # type: ignore[no-untyped-call]
        return Found([entry_of(name, _array(path, facts)) for name, facts in tensors])


def write(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """The bytes of a file of several vectors."""
    from safetensors.numpy import save

    described = [
        {key: value for key, value in to_json(kept_facts(one)).items() if key != "direction"} for one in vectors
    ]
    metadata = {"format": SEVERAL, "version": "1", "records": json.dumps(described)}
    tensors = {str(at): np.ascontiguousarray(one.direction, dtype=np.float32) for at, one in enumerate(vectors)}
    return save(tensors, metadata)


def _array(path: Path, facts: Any) -> Row:
    kind, shape = _TYPES.get(facts["dtype"]), tuple(facts["shape"])
    if kind is None or len(shape) > 8:
        raise LensError(f"{shown(path)} holds tensors that are no vectors.", "Is it a model?")
    flat = np.frombuffer(facts["data"], kind, math.prod(shape))
    if facts["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def _vector(path: Path, data: Any, tensor: Any) -> SteeringVector:
    if not isinstance(data, dict) or tensor.ndim != 1 or tensor.dtype != np.float32:
        raise LensError(f"{shown(path)} holds no float32 directions of shape (d_model,).", AGAIN)
    return vector_from_json({**data, "direction": to_json(tensor)})
