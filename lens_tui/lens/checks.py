"""Everything that can be wrong with an intervention, checked where it enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import (
    Ablate,
    CapProjection,
    ClampFeature,
    FloatArray,
    Intervention,
    LensError,
    SteeringVector,
)

from .interventions import decoder_row
from .positions import Spans, reaches_scored
from .program import Item
from .registry import Registry, acts


def checked(record: Intervention, registry: Registry) -> Intervention:
    """The record with its layer counted from 0, or :class:`LensError` for the first thing that is wrong."""
    record = replace(record, layer=registry.decoder.index(record.layer))
    width = registry.sites.point(record.layer, record.site).width
    vector = getattr(record, "vector", None)
    if isinstance(vector, SteeringVector):
        check_vector(vector.direction, width, f"The vector {vector.name!r}")
    _check_numbers(record)
    _check_kind(record, registry, width)
    _check_positions(record)
    largest = float(np.abs(vector.direction).max()) if isinstance(vector, SteeringVector) else 1.0
    size = largest * abs(float(getattr(record, "scale", getattr(record, "value", 0.0)) or 0.0))
    check_overflow(size, registry.decoder.dtype, record)
    return record


def check_vector(values: NDArray[Any], width: int, name: str) -> None:
    """A vector of exactly ``(width,)``, finite."""
    if values.shape != (width,):
        raise LensError(f"{name} has shape {values.shape}; this model's site needs ({width},).", "Is it of this model?")
    if not np.isfinite(values).all():
        raise LensError(f"{name} holds NaN or infinity.", "Check how it was made.")


def check_scored(
    record: Item, rows: Sequence[Sequence[int]], n_prompt: int, bos: int | None, spans: Spans | None = None
) -> None:
    """Refuse a record that none of the scored tokens of these texts can tell of: its measure would be the plain one."""
    positions = getattr(record, "positions", None)
    if positions is None or not acts(record):
        return
    if not any(reaches_scored(positions, row, n_prompt, bos, spans) for row in rows):
        raise LensError(
            f"{record.id!r} touches no token that a scored one follows.", "Change its positions, or give a longer text."
        )


def check_overflow(size: float, dtype: mx.Dtype, record: Intervention) -> None:
    """Refuse a change whose largest part the model's dtype cannot hold (float16 ends at 65504)."""
    if record.precision == "float32":
        return
    limit = float(mx.finfo(dtype).max)
    if size > limit:
        raise LensError(
            f"{record.id!r} at layer {record.layer} overflows the model's {str(dtype).rpartition('.')[2]} "
            f"({size:.3g} is above {limit:.3g}).",
            "Lower the scale, or use precision='float32'.",
        )


def as_numpy(values: Any) -> FloatArray:
    """A list, numpy or MLX array as float32 numpy, evaluated now: nothing lazy crosses to another thread."""
    if isinstance(values, mx.array):
        try:
            return np.array(values.astype(mx.float32))
        except RuntimeError as error:
            raise LensError(
                f"The vector was made on another thread and never evaluated ({error}).",
                "Call mx.eval on it in the thread that makes it.",
            ) from error
    try:
        exact = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise LensError(
            f"A vector cannot be made of {type(values).__name__}.", "Give numbers of shape (d_model,)."
        ) from error
    with np.errstate(over="ignore"):
        made = exact.astype(np.float32)
    if np.isfinite(exact).all() and not np.isfinite(made).all():
        raise LensError("The vector holds numbers beyond the range of float32.", "Divide it, and raise the scale.")
    return made


def _check_numbers(record: Intervention) -> None:
    for name in ("scale", "value", "low", "high"):
        value = getattr(record, name, None)
        if value is not None and (isinstance(value, bool) or not isfinite(value)):
            raise LensError(f"The {name} of {record.id!r} is {value!r}.", "Give a finite number.")


def _check_kind(record: Intervention, registry: Registry, width: int) -> None:
    if type(record) is Intervention:
        raise LensError("An intervention needs a kind.", "Use Add, NormMatch, ProjectOut, ... of lens_tui.records.")
    if record.precision not in ("model", "float32"):
        raise LensError(f"There is no precision {record.precision!r}.", "Use 'model' or 'float32'.")
    if (
        isinstance(record, CapProjection)
        and record.low is not None
        and record.high is not None
        and record.low > record.high
    ):
        raise LensError(f"The cap of {record.id!r} has low {record.low} above high {record.high}.")
    if isinstance(record, CapProjection) and record.low is None and record.high is None:
        raise LensError(f"The cap of {record.id!r} has no bound.", "Give low, high or both.")
    if isinstance(record, Ablate) and record.mean is not None:
        check_vector(np.asarray(record.mean), width, f"The mean of {record.id!r}")
    if isinstance(record, ClampFeature):
        if record.sae not in registry.sources:
            known = ", ".join(registry.sources) or "none"
            raise LensError(
                f"The model has not been given the SAE {record.sae!r} (it has: {known}).", "Use attach_sae."
            )
        decoder_row(registry.sources[record.sae], record.feature)


def _check_positions(record: Intervention) -> None:
    positions = record.positions
    if positions.kind not in ("all", "prompt", "generated", "last", "not_bos", "indices", "slice", "role"):
        raise LensError(f"There is no kind of positions {positions.kind!r}.")
    if positions.kind == "indices" and not positions.indices:
        raise LensError(f"The positions of {record.id!r} are an empty list.", "Name at least one.")
