"""What is done to a residual before it is encoded, and undone after it is decoded (step 1 of a definition)."""

from __future__ import annotations

import mlx.core as mx

from lens_tui.records import LensError

from .definition import Definition


def applied(definition: Definition, x: mx.array) -> mx.array:
    """The residuals ``(n, d)`` as the SAE was trained to see them, float32."""
    x = x.astype(mx.float32)
    if definition.normalize == "none":
        return x if definition.input_scale == 1.0 else x * definition.input_scale
    shift, scale = _statistics(definition, x)
    if shift is None:
        return x / mx.where(scale > 0, scale, 1.0)  # nothing stays nothing
    return (x - shift) / (scale + 1e-5)


def undone(definition: Definition, output: mx.array, x: mx.array | None) -> mx.array:
    """The reconstruction ``(n, d_out)`` in raw units; ``x`` are the residuals, needed if each has its own scale."""
    if definition.normalize == "none":
        return output if definition.output_scale == 1.0 else output / definition.output_scale
    if x is None:
        raise LensError(
            "This SAE normalises every token by its own statistics, which decoding has to undo.",
            "Give the residuals: decode(activations, like=residuals).",
        )
    shift, scale = _statistics(definition, x.astype(mx.float32))
    return output * scale if shift is None else output * scale + shift


def factor(definition: Definition, x: mx.array) -> mx.array | float:
    """How many raw units one unit of the decoder's output is: for each row of ``x (..., d)``, or for all."""
    if definition.normalize == "none":
        return 1.0 / definition.output_scale
    return _statistics(definition, x.astype(mx.float32))[1]


def _statistics(definition: Definition, x: mx.array) -> tuple[mx.array | None, mx.array]:
    """What is subtracted from each row, and its scale."""
    if definition.normalize == "layer_norm":
        return mx.mean(x, -1, keepdims=True), mx.std(x, -1, keepdims=True, ddof=1)
    return None, mx.linalg.norm(x, axis=-1, keepdims=True) / x.shape[-1] ** 0.5
