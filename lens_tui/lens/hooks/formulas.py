"""What each intervention does to a residual stream: one pure function a record, in float32.

Every function takes ``h`` of shape (rows, tokens, width) in float32 and gives the
change to add to it, of a shape that broadcasts to it. How changes of several
records and rows are put together, and in which dtype, is in ``program.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from lens_tui.records import (
    Ablate,
    Add,
    CapProjection,
    ClampFeature,
    FloatArray,
    Intervention,
    LensError,
    NormMatch,
    ProjectOut,
    SetProjection,
    SteeringVector,
)

Delta = Callable[[mx.array], mx.array]


class FeatureSource(Protocol):
    """What is asked of an SAE here: features in, reconstruction out, both affine in the features."""

    @property
    def d_model(self) -> int:
        """Width of what it reads."""

    def encode(self, residual: mx.array) -> mx.array:
        """Activations ``(..., width)`` of a residual ``(..., d_model)``."""

    def decode(self, activations: mx.array) -> mx.array:
        """The reconstruction ``(..., d_model)``."""


def add(direction: mx.array, scale: float) -> Delta:
    """``scale * direction``, whatever the residual is."""
    change = scale * direction
    mx.eval(change)
    return lambda h: change


def norm_match(direction: mx.array, scale: float) -> Delta:
    """``scale * ||h|| * direction`` with each token's own norm."""
    return lambda h: scale * mx.linalg.norm(h, axis=-1, keepdims=True) * direction


def set_projection(direction: mx.array, value: float) -> Delta:
    """``(value - h . direction) direction``."""
    return lambda h: (value - project(h, direction)) * direction


def cap_projection(direction: mx.array, low: float | None, high: float | None) -> Delta:
    """What takes the projection into ``[low, high]``; zero where it is inside."""

    def delta(h: mx.array) -> mx.array:
        now = project(h, direction)
        capped = now if low is None else mx.maximum(now, low)
        capped = capped if high is None else mx.minimum(capped, high)
        return (capped - now) * direction

    return delta


def clamp_feature(source: FeatureSource, feature: int, value: float) -> Delta:
    """``(value - a) d``: the feature's activation becomes ``value``, all else of ``h`` stays (error term kept)."""
    direction = decoder_row(source, feature)

    def delta(h: mx.array) -> mx.array:
        now = _activation(source, h, feature).astype(mx.float32)
        return (value - now) * direction

    return delta


def _activation(source: FeatureSource, h: mx.array, feature: int) -> mx.array:
    """One feature's activation (..., 1), not computed yet; an SAE of ours reads that feature alone for it."""
    alone: Callable[[mx.array, Sequence[int]], mx.array] | None = getattr(source, "encode_features", None)
    return source.encode(h)[..., feature : feature + 1] if alone is None else alone(h, [feature])


def ablate(mean: mx.array | None) -> Delta:
    """``mean - h``, or ``-h``: what is left is the mean, or nothing."""
    return lambda h: -h if mean is None else mean - h


def project(h: mx.array, direction: mx.array) -> mx.array:
    """``h . direction`` for a unit direction, shape (..., 1)."""
    return mx.sum(h * direction, axis=-1, keepdims=True)


def decoder_row(source: FeatureSource, feature: int) -> mx.array:
    """What one unit of a feature adds to the reconstruction, shape (d_model,), float32."""
    width = source.encode(mx.zeros((1, source.d_model))).shape[-1]
    if not 0 <= feature < width:
        raise LensError(f"There is no feature {feature}: this SAE has {width}.", f"Choose 0 to {width - 1}.")
    none = mx.zeros((1, width))
    one = mx.array(np.eye(1, width, feature, dtype=np.float32))
    row = (source.decode(one) - source.decode(none))[0].astype(mx.float32)
    mx.eval(row)
    return row


def delta_of(record: Intervention, sources: Mapping[str, FeatureSource]) -> Delta:
    """The function of a record. Raises :class:`LensError` for an SAE or a kind that is not known."""
    match record:
        case Add():
            return add(as_array(record.vector), record.scale)
        case NormMatch():
            return norm_match(as_array(record.vector), record.scale)
        case ProjectOut():
            return set_projection(as_array(record.vector), 0.0)
        case SetProjection():
            return set_projection(as_array(record.vector), record.value)
        case CapProjection():
            return cap_projection(as_array(record.vector), record.low, record.high)
        case ClampFeature():
            return clamp_feature(_source(record, sources), record.feature, record.value)
        case Ablate():
            return ablate(None if record.mean is None else _evaluated(np.asarray(record.mean, dtype=np.float32)))
    raise LensError(f"Nothing is known of an intervention of kind {type(record).__name__}.")


def must_move(record: Intervention) -> bool:
    """Whether the record is an error when it moves nothing (a cap that does not bind is none)."""
    if isinstance(record, (Add, NormMatch)):
        return record.scale != 0.0
    return isinstance(record, (ProjectOut, Ablate))


def as_array(vector: SteeringVector) -> mx.array:
    """The unit direction as an evaluated float32 array, which any thread may use."""
    return _evaluated(vector.direction)


def _evaluated(values: FloatArray) -> mx.array:
    array = mx.array(np.ascontiguousarray(values, dtype=np.float32))
    mx.eval(array)
    return array


def _source(record: ClampFeature, sources: Mapping[str, FeatureSource]) -> FeatureSource:
    if record.sae not in sources:
        known = ", ".join(sources) or "none"
        raise LensError(
            f"The model has not been given the SAE {record.sae!r} (it has: {known}).", "Use attach_sae first."
        )
    return sources[record.sae]
