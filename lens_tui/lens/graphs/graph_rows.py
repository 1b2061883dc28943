"""Direct effects of all sources on many targets at once: one pass backwards through a frozen model for a batch of them.

A target is a linear function of the stream at one place: its cotangent is put in there and carried down, and at each
layer what is written there is multiplied with it. Targets of one pass enter at their own layers, the highest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray
from lens_tui.records.patch_grid import Doubles

from .replacement import Bucket, Ints, Sources

BIASES = ("attention", "decoder")
_NUMBERS = 1 << 24
"""Of the cotangents of one batch, at most, unless it is of a few rows."""
_MOST, _LEAST = 128, 4


@dataclass(frozen=True, eq=False)
class Targets:
    """Linear functions of the stream: ``layer`` and ``position`` ``(n,)`` say where each reads it.

    One of layer L reads what that layer's transcoder reads; of as many layers as there are, the last residual.
    ``vectors(numbers)`` gives their rows ``(len(numbers), width)``.
    """

    layer: Ints
    position: Ints
    vectors: Callable[[Ints], mx.array]


@dataclass(frozen=True, eq=False)
class Effects:
    """Rows of some targets: ``numbers`` ``(n,)`` among all, effects of the sources ``(n, sources)``, and of biases."""

    numbers: Ints
    rows: FloatArray
    bias: dict[str, Doubles]


def batch_size(sources: Sources) -> int:
    """How many targets go together."""
    one = sources.n_tokens * int(sources.frozen.embedded.shape[-1])
    return max(_LEAST, min(_MOST, _NUMBERS // max(1, one)))


def direct_effects(
    sources: Sources, targets: Targets, chosen: Ints, size: int | None = None, between: Callable[[], None] | None = None
) -> Iterator[Effects]:
    """The effects on some targets, a batch after another; those of the highest layers come first.

    Args:
        sources: What acts.
        targets: What is acted on.
        chosen: Numbers of those asked for.
        size: Targets in a batch, by default as many as memory is sensibly used for.
        between: Called before each batch; what it raises ends the computation.
    """
    order = chosen[np.lexsort((targets.position[chosen], -targets.layer[chosen]))]
    size = size or batch_size(sources)
    for start in range(0, len(order), size):
        if between is not None:
            between()
        yield _batch(sources, targets, order[start : start + size])


def _batch(sources: Sources, targets: Targets, numbers: Ints) -> Effects:
    frozen, replacement = sources.frozen, sources.replacement
    layers, tokens = targets.layer[numbers], int(targets.position[numbers].max()) + 1
    out = np.zeros((len(numbers), sources.count), np.float32)
    bias = {name: np.zeros(len(numbers), np.float64) for name in BIASES}
    width = int(frozen.embedded.shape[-1])
    flow = _entering(targets, numbers[layers == len(frozen.layers)], tokens, width)
    for at in range(min(int(layers.max()), len(frozen.layers) - 1), -1, -1):
        layer = frozen.layers[at]
        if flow.shape[0]:
            flow = _through_mlp(sources, at, flow, out, bias)
        fresh = numbers[layers == at]
        if len(fresh):
            reads = int(layer.read(replacement.reads).shape[-1])
            entering, norm = _entering(targets, fresh, tokens, reads), layer.reader(replacement.reads)
            flow = mx.concatenate([flow, entering if norm is None else norm.back(entering)])
        held = flow.shape[0]
        added = _dots(flow, layer.attention_bias[:tokens]).sum(axis=1)
        flow = flow + layer.attend_back(flow)
        mx.eval(flow, added)
        bias["attention"][:held] += np.array(added, np.float64)
    first = sources.count - sources.n_tokens
    out[:, first : first + tokens] = np.array(_dots(flow, frozen.embedded[:tokens]))
    return Effects(numbers, out, bias)


def _entering(targets: Targets, numbers: Ints, tokens: int, width: int) -> mx.array:
    """Cotangents ``(n, tokens, width)`` of targets where they read."""
    found = mx.zeros((len(numbers), tokens, width))
    if not len(numbers):
        return found
    vectors = targets.vectors(numbers).astype(mx.float32)
    return found.at[mx.arange(len(numbers)), mx.array(targets.position[numbers])].add(vectors)


def _through_mlp(sources: Sources, at: int, flow: mx.array, out: FloatArray, bias: dict[str, Doubles]) -> mx.array:
    """What is written at a layer, into ``out`` and ``bias``; and the cotangents ahead of its MLP."""
    layer, written = sources.frozen.layers[at], sources.written[at]
    replacement = sources.replacement
    held, tokens = int(flow.shape[0]), int(flow.shape[1])
    norm = layer.writer(replacement.writes)
    here = flow if norm is None else norm.back(flow)
    parts = [(bucket, _of_bucket(written.decoder, bucket, here)) for bucket in written.buckets]
    errors = _dots(here, written.error[:tokens])
    constant = mx.zeros((held,)) if norm is None else (flow @ norm.shift).sum(axis=1)
    if written.bias is not None:
        constant = constant + _dots(here, written.bias[:tokens]).sum(axis=1)
    ahead = flow
    if written.skip is not None and written.counted is not None:
        back = (here * written.counted[:tokens]) @ written.skip.T
        reader = layer.reader(replacement.reads)
        if reader is not None:
            constant = constant + (back @ reader.shift).sum(axis=1)
            back = reader.back(back)
        ahead = flow + back
    mx.eval(errors, constant, ahead, [part for _, part in parts])
    for bucket, part in parts:
        columns = bucket.columns[: part.shape[0]]
        there = columns >= 0
        out[:held, columns[there]] = np.array(part).transpose(1, 0, 2)[:, there] + out[:held, columns[there]]
    first = sources.n_features + at * sources.n_tokens
    out[:held, first : first + tokens] = np.array(errors)
    bias["decoder"][:held] += np.array(constant, np.float64)
    return ahead


def _of_bucket(decoder: mx.array | None, bucket: Bucket, here: mx.array) -> mx.array:
    """Effects ``(b, rows, k)`` of the features of a bucket at positions that the cotangents reach."""
    assert decoder is not None
    count = int(np.searchsorted(bucket.positions, here.shape[1]))
    rows, scale = bucket.rows[:count], bucket.scale[:count]
    if not count:
        return mx.zeros((0, here.shape[0], rows.shape[1]))
    at = mx.take(here, mx.array(bucket.positions[:count]), axis=1).swapaxes(0, 1)
    return (at @ decoder[rows].swapaxes(1, 2)) * scale[:, None]


def _dots(flow: mx.array, vectors: mx.array) -> mx.array:
    """At each token the product of cotangents ``(rows, tokens, width)`` with a vector, ``(rows, tokens)``."""
    return (flow * vectors).sum(axis=-1)


def sums(effects: Effects) -> Doubles:
    """For each row what all sources and biases add up to, ``(n,)``."""
    found: Doubles = effects.rows.sum(axis=1, dtype=np.float64) + sum(effects.bias.values())
    return found
