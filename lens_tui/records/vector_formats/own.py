"""Steering vectors as files: one safetensors file each, one tensor, the record as JSON in its metadata.

The tensor ``direction`` has shape ``(d_model,)``, float32, norm 1. The metadata
holds ``format`` (``mlx-lens-tui.vector``), ``version`` and ``record``: the
fields of :class:`SteeringVector` but the direction. Any safetensors reader opens it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk, paths
from ..codec import from_json, to_json
from ..errors import LensError
from ..read_files import AGAIN, explained, open_regular, parse_json, regular_size, short_path
from ..steering_vector import SteeringVector
from .common import MAX_BYTES, MAX_LAYERS, Found, Row, entry_of, read_whole

FORMAT = "mlx-lens-tui.vector"
SUFFIX = ".safetensors"
_VERSION = "1"
_MAX_BYTES = 16 << 20
_MAX_HEADER = 4 << 20


def write_one(vector: SteeringVector, path: Path | None = None) -> Path:
    """Write a vector; returns the file.

    Without ``path`` it goes to the vectors folder under a name made from its
    own; one of that name is kept, and the new one gets a number. Raises
    :class:`LensError` if the disk refuses.
    """
    from safetensors.numpy import save

    file = path or _free_name(paths.vectors_folder(), vector.name)
    record = {key: value for key, value in to_json(kept_facts(vector)).items() if key != "direction"}
    metadata = {"format": FORMAT, "version": _VERSION, "record": json.dumps(record)}
    direction = np.ascontiguousarray(vector.direction, dtype=np.float32)
    disk.write_bytes(file, save({"direction": direction}, metadata))
    return file


def read_one(path: Path | str, *, d_model: int | None = None, model: str | None = None) -> SteeringVector:
    """Read one vector of our own format, its direction unchanged to the last bit and its origin as it was saved.

    ``vector_formats.load_vectors`` reads every format, this one too, and notes where the file is.

    With ``d_model`` a vector of another width is refused, with ``model`` one that
    was made for another model. Raises :class:`LensError` for anything that is
    no vector of ours.
    """
    file = Path(path)
    vector = _read(file)
    check_fits_model(vector, d_model=d_model, model=model)
    return vector


def check_fits_model(vector: SteeringVector, *, d_model: int | None = None, model: str | None = None) -> None:
    """Raise :class:`LensError` if a vector does not have the residual stream's width, or names another model.

    The heads' sites (``attn_q`` to ``attn_z``) have widths of their own, checked when they are used.
    """
    if (
        d_model is not None
        and vector.site not in ("attn_q", "attn_k", "attn_v", "attn_z")
        and vector.d_model != d_model
    ):
        raise LensError(
            f"The vector {vector.name!r} has width {vector.d_model}; the model's residual stream has {d_model}.",
            "Use one made for this model.",
        )
    if model is not None and vector.model and vector.model != model:
        raise LensError(
            f"The vector {vector.name!r} was made for {vector.model}, not {model}.", "Use one made for this model."
        )


def check_header(path: Path, limit: int) -> None:
    """Raise :class:`LensError` for what is not a regular file of at most ``limit`` bytes, or has an endless header."""
    if regular_size(path) > limit:
        raise LensError(f"{short_path(path)} is larger than any steering vector.", "Is it a model?")
    with explained(path), open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise LensError(f"{short_path(path)} cannot be read as a vector: its header is too large.", AGAIN)


def kept_facts(vector: SteeringVector) -> SteeringVector:
    """A vector as it is written: where it was on this machine is private."""
    facts = {key: value for key, value in vector.origin.facts.items() if key != "path"}
    return replace(vector, origin=replace(vector.origin, facts=facts))


def _read(file: Path) -> SteeringVector:
    from safetensors import safe_open

    check_header(file, _MAX_BYTES)
    with explained(file), safe_open(file, framework="np") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        if metadata.get("format") != FORMAT or "direction" not in opened.keys():  # noqa: SIM118 - not a mapping
            raise LensError(f"{short_path(file)} is not a vector of mlx-lens-tui.", "Import it with its own format.")
        direction = opened.get_tensor("direction")
        record: Any = parse_json(metadata["record"], f"{short_path(file)} cannot be read: its record", AGAIN)
    if direction.ndim != 1 or direction.dtype != np.float32 or not isinstance(record, dict):
        raise LensError(f"{short_path(file)} contains no float32 direction of shape (d_model,).")
    return from_json(SteeringVector, {**record, "direction": to_json(direction)})


def _free_name(folder: Path, name: str) -> Path:
    return next(file for file in file_names(folder, name) if not file.exists())


def file_names(folder: Path, name: str) -> Iterator[Path]:
    """The files that a vector of this name may have in a folder: without a number, then with 2, 3, ..."""
    stem = re.sub(r"[^\w.-]+", "-", name.strip(), flags=re.ASCII).strip("-.").lower()[:80] or "vector"
    return (folder / f"{stem}{f'-{number}' if number > 1 else ''}{SUFFIX}" for number in range(1, 100_000))


SEVERAL = f"{FORMAT}s"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read(path: Path) -> tuple[SteeringVector, ...] | None:
    """The vectors of a file of ours, to the last bit; ``None`` if it is a safetensors file of others."""
    from safetensors import safe_open

    check_header(path, MAX_BYTES)
    with explained(path), safe_open(path, framework="np") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        if metadata.get("format") == FORMAT:
            return (read_one(path),)
        if metadata.get("format") != SEVERAL:
            return None
        described = parse_json(metadata["records"], short_path(path), AGAIN)
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
        raise LensError(f"{short_path(path)} contains tensors that are not vectors.", "Is it a model?")
    flat = np.frombuffer(facts["data"], kind, math.prod(shape))
    if facts["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def _vector(path: Path, data: Any, tensor: Any) -> SteeringVector:
    if not isinstance(data, dict) or tensor.ndim != 1 or tensor.dtype != np.float32:
        raise LensError(f"{short_path(path)} contains no float32 directions of shape (d_model,).", AGAIN)
    return from_json(SteeringVector, {**data, "direction": to_json(tensor)})
