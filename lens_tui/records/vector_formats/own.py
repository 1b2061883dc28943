"""Our own files: one vector (``vectors_io``), or several as tensors ``0``, ``1``, ... with their records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import to_json, vector_from_json
from ..errors import LensError
from ..read_files import AGAIN, shown
from ..sanitise import one_line
from ..vectors import SteeringVector
from ..vectors_io import FORMAT, load_vector
from .common import MAX_LAYERS, read_bytes

SEVERAL = f"{FORMAT}s"


def read(path: Path) -> tuple[SteeringVector, ...]:
    """The vectors of a file of ours, to the last bit."""
    from safetensors import SafetensorError, safe_open

    read_bytes_checked(path)
    try:
        with safe_open(path, framework="np") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            if metadata.get("format") != SEVERAL:
                return (load_vector(path),)
            described = json.loads(metadata["records"])
            if not isinstance(described, list) or not 0 < len(described) <= MAX_LAYERS:
                raise ValueError("records")
            tensors = [opened.get_tensor(str(index)) for index in range(len(described))]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, LensError):
            raise
        raise LensError(f"{shown(path)} cannot be read: {one_line(str(error), 80)}.", AGAIN) from error
    return tuple(_vector(path, data, tensor) for data, tensor in zip(described, tensors, strict=True))


def write(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """The bytes of a file of several vectors."""
    from safetensors.numpy import save

    described = [{key: value for key, value in to_json(one).items() if key != "direction"} for one in vectors]
    metadata = {"format": SEVERAL, "version": "1", "records": json.dumps(described, ensure_ascii=False)}
    tensors = {str(at): np.ascontiguousarray(one.direction, dtype=np.float32) for at, one in enumerate(vectors)}
    return save(tensors, metadata)


def read_bytes_checked(path: Path) -> None:
    """Raise :class:`LensError` for a file that is not there or far too large."""
    if not path.is_file() or path.stat().st_size > 1 << 30:
        read_bytes(path)


def _vector(path: Path, data: Any, tensor: Any) -> SteeringVector:
    if not isinstance(data, dict) or tensor.ndim != 1 or tensor.dtype != np.float32:
        raise LensError(f"{shown(path)} holds no float32 directions of shape (d_model,).", AGAIN)
    return vector_from_json({**data, "direction": to_json(tensor)})
