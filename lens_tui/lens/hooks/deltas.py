"""What each intervention does: one pure function a record, in float32.

Of ``h`` (rows, tokens, width) it gives the change to add to it, of a shape that broadcasts to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from lens_tui.records import (
    Ablate,
    AblateHeads,
    Add,
    CapProjection,
    ClampFeature,
    EditPattern,
    Intervention,
    LensError,
    NormMatch,
    ProjectOut,
    SetProjection,
    Swap,
)

from .pattern_edits import PatternEdit, edit_pattern
from .readings import FeatureSource, activation_of, as_array, decoder_row, evaluated, project, source_named

Delta = Callable[[mx.array], mx.array]
"""The change of ``h``."""


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


def swap(direction: mx.array, other: mx.array) -> Delta:
    """``(h . direction) (other - direction)``."""
    return lambda h: project(h, direction) * (other - direction)


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
        now = activation_of(source, h, feature).astype(mx.float32)
        return (value - now) * direction

    return delta


def ablate(mean: mx.array | None) -> Delta:
    """``mean - h``, or ``-h``: what is left is the mean, or nothing."""
    return lambda h: -h if mean is None else mean - h


def ablate_heads(record: AblateHeads, width: int) -> Callable[[mx.array], mx.array]:
    """``mean - h``, or ``-h``, in the heads of the record; 0 in all others.

    Args:
        record: Checked, so that it knows how many heads there are.
        width: Of the site: heads times head size.
    """
    size = width // record.count
    chosen = np.repeat(np.isin(np.arange(record.count), record.heads), size)
    target = np.zeros(width, dtype=np.float32)
    if record.mean is not None:
        for head, values in zip(record.heads, record.mean.reshape(len(record.heads), size), strict=True):
            target[head * size : (head + 1) * size] = values
    inside, instead = mx.array(chosen), mx.array(target)
    mx.eval(inside, instead)
    return lambda h: mx.where(inside, instead - h, 0.0)


def delta_of(record: Intervention, sources: Mapping[str, FeatureSource], width: int) -> Delta | PatternEdit:
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
        case Swap():
            return swap(as_array(record.vector), as_array(record.other))
        case CapProjection():
            return cap_projection(as_array(record.vector), record.low, record.high)
        case ClampFeature():
            return clamp_feature(source_named(record.sae, sources), record.feature, record.value)
        case AblateHeads():
            return ablate_heads(record, width)
        case EditPattern():
            return edit_pattern(record)
        case Ablate():
            return ablate(None if record.mean is None else evaluated(np.asarray(record.mean, dtype=np.float32)))
    raise LensError(f"Nothing is known of an intervention of kind {type(record).__name__}.")
