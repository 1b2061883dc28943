"""A set of vectors, one for each of several layers, that steers as one thing with one number as its scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import LensError
from .gates import Gate
from .interventions import BenchRow, Intervention, Positions
from .sanitise import one_line
from .steering_vector import SteeringVector
from .vector_formats import SUFFIXES, load_one, load_vectors


def load_vector_set(
    path: str | Path, *, d_model: int | None = None, n_layers: int | None = None
) -> tuple[SteeringVector, ...]:
    """The vectors of several layers, in order of layers, one for each.

    Args:
        path: A file with a vector for each layer (repeng's GGUF, a vLLM-Lens JSON, a matrix), or a folder with a file
            for each layer (as CAA writes them: ``vec_layer_13_....pt``).
        d_model: The model's width; a vector of another width is refused.
        n_layers: The model's number of blocks; layers beyond it are refused.

    Raises:
        LensError: For no vectors, two of one layer, and what :func:`load_vectors` refuses.
    """
    place = Path(path).expanduser()
    shown = one_line(str(place.name), 80)
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and file.is_file())
        found = [load_one(file, d_model=d_model, n_layers=n_layers) for file in files]
    else:
        found = list(load_vectors(place, d_model=d_model, n_layers=n_layers))
    if not found:
        raise LensError(f"There are no vectors in {shown}.", f"Vectors are files with {', '.join(SUFFIXES)}.")
    found.sort(key=lambda vector: vector.layer)
    layers = [vector.layer for vector in found]
    twice = next((layer for layer in layers if layers.count(layer) > 1), None)
    if twice is not None:
        raise LensError(f"{shown} has several vectors for layer {twice}.", "Keep one for each layer.")
    return tuple(found)


def set_interventions(
    name: str,
    vectors: Sequence[SteeringVector],
    scale: float,
    *,
    mode: str = "add",
    positions: Positions | None = None,
    gate: Gate | None = None,
) -> tuple[Intervention, ...]:
    """What steers by all vectors of a set at once, each at its own layer.

    Args:
        name: Their ids begin with it.
        vectors: One for each layer.
        scale: One number for all. ``add`` multiplies each vector at the length it was made with (as repeng's strength
            and CAA's multiplier do), every other mode takes it as it is, on the unit directions.
        mode: One of those of a bench row.
        positions: Which tokens; by default all.
        gate: What lets them act.

    Returns:
        A record for each vector. What they move together is said site by site in the doses of a run.
    """
    rows = [
        BenchRow(
            f"{name}@{vector.layer}",
            vector,
            vector.layer,
            scale * vector.norm if mode == "add" else scale,
            mode=mode,
            positions=positions,
            gate=gate,
        )
        for vector in vectors
    ]
    return tuple(row.intervention() for row in rows)
