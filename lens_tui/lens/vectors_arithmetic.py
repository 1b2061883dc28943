"""Steering vectors out of steering vectors: sums, multiples, and one without the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector


def combine(name: str, terms: Sequence[tuple[float, SteeringVector]], *, unit: bool = False) -> SteeringVector:
    """``sum k_i v_i`` of vectors of one layer, site and model, each at its own length, or at length 1 with ``unit``.

    Raises :class:`LensError` if they do not belong together or cancel.
    """
    if not terms:
        raise LensError("A sum of vectors needs at least one.", "Give (factor, vector) pairs.")
    first = terms[0][1]
    for factor, vector in terms:
        _same_place(first, vector)
        if not np.isfinite(factor):
            raise LensError(f"The factor of {vector.name!r} is {factor}.", "Give a finite number.")
    total = sum(factor * _values(vector, unit) for factor, vector in terms)
    parts = [{"factor": float(factor), **_told(vector)} for factor, vector in terms]
    model = next((vector.model for _, vector in terms if vector.model), "")
    origin = Origin("arithmetic", {"sum": parts, "unit": unit})
    return SteeringVector.of(name, total, first.layer, site=first.site, model=model, origin=origin)


def without(name: str, vector: SteeringVector, *others: SteeringVector) -> SteeringVector:
    """The part of a vector that is orthogonal to all the others, at the length that is left.

    Raises :class:`LensError` if nothing is left.
    """
    for other in others:
        _same_place(vector, other)
    values = _values(vector, unit=False)
    if others:
        basis, _ = np.linalg.qr(np.stack([other.direction.astype(np.float64) for other in others], axis=1))
        values = values - basis @ (basis.T @ values)
    if np.linalg.norm(values) <= 1e-6 * vector.norm:
        raise LensError(f"Nothing of {vector.name!r} is left without the others.", "Leave one of them out.")
    origin = Origin("arithmetic", {"of": _told(vector), "without": [_told(other) for other in others]})
    return SteeringVector.of(name, values, vector.layer, site=vector.site, model=vector.model, origin=origin)


def _values(vector: SteeringVector, unit: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return vector.direction.astype(np.float64) * (1.0 if unit else vector.norm)


def _told(vector: SteeringVector) -> dict[str, object]:
    return {"name": vector.name, "norm": vector.norm, "origin": vector.origin.kind}


def _same_place(first: SteeringVector, other: SteeringVector) -> None:
    if (first.layer, first.site, first.d_model) != (other.layer, other.site, other.d_model):
        raise LensError(
            f"{first.name!r} (layer {first.layer} {first.site}, width {first.d_model}) and {other.name!r} "
            f"(layer {other.layer} {other.site}, width {other.d_model}) are not of one place.",
            "Combine vectors of the same layer and site.",
        )
    if first.model and other.model and first.model != other.model:
        raise LensError(f"{first.name!r} was made for {first.model} and {other.name!r} for {other.model}.")
