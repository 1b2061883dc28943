"""Attention by head: what each head hands on, what it writes to the residual, and what that adds to a logit.

What a head writes is its slice of ``attn_z`` through its columns of the output projection, so that the heads and the
projection's bias sum to ``attn_out`` (Elhage et al. 2021, "A mathematical framework for transformer circuits"). A norm
behind the attention (Gemma 2 and 3) is kept at its denominator, as the final one is in logit attribution. That the
heads are all of an attention is proved on what it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui.records import FloatArray, Intervention, LensError
from lens_tui.records.measures import HeadAttribution

from ..architecture.find import heads_of
from ..architecture.norms import gain_of, gain_over_denominator
from ..architecture.unembed import weight_rows
from ..forward import Core, one_text, read_sites
from ..hooks.program import Key

Array = NDArray[np.float64]
Stream = Mapping[Key, Array]


@dataclass(frozen=True, eq=False)
class AttentionWrote:
    """What a layer's attention wrote, and what its logit is along.

    ``before`` and ``after`` are the tensors ``(p, width)`` by layer and site without and with steering, ``site`` the
    one that adds to the residual, ``factor`` times; ``direction`` ``(p, d_model)`` is what the logit is along.
    """

    before: Stream
    after: Stream
    site: str
    factor: float
    direction: Array


@dataclass(frozen=True, eq=False)
class _Output:
    """A layer's output projection: ``weight`` ``(d_model, heads * head_dim)`` and ``bias`` ``(d_model,)``."""

    heads: int
    weight: Array
    bias: Array


def head_outputs(
    lens: Core, text: Any, layer: int, *, interventions: Sequence[Intervention] | None = None
) -> tuple[FloatArray, FloatArray]:
    """What each head of a layer gives: its part of ``attn_out``.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layer: Negative ones count from the end.
        interventions: Replace those of the blocks around the call, which hold otherwise.

    Returns:
        ``(tokens, heads, d_model)`` in float32, and the output projection's bias ``(d_model,)``, which is no head's.
        Over heads, and with the bias, they sum to ``attn_out`` up to the rounding of the model's dtype.

    Raises:
        LensError: With the reason where a layer's output is not the sum of its heads'.
    """
    ids = one_text(lens, text)
    layer = lens.registry.decoder.index(layer)
    keys = [(layer, "attn_z"), (layer, "attn_out")]
    found = read_sites(lens, ids, keys, interventions)
    plain = found if interventions is None and not lens.registry.ambient()[0] else read_sites(lens, ids, keys, ())
    output = _output(lens, layer, {key: _numbers(value) for key, value in plain.items()})
    z = _numbers(found[layer, "attn_z"]).reshape(len(ids), output.heads, -1)
    weight = output.weight.reshape(lens.d_model, output.heads, -1)
    # Head by head: one product of all of them would go through axes that no library multiplies quickly.
    each = [z[:, head] @ weight[:, head].T for head in range(output.heads)]
    return np.stack(each, axis=1).astype(np.float32), output.bias.astype(np.float32)


def head_attribution(lens: Core, layer: int, written: AttentionWrote) -> HeadAttribution:
    """What each head of a layer adds to a logit; with the reason where its heads cannot be told apart.

    Args:
        lens: The model, with nothing hooked.
        layer: Counted from 0.
        written: What its attention wrote.
    """
    count = len(written.direction)
    if (layer, "attn_z") not in written.after or (layer, "attn_out") not in written.after:
        return no_heads(layer, count, "its attention hands no heads to an output projection")
    try:
        output = _output(lens, layer, written.before)
        along = written.factor * written.direction
        if written.site == "attn_out_normed":
            along = along * _norm_scale(lens, layer, written.after[layer, "attn_out"])
    except LensError as error:
        return no_heads(layer, count, error.message)
    z = written.after[layer, "attn_z"]
    values = (z * (along @ output.weight)).reshape(count, output.heads, -1).sum(axis=-1).T
    bias = along @ output.bias
    whole = written.factor * (written.after[layer, written.site] * written.direction).sum(axis=-1)
    rest = whole - values.sum(axis=0) - bias
    return HeadAttribution(layer, values.astype(np.float32), bias.astype(np.float32), rest.astype(np.float32))


def no_heads(layer: int, count: int, why: str) -> HeadAttribution:
    """A layer at ``count`` positions whose heads cannot be told apart, and why."""
    none = np.zeros(count, np.float32)
    return HeadAttribution(layer, np.zeros((0, count), np.float32), none, none, why)


def _output(lens: Core, layer: int, stream: Stream) -> _Output:
    """A layer's output projection, held against what it gave of ``attn_z`` without steering."""
    lens.registry.decoder.check_whole("What each head writes")
    sites = lens.registry.sites
    attention, projection = sites.point(layer, "attn_out").module, sites.point(layer, "attn_z")
    heads = heads_of(attention)
    name = f"the attention of layer {layer} ({type(attention).__name__})"
    if not heads or projection.width % heads:
        raise LensError(f"{name} does not say how many heads it has.")
    if "weight" not in projection.module or projection.module["weight"].ndim != 2:
        raise LensError(f"The output projection of {name} has no weights of its own.")
    weight, bias = weight_rows(projection.module, range(lens.d_model))
    z, given = stream[layer, "attn_z"], stream[layer, "attn_out"]
    if weight.shape[1] != projection.width:
        raise LensError(f"The output projection of {name} does not take its heads as they are.")
    error = np.linalg.norm(z @ weight.T + bias - given) / max(float(np.linalg.norm(given)), 1e-30)
    eps = float(mx.finfo(lens.registry.decoder.dtype).eps)
    if not error <= max(1e-4, 4.0 * eps):
        raise LensError(f"What {name} gives is not its heads through one projection (off by {error:.0%}).")
    return _Output(heads, weight, bias)


def _norm_scale(lens: Core, layer: int, given: Array) -> Array:
    """The gain over its denominator, at each position, of the norm behind an attention that gave ``(p, d_model)``."""
    norm: Module = lens.registry.sites.point(layer, "attn_out_normed").module
    x = mx.array(given.astype(np.float32))[None]
    gain = gain_of(norm, lens.d_model).astype(np.float64)
    return gain_over_denominator(_numbers(x)[0], _numbers(norm(x))[0], gain, False)


def _numbers(tensor: mx.array) -> Array:
    return np.array(tensor.astype(mx.float32), dtype=np.float64)
