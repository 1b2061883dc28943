"""A set of vectors, one for each of several layers, that steers as one thing with one number as its scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path

from .errors import LensError
from .gates import Gate
from .interventions import BenchRow, Intervention, Positions, amount_of
from .paths import expanded
from .sanitise import one_line
from .steering_vector import SteeringVector


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
    from .vector_formats import SUFFIXES, load_one, load_vectors  # they bring NumPy, which the first frame does without

    place = expanded(path)
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
    first, *rest = vectors
    row = BenchRow(name, first, first.layer, scale, mode=mode, positions=positions, gate=gate, rest=tuple(rest))
    made = row.interventions()
    return made if rest else tuple(replace(record, id=f"{name}@{first.layer}") for record in made)


def grouped(records: Sequence[Intervention]) -> list[tuple[Intervention, ...]]:
    """Records one by one, those of one set together: ids that differ in the layer behind ``@`` alone, alike else."""
    found: list[list[Intervention]] = []
    for record in records:
        before = found[-1][-1] if found else None
        if before is not None and _kin(before) == _kin(record) is not None:
            found[-1].append(record)
        else:
            found.append([record])
    sets: list[tuple[Intervention, ...]] = []
    for group in found:
        whole = len(group) == 1 or multiplier(group) is not None
        sets += [tuple(group)] if whole else [(record,) for record in group]
    return sets


def _kin(record: Intervention) -> tuple[object, ...] | None:
    name, _, layer = record.id.rpartition("@")
    if not name or layer != str(record.layer) or not hasattr(record, "vector"):
        return None
    return name, record.mode, record.site, record.positions, record.enabled, record.precision, record.gate


def multiplier(records: Sequence[Intervention]) -> float | None:
    """The one scale of the records of a set; ``None`` where they have not one."""
    found = []
    for record in records:
        amount, vector = amount_of(record), getattr(record, "vector", None)
        if amount is None or not isinstance(vector, SteeringVector) or (record.mode == "add" and not vector.norm):
            return None
        found.append(amount / vector.norm if record.mode == "add" else amount)
    same = bool(found) and all(isclose(value, found[0], rel_tol=1e-6, abs_tol=1e-12) for value in found)
    return float(f"{found[0]:.9g}") if same else None


def place_of(vectors: Sequence[SteeringVector]) -> str:
    """The file or folder that holds exactly these vectors, as ``--arm`` names a set; ``""`` where none does."""
    import numpy as np

    files = {str(vector.origin.facts.get("path", "")) for vector in vectors}
    folders = {str(Path(file).parent) for file in files}
    place = next(iter(files)) if len(files) == 1 else next(iter(folders)) if len(folders) == 1 else ""
    if not place or "" in files or not Path(place).exists():
        return ""
    try:
        held = load_vector_set(place, d_model=vectors[0].d_model)
    except LensError:
        return ""
    pairs = list(zip(held, vectors, strict=False))
    same = all(
        one.layer == other.layer and isclose(one.norm, other.norm, rel_tol=1e-6)
        and np.array_equal(one.direction, other.direction)
        for one, other in pairs
    )  # fmt: skip
    return place if same and len(held) == len(vectors) else ""
