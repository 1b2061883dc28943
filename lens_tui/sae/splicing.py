"""Put an SAE into the model's forward pass, whole or for some of its features, with or without its error term."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import mlx.core as mx

from lens_tui.records import LensError

from .base import SAE, factor


def splice(
    sae: SAE,
    *,
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    keep_error: bool = True,
) -> Callable[[mx.array], mx.array]:
    """A function of the residual ``(..., d)`` that gives what the model is to continue with, in the residual's dtype.

    ``clamp`` gives features an activation, ``scale`` multiplies the one they have (0 ablates). With
    ``keep_error`` what the SAE does not explain passes through: only the difference that the edits make is added, and
    without edits nothing changes, to the bit. Without it the residual is replaced by the reconstruction,
    through which no gradient goes.

    Raises ``LensError`` for a transcoder (see :func:`spliced`) and for feature ids that do not exist.
    """
    if sae.info.is_transcoder or sae.d_model != sae.d_out:
        raise LensError(
            f"{sae.info.name or 'The SAE'} is a transcoder: it reads one tensor and gives another.",
            "Use spliced(sae, output, source=input).",
        )
    edits = _edits(sae, clamp, scale)
    return lambda h: _spliced(sae, h, h, edits, keep_error)


def spliced(
    sae: SAE,
    output: mx.array,
    *,
    source: mx.array | None = None,
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    keep_error: bool = True,
) -> mx.array:
    """:func:`splice` on arrays: ``output`` is the tensor to change, ``source`` what a transcoder reads.

    Raises ``LensError`` if a transcoder is given no source.
    """
    if source is None and (sae.info.is_transcoder or sae.d_model != sae.d_out):
        raise LensError("A transcoder needs the tensor that it reads.", "Give source=.")
    return _spliced(sae, output, output if source is None else source, _edits(sae, clamp, scale), keep_error)


_Edits = tuple[list[int], mx.array, mx.array]


def _edits(sae: SAE, clamp: Mapping[int, float] | None, scale: Mapping[int, float] | None) -> _Edits:
    """Ids, and for each a factor and a summand: the new activation is ``factor * a + summand``."""
    clamp, scale = clamp or {}, scale or {}
    both = sorted(set(clamp) & set(scale))
    if both:
        raise LensError(f"Feature {both[0]} is both clamped and scaled.", "Do one or the other.")
    for feature, value in (*clamp.items(), *scale.items()):
        if not math.isfinite(value):
            raise LensError(f"Feature {feature} is to be {value!r}.", "Give a finite number.")
    ids = [*clamp, *scale]
    sae.directions(ids)  # refuses ids that do not exist
    factors = mx.array([0.0] * len(clamp) + [float(value) for value in scale.values()])
    summands = mx.array([float(value) for value in clamp.values()] + [0.0] * len(scale))
    mx.eval(factors, summands)
    return ids, factors, summands


def _spliced(sae: SAE, output: mx.array, source: mx.array, edits: _Edits, keep_error: bool) -> mx.array:
    ids, factors, summands = edits
    base = output if keep_error else sae.reconstruct(source).output
    if not ids:
        return base.reshape(output.shape).astype(output.dtype)
    now = sae.encode_features(source, ids)
    change = ((factors - 1.0) * now + summands) @ sae.effects(ids)
    change = change * factor(sae.definition, source.reshape(*change.shape[:-1], sae.d_model))
    new = base.reshape(change.shape).astype(mx.float32) + change
    return new.reshape(output.shape).astype(output.dtype)
