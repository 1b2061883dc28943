"""What every vector format shares: raw vectors by layer, made into records with where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..read_files import AGAIN, shown
from ..sanitise import one_line
from ..vectors import Origin, SteeringVector

MAX_BYTES = 1 << 30
MAX_LAYERS = 4096
Row = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Found:
    """What a file holds before it is checked: ``rows`` by layer, each ``(d_model,)``, of the length the file gives.

    A ``None`` layer means that the file does not say. ``facts`` are what else it
    says, as plain JSON data.
    """

    rows: Sequence[tuple[int | None, Row]]
    site: str = "resid_post"
    model: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def records(path: Path, kind: str, found: Found, layer: int | None) -> tuple[SteeringVector, ...]:
    """The records of a file, by layer. ``layer`` stands in where the file names none, and picks one where it does."""
    named = [(at, row) for at, row in found.rows if at is not None]
    if len(named) != len(found.rows):
        if layer is None:
            raise LensError(f"{shown(path)} does not say which layer its vector is for.", "Give layer=.")
        named = [(layer if at is None else at, row) for at, row in found.rows]
    if layer is not None and layer not in {at for at, _ in named}:
        known = ", ".join(str(at) for at, _ in named[:12])
        raise LensError(f"{shown(path)} has no vector for layer {layer}.", f"It has layers {known}.")
    if not named:
        raise LensError(f"{shown(path)} holds no vector.", AGAIN)
    widths = {row.shape for _, row in named}
    if len(widths) > 1:
        raise LensError(f"{shown(path)} holds vectors of different shapes.", AGAIN)
    stem = one_line(path.stem, 60)
    several = len(named) > 1
    made = []
    for at, row in sorted(named, key=lambda item: item[0]):
        if not 0 <= at < MAX_LAYERS:
            raise LensError(f"{shown(path)} names layer {at}.", "Layers count from 0.")
        if layer is None or at == layer:
            origin = Origin("file", {"format": kind, "file": one_line(path.name, 120), **_hash(row), **found.facts})
            name = f"{stem} L{at}" if several else stem
            made.append(SteeringVector.of(name, row, at, site=found.site, model=found.model, origin=origin))
    return tuple(made)


def raw(vector: SteeringVector) -> NDArray[np.float32]:
    """The vector at its own length, which other tools apply with a coefficient of 1."""
    return (vector.direction.astype(np.float64) * vector.norm).astype(np.float32)


def by_layer(vectors: Sequence[SteeringVector], kind: str, *, sites: Sequence[str] = ("resid_post",)) -> None:
    """Raise :class:`LensError` unless a format with one vector a layer can hold these."""
    if not vectors:
        raise LensError("There is no vector to save.", "Give at least one.")
    layers = [vector.layer for vector in vectors]
    if len(set(layers)) != len(layers):
        raise LensError(f"A {kind} file holds one vector a layer; layer {_twice(layers)} is there twice.")
    if len({vector.d_model for vector in vectors}) > 1 or len({vector.site for vector in vectors}) > 1:
        raise LensError(f"A {kind} file holds vectors of one width and one site.", "Save them apart.")
    if sites and vectors[0].site not in sites:
        raise LensError(f"A {kind} file holds vectors for {sites[0]}, not {vectors[0].site}.", "Use .safetensors.")


def read_bytes(path: Path) -> bytes:
    """A whole file of at most 1 GB."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise LensError(f"{shown(path)} has {size / 1e9:.1f} GB, too many for steering vectors.", "Is it a model?")
        return path.read_bytes()
    except FileNotFoundError:
        raise LensError(f"There is no file {shown(path)}.", "Check the path.") from None
    except OSError as error:
        raise LensError(f"{shown(path)} cannot be read: {error.strerror}.", "Check permissions.") from error


def _hash(row: Row) -> dict[str, str]:
    return {"sha256": hashlib.sha256(np.ascontiguousarray(row, dtype="<f4").tobytes()).hexdigest()}


def _twice(layers: Sequence[int]) -> int:
    return next(layer for layer in layers if layers.count(layer) > 1)
