"""What an attribution graph explains, and the direct effects of all sources on it.

Its targets are logits of the next token, differences of them, directions; and features. A target is a linear function
of the stream at one place: its cotangent is put in there and carried down one pass backwards through a frozen model,
for many targets together, and at each layer what is written there is multiplied with it. Targets of one pass enter at
their own layers, the highest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError
from lens_tui.records.attribution_graph import LogitTarget
from lens_tui.records.patch_grid import Doubles

from ..architecture.unembed import Unembedding, final_step, find_unembedding, weight_rows
from ..decode.sampling import log_softmax
from ..forward import Core, single_token, unhooked
from .frozen_model import FrozenModel
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


@dataclass(frozen=True, eq=False)
class Ends:
    """The logits of a graph: their cotangents at the last residual ``(n, d_model)``, and what they are.

    ``rows`` ``(n, d_model)`` are their directions behind the final norm. ``value`` is each one's number in the model's
    own forward, before soft-capping; ``constant`` what the unembedding adds whatever the residual is. ``tokens`` are
    ids, beyond the vocabulary for what is no single token.
    """

    vectors: mx.array
    rows: mx.array
    value: Doubles
    constant: Doubles
    tokens: tuple[int, ...]
    labels: tuple[str, ...]
    weights: FloatArray


def find_ends(lens: Core, frozen: FrozenModel, wanted: Sequence[LogitTarget], *, most: int, mass: float) -> Ends:
    """The ends of a graph, at the last token.

    A token's logit is taken less the mean of all logits, which changes no probability and makes the effects on it those
    that favour it over others.

    Args:
        lens: The model.
        frozen: It, held at a prompt.
        wanted: What is to be explained; where nothing is given the most probable next tokens.
        most: So many of those, at most.
        mass: As few as have this probability together.

    Raises:
        LensError: For a token that there is not, and a model whose unembedding cannot be taken apart.
    """
    decoder = lens.registry.decoder
    with unhooked(lens):
        unembedding = find_unembedding(decoder)
        step = final_step(decoder, unembedding, frozen.last[-1:])
    hidden = 0.0 if decoder.hide is None else np.array(decoder.hide, np.float64)
    chances = np.exp(np.array(log_softmax(mx.array((step.model_logits[0] + hidden).astype(np.float32))[None]))[0])
    wanted = tuple(wanted) or tuple(LogitTarget(token) for token in _likeliest(chances, most, mass))
    mean, shift = _mean_row(unembedding)
    rows, biases, tokens, labels, weights = [], [], [], [], []
    for number, target in enumerate(wanted):
        row, bias, token, label, weight = _end(lens, unembedding, target, (mean, shift), chances)
        rows.append(row)
        biases.append(bias)
        tokens.append(decoder.vocab_size + number if token is None else token)
        labels.append(label)
        weights.append(weight if target.weight is None else target.weight)
    table = np.stack(rows)
    vectors = step.factor * table * step.scaled[0]
    constant = step.factor * (table @ step.shift + np.array(biases))
    if step.centred:
        vectors = vectors - vectors.mean(axis=-1, keepdims=True)
    held = mx.array(vectors.astype(np.float32))
    normed = np.array(unembedding.norm(frozen.last[None, -1:]).astype(mx.float32), np.float64)[0, 0]
    value = step.factor * (table @ normed + np.array(biases))
    behind = mx.array((step.factor * table).astype(np.float32))
    return Ends(held, behind, value, constant, tuple(tokens), tuple(labels), np.array(weights, np.float32))


def token_text(lens: Core, token: int) -> str:
    """A token as its tokenizer writes it; its id where there is no tokenizer."""
    return lens.tokens.decode([token]) if lens.tokens.tokenizer is not None else str(token)


def _likeliest(chances: Doubles, most: int, mass: float) -> list[int]:
    order = np.argsort(-chances, kind="stable")[: max(1, most)]
    enough = int(np.searchsorted(np.cumsum(chances[order]), mass)) + 1
    return [int(token) for token in order[:enough]]


def _mean_row(unembedding: Unembedding) -> tuple[Doubles, float]:
    """The mean of all rows of the unembedding, and of its biases."""
    total, count = np.zeros(len(unembedding.gain)), 0
    for block in unembedding.rows():
        total += np.array(block.sum(axis=0), np.float64)
        count += int(block.shape[0])
    bias = unembedding.head.get("bias")
    return total / count, 0.0 if bias is None else float(bias.astype(mx.float32).mean())


def _end(
    lens: Core, unembedding: Unembedding, target: LogitTarget, mean: tuple[Doubles, float], chances: Doubles
) -> tuple[Doubles, float, int | None, str, float]:
    """Of one target its direction behind the final norm, its bias, its token, its label and its weight."""
    if target.direction is not None:
        direction = np.asarray(target.direction, np.float64).reshape(-1)
        if direction.shape != (len(unembedding.gain),) or not np.isfinite(direction).all():
            raise LensError(
                f"The direction has shape {direction.shape}; this model's width is {len(unembedding.gain)}."
            )
        return direction, 0.0, None, target.name or "direction", 1.0
    if target.token is None:
        raise LensError("A target is neither a token nor a direction.", "Give LogitTarget(' door').")
    ids = [_id(lens, each) for each in (target.token, target.minus) if each is not None]
    rows, bias = weight_rows(unembedding.head, ids)
    texts = [token_text(lens, each) for each in ids]
    if len(ids) == 1:
        chance = float(chances[ids[0]])
        label = target.name or f'Output "{texts[0]}" (p={chance:.3f})'
        return rows[0] - mean[0], float(bias[0]) - mean[1], ids[0], label, chance
    name = target.name or f'Output "{texts[0]}" - "{texts[1]}"'
    return rows[0] - rows[1], float(bias[0] - bias[1]), None, name, 1.0


def _id(lens: Core, token: int | str) -> int:
    return single_token(lens, token) if isinstance(token, str) else lens.tokens.check([int(token)])[0]


def all_targets(sources: Sources, ends: Ends) -> Targets:
    """Features, by their numbers, and behind them the ends."""
    n_layers, count = len(sources.frozen.layers), len(ends.tokens)
    layer = np.concatenate([sources.layer, np.full(count, n_layers)])
    position = np.concatenate([sources.position, np.full(count, sources.n_tokens - 1)])

    def vectors(numbers: Ints) -> mx.array:
        if numbers[0] >= sources.n_features:
            return ends.vectors[mx.array(numbers - sources.n_features)]
        return sources.replacement.encoder(int(sources.layer[numbers[0]]), sources.feature[numbers])[0]

    return Targets(layer, position, vectors)


def feature_values(sources: Sources) -> tuple[Doubles, Doubles]:
    """The pre-activation of each feature from what the model's own forward gives it to read, and the constant in it.

    Raises :class:`LensError` where that is not the activation: the transcoder is not linear where it is active.
    """
    value = np.zeros(sources.n_features)
    constant = np.zeros(sources.n_features)
    replacement = sources.replacement
    for at in np.unique(sources.layer).tolist():
        span = slice(int(sources.starts[at]), int(sources.starts[at + 1]))
        features, place = np.unique(sources.feature[span], return_inverse=True)
        rows, bias = replacement.encoder(at, features)
        layer = sources.frozen.layers[at]
        read = layer.read(replacement.reads)
        products = np.array(read @ rows.astype(mx.float32).T, np.float64)
        reader = layer.reader(replacement.reads)
        shift = 0.0 if reader is None else np.array(rows.astype(mx.float32) @ reader.shift, np.float64)
        value[span] = products[sources.position[span], place] + bias[place]
        constant[span] = (bias + shift)[place]
    off = np.abs(value - sources.activation) > 1e-2 * np.maximum(np.abs(value), 1.0) + sources.frozen.close
    if off.any():
        worst = int(np.flatnonzero(off)[0])
        raise LensError(
            f"Feature {sources.feature[worst]} of layer {sources.layer[worst]} is at {sources.activation[worst]:.3g}"
            f" where its encoder gives {value[worst]:.3g}: {replacement.name} is not linear where it is active.",
            "No direct effects on its features can be told.",
        )
    return value, constant
