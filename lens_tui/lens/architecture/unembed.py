"""From the residual stream to tokens: the model's own last steps, and what a direction promotes.

``readout`` puts a residual in place of the last block's output and lets the
model continue from there, so the final norm, the unembedding, soft-capping and any
scale are the model's own on every architecture. ``token_weights`` unembeds a
*direction*, for which the norm has no meaning of its own: its gain is folded
into the direction and nothing else is (the logit lens of a decoder row,
nostalgebraist 2020, with the norm folded as Neuronpedia's pages do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui import blas
from lens_tui.records import FloatArray, LensError, TokenWeight

from ..hooks.steering import HEAD, not_finite
from ..tokens import Tokens
from .find import Decoder
from .norms import Array, doubles_of, gain_of, held_norm, numbers_of
from .taps import Call, install, replace_first, uninstall

Convention = Literal["norm", "raw"]
NORM_NAMES = (
    "norm",
    "final_layernorm",
    "final_norm",
    "ln_f",
    "norm_f",
    "final_layer_norm",
    "ln_out",
    "out_norm",
    "embedding_norm",
    "output_norm",
)
HEAD_NAMES = ("lm_head", "output", "embed_out", "head")
EMBED_NAMES = ("embed_tokens", "wte", "embeddings", "embedding", "tok_embeddings", "word_embeddings", "embed")
BLOCK = 16384


def readout(decoder: Decoder, residual: mx.array) -> mx.array:
    """The model's logits ``(batch, tokens, vocabulary)`` for a last-layer residual ``(batch, tokens, d_model)``.

    Nothing before the last block is computed: the forward pass that carries the
    residual is lazy, and what the replaced output depends on is never evaluated.
    Raises :class:`LensError` where the logits depend on more than this residual.
    """
    if not decoder.closed:
        raise LensError(
            "This model's logits depend on more than the last layer's residual (several streams, or earlier layers), "
            "so a residual alone has no logits."
        )
    last = decoder.layers[-1]

    def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return replace_first(call(*args, **kwargs), residual)

    install(last, tap)
    try:
        logits: mx.array = decoder.forward(mx.zeros(residual.shape[:2], dtype=mx.int32))
    finally:
        uninstall(last, tap)
    return logits


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The final norm's gain, shape (d_model,), and the unembedding in blocks of rows (tokens, d_model), float32.

    ``norm`` and ``head`` are the modules that they are read off.
    """

    gain: FloatArray
    rows: Callable[[], Iterator[mx.array]]
    norm: Module
    head: Module

    def weights(self, direction: FloatArray, convention: Convention = "norm") -> FloatArray:
        """What a direction adds to each token's logit, up to the norm's scale; shape (vocabulary,)."""
        folded = direction * self.gain if convention == "norm" else direction
        vector = mx.array(np.ascontiguousarray(folded, dtype=np.float32))
        parts = [np.array(block @ vector) for block in self.rows()]
        return np.concatenate(parts)


def find_unembedding(decoder: Decoder) -> Unembedding:
    """The final norm and the unembedding, accepted only if together they give the model's own logits.

    Up to one positive factor and soft-capping, which change no direction. Raises
    :class:`LensError` where no pair does.
    """
    probe = _probe(decoder)
    target = np.array(readout(decoder, probe).astype(mx.float32))[0]
    if np.isnan(target).any():
        raise not_finite("The model's logits", HEAD)
    for norm in _parts(decoder, NORM_NAMES):
        for head in [*_parts(decoder, HEAD_NAMES), *_parts(decoder, EMBED_NAMES)]:
            try:
                ours = np.array(apply_head(head, norm(probe)).astype(mx.float32))[0]
            except (ValueError, TypeError, AttributeError, RuntimeError):
                continue
            if ours.shape == target.shape and _same_direction(ours, target, decoder):
                gain = gain_of(norm, decoder.d_model)
                return Unembedding(gain, lambda head=head: _blocks(head), norm, head)  # type: ignore[misc]
    raise LensError(
        "The final norm and unembedding of this model cannot be proved, so directions cannot be unembedded."
    )


def token_weights(
    unembedding: Unembedding, tokens: Tokens, direction: FloatArray, k: int, convention: Convention = "norm"
) -> tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]:
    """The tokens that a direction promotes and suppresses most.

    Args:
        unembedding: The model's.
        tokens: Names them, and says which ids stand for none.
        direction: ``(d_model,)``.
        k: How many of each.
        convention: Whether the final norm's gain is folded in.

    Returns:
        Those promoted and those suppressed, strongest first.
    """
    values = unembedding.weights(direction, convention)
    hidden = tokens.hidden
    order = np.argsort(-values, kind="stable")
    if hidden is not None:
        order = order[~hidden[order]]
    k = min(k, len(order))
    found = [TokenWeight(int(at), tokens.display(int(at)), float(values[at])) for at in (*order[:k], *order[::-1][:k])]
    return tuple(found[:k]), tuple(found[k:])


def _probe(decoder: Decoder) -> mx.array:
    values = np.random.default_rng(0).normal(size=(1, 2, decoder.d_model)) * 10.0
    return mx.array(values.astype(np.float32)).astype(decoder.dtype)


def _parts(decoder: Decoder, names: tuple[str, ...]) -> list[Module]:
    """Modules of these names, nearest to the blocks first."""
    found = [getattr(owner, name, None) for owner in reversed(decoder.owners) for name in names]
    return [module for module in found if isinstance(module, Module)]


def apply_head(head: Module, x: mx.array) -> mx.array:
    """What an unembedding, a layer of its own or the tied embedding, gives for normed residuals."""
    as_linear: Any = getattr(head, "as_linear", None)
    result: mx.array = head(x) if as_linear is None else as_linear(x)
    return result


def _same_direction(ours: FloatArray, target: FloatArray, decoder: Decoder) -> bool:
    """Whether the logits are ours times a positive factor, after soft-capping is undone."""
    tolerance = 1e-3 if decoder.dtype == mx.float32 else 3e-2
    cap = softcap_of(decoder)
    if cap:
        target = (np.arctanh(np.clip(target / cap, -0.999999, 0.999999)) * cap).astype(np.float32)
        keep = np.abs(target) < 2 * cap
        ours, target = ours * keep, target * keep
    factor = float((ours * target).sum() / max(float((ours * ours).sum()), 1e-30))
    error = float(np.linalg.norm(target - factor * ours) / max(float(np.linalg.norm(target)), 1e-30))
    return factor > 0 and error < tolerance


def softcap_of(decoder: Decoder) -> float:
    """The bound of the model's logits, ``cap * tanh(logit / cap)``; 0 if they have none."""
    for owner in decoder.owners:
        for holder in (owner, getattr(owner, "args", None), getattr(owner, "config", None)):
            value = getattr(holder, "final_logit_softcapping", None)
            if isinstance(value, (int, float)) and value:
                return float(value)
    return 0.0


def _blocks(head: Module) -> Iterator[mx.array]:
    """Rows of an unembedding as float32, block by block: never the whole matrix at once."""
    weight: mx.array = head["weight"]
    for start in range(0, weight.shape[0], BLOCK):
        rows = weight[start : start + BLOCK]
        if "scales" in head:
            biases = head["biases"][start : start + BLOCK] if head.get("biases") is not None else None
            rows = mx.dequantize(
                rows,
                head["scales"][start : start + BLOCK],
                biases,
                group_size=head.group_size,
                bits=head.bits,
                mode=getattr(head, "mode", "affine"),
            )
        yield rows.astype(mx.float32)


def top_tokens(
    unembedding: Unembedding, directions: Any, k: int, convention: Convention = "norm", hide: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The tokens that each of many directions promotes and suppresses most: :func:`token_weights` of many at once.

    The vocabulary goes by in blocks of rows, each multiplied with all directions.

    Args:
        unembedding: The model's.
        directions: ``(n, d_model)``.
        k: How many of each.
        convention: Whether the final norm's gain is folded in.
        hide: That of the model's ``Decoder``: ids that stand for no token.

    Returns:
        Ids and values of those promoted, then of those suppressed, ``(n, k)`` each, strongest first.

    Raises:
        LensError: For directions of another width.
    """
    vectors = mx.array(directions).astype(mx.float32)
    gain = mx.array(unembedding.gain)
    if vectors.ndim != 2 or vectors.shape[1] != gain.shape[0]:
        raise LensError(f"Directions of shape {tuple(vectors.shape)} do not fit d_model {gain.shape[0]}.")
    folded = vectors * gain if convention == "norm" else vectors
    best: list[tuple[mx.array, mx.array]] = []
    worst: list[tuple[mx.array, mx.array]] = []
    start = 0
    for rows in unembedding.rows():
        weights = blas.times(folded, np.asarray(rows).T) if blas.on_host() else folded @ rows.T
        ids = mx.broadcast_to(mx.arange(start, start + rows.shape[0]), weights.shape)
        down = 0.0 if hide is None else hide[start : start + rows.shape[0]]
        best = [_select([*best, (ids, weights + down)], k, lambda values: -values)]
        worst = [_select([*worst, (ids, weights - down)], k, lambda values: values)]
        mx.eval(best, worst)
        start += int(rows.shape[0])
    return (*best[0], *worst[0])


def _select(
    parts: list[tuple[mx.array, mx.array]], k: int, key: Callable[[mx.array], mx.array]
) -> tuple[mx.array, mx.array]:
    """The ``k`` entries of smallest key, in order: first cut to ``k``, then sorted."""
    ids = mx.concatenate([part[0] for part in parts], axis=1)
    values = mx.concatenate([part[1] for part in parts], axis=1)
    if k < values.shape[1]:
        place = mx.argpartition(key(values), k - 1, axis=1)[:, :k]
        ids, values = mx.take_along_axis(ids, place, 1), mx.take_along_axis(values, place, 1)
    order = mx.argsort(key(values), axis=1)
    return mx.take_along_axis(ids, order, 1), mx.take_along_axis(values, order, 1)


@dataclass(frozen=True, eq=False)
class FinalStep:
    """The last norm and the unembedding at ``p`` residuals: what they make of them, and how.

    ``logits`` and ``model_logits`` ``(p, vocabulary)`` are before and after soft-capping, ``scaled`` ``(p, d_model)``
    is the norm's gain over its denominator there, ``centred`` says that the norm takes the mean away (layer norm),
    ``shift`` ``(d_model,)`` is the norm's bias, ``factor`` what the model multiplies its logits with.
    """

    unembedding: Unembedding
    logits: Array
    model_logits: Array
    softcap: float
    scaled: Array
    centred: bool
    shift: Array
    factor: float

    def directions(self, targets: Sequence[int]) -> tuple[Array, Array]:
        """For one target token at each position the direction ``(p, d_model)`` and the constant ``(p,)``."""
        rows, bias = weight_rows(self.unembedding.head, targets)
        direction = self.factor * rows * self.scaled
        if self.centred:
            direction = direction - direction.mean(axis=-1, keepdims=True)
        return direction, self.factor * (rows @ self.shift + bias)


def final_step(decoder: Decoder, unembedding: Unembedding, residual: mx.array) -> FinalStep:
    """The step at residuals ``(p, d_model)``; raises :class:`LensError` where it is not what it seems."""
    h = residual.astype(mx.float32)[None]
    normed = unembedding.norm(h)
    held = held_norm(unembedding.norm, h, unembedding.gain)
    ours, theirs = numbers_of(apply_head(unembedding.head, normed)), numbers_of(readout(decoder, h))
    cap = softcap_of(decoder)
    factor = _factor(ours, theirs, cap)
    logits = factor * ours
    expected = cap * np.tanh(logits / cap) if cap else logits
    if not np.allclose(expected, theirs, rtol=1e-3, atol=1e-3 * max(float(np.abs(theirs).max()), 1e-30)):
        raise LensError(
            "The model's logits are not its final norm and unembedding alone, so they cannot be taken apart."
        )
    return FinalStep(unembedding, logits, theirs, cap, held.scale, held.centred, held.shift, factor)


def _factor(ours: Array, theirs: Array, cap: float) -> float:
    """What the model multiplies its logits with, by least squares where soft-capping has left them apart."""
    keep = np.abs(theirs) < 0.9 * cap if cap else np.ones(theirs.shape, dtype=bool)
    x, y = ours[keep], theirs[keep]
    if cap:
        y = np.arctanh(y / cap) * cap
    square = float((x * x).sum())
    factor = float((x * y).sum()) / square if square else 1.0
    return 1.0 if abs(factor - 1.0) < 1e-3 else factor


def weight_rows(head: Module, tokens: Sequence[int]) -> tuple[Array, Array]:
    """Rows of a linear layer or embedding (p, width) and its bias (p,), in float32 also where it is quantised."""
    at = mx.array(list(tokens))
    rows = head["weight"][at]
    if "scales" in head:
        biases = None if head.get("biases") is None else _widened(head["biases"][at])
        rows = mx.dequantize(
            rows,
            _widened(head["scales"][at]),
            biases,
            group_size=head.group_size,
            bits=head.bits,
            mode=getattr(head, "mode", "affine"),
        )
    bias: Any = head.get("bias")
    return doubles_of(rows), np.zeros(len(tokens)) if bias is None else doubles_of(bias[at])


def _widened(part: mx.array) -> mx.array:
    return part.astype(mx.float32) if mx.issubdtype(part.dtype, mx.floating) else part
