"""What is read of a tensor along a direction, or as a feature: the reading of a monitor, one number a token.

A reading is one pure function of ``h`` (rows, tokens, width), in float32, and of nothing but the token itself: it is
the same whatever batch, piece or cache the token comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError, SteeringVector
from lens_tui.records.gates import Gate, Monitor

from .places import Where

Reading = Callable[[mx.array], mx.array]
"""Of ``h`` (rows, tokens, width) one number a token, (rows, tokens, 1), float32."""
Opening = Callable[[mx.array, Where], mx.array]
"""Of the tensor that a record is given, and what is known of the forward: where its gate is open, like a mask."""


class FeatureSource(Protocol):
    """What is asked of an SAE here: features in, reconstruction out, both affine in the features."""

    @property
    def d_model(self) -> int:
        """Width of what it reads."""

    def encode(self, residual: mx.array) -> mx.array:
        """Activations ``(..., width)`` of a residual ``(..., d_model)``."""

    def decode(self, activations: mx.array) -> mx.array:
        """The reconstruction ``(..., d_model)``."""


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


def activation_of(source: FeatureSource, h: mx.array, feature: int) -> mx.array:
    """One feature's activation (..., 1), not computed yet; an SAE of ours reads that feature alone for it."""
    alone: Callable[[mx.array, Sequence[int]], mx.array] | None = getattr(source, "encode_features", None)
    return source.encode(h)[..., feature : feature + 1] if alone is None else alone(h, [feature])


def as_array(vector: SteeringVector) -> mx.array:
    """The unit direction as an evaluated float32 array, which any thread may use."""
    return evaluated(vector.direction)


def evaluated(values: FloatArray) -> mx.array:
    """Numbers as an array of float32 that any thread may use."""
    array = mx.array(np.ascontiguousarray(values, dtype=np.float32))
    mx.eval(array)
    return array


def source_named(name: str, sources: Mapping[str, FeatureSource]) -> FeatureSource:
    """The SAE that records call so. Raises :class:`LensError` with those there are."""
    if name not in sources:
        known = ", ".join(sources) or "none"
        raise LensError(f"The model has not been given the SAE {name!r} (it has: {known}).", "Use attach_sae first.")
    return sources[name]


def reading_of(monitor: Monitor, sources: Mapping[str, FeatureSource]) -> Reading:
    """What a monitor reads. Raises :class:`LensError` for an SAE that the model has not been given."""
    if monitor.vector is None:
        source, feature = source_named(monitor.sae, sources), monitor.feature
        return lambda h: activation_of(source, h, feature).astype(mx.float32)
    direction, scale, bias = as_array(monitor.vector), monitor.scale, monitor.bias
    return lambda h: scale * project(h.astype(mx.float32), direction) + bias


def opening_of(gate: Gate, here: tuple[int, str], sources: Mapping[str, FeatureSource]) -> Opening:
    """Where a gate is open, token by token (rows or 1, tokens, 1): what is not a number leaves it shut.

    Args:
        gate: The gate.
        here: The layer and site of the record that it is on. A monitor of the same place reads what the record is
            given; one of an earlier place what was left there, after all that acts on it.
        sources: The SAEs that monitors may name.
    """
    monitor, read = gate.monitor, reading_of(gate.monitor, sources)
    same = (monitor.layer, monitor.site) == here

    def opening(h: mx.array, where: Where) -> mx.array:
        value = read(h) if same else where.readings.get(monitor)
        if value is None:
            raise LensError(
                f"The monitor {monitor.name!r} at layer {monitor.layer} {monitor.site} is computed after layer "
                f"{here[0]} {here[1]}, which its gate is to open.",
                "Read at an earlier site, or steer at a later one.",
            )
        return value > gate.threshold if gate.side == "above" else value < gate.threshold

    return opening


def sources_of(item: Any) -> tuple[str, ...]:
    """The names of the SAEs that a record, or its gate, names; none of a user's hook."""
    gate = getattr(item, "gate", None)
    named = [getattr(item, "sae", ""), "" if gate is None else gate.monitor.sae]
    return tuple(name for name in named if name)
