"""From the residual stream to tokens: the model's own last steps, and what a direction promotes.

``readout`` puts a residual in place of the last block's output and lets the
model go on from there, so the final norm, the unembedding, soft-capping and any
scale are the model's own on every architecture. ``token_weights`` unembeds a
*direction*, for which the norm has no meaning of its own: its gain is folded
into the direction and nothing else is (the logit lens of a decoder row,
nostalgebraist 2020, with the norm folded as Neuronpedia's pages do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import FloatArray, LensError, TokenWeight

from .finite import HEAD, not_finite
from .layers import Decoder
from .proxy import Call, install, replace_first, uninstall
from .tokens import Tokens

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
    residual is lazy, and what the replaced output stands on is never evaluated.
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
                gain = _gain(norm, decoder.d_model)
                return Unembedding(gain, lambda head=head: _blocks(head), norm, head)  # type: ignore[misc]
    raise LensError(
        "The final norm and unembedding of this model cannot be proved, so directions cannot be unembedded."
    )


def token_weights(
    unembedding: Unembedding, tokens: Tokens, direction: FloatArray, k: int, convention: Convention = "norm"
) -> tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]:
    """The ``k`` tokens that a direction promotes most and the ``k`` that it suppresses most, strongest first."""
    values = unembedding.weights(direction, convention)
    hidden = tokens.hidden
    order = np.argsort(-values, kind="stable")
    if hidden is not None:
        order = order[~hidden[order]]
    k = min(k, len(order))
    made = [TokenWeight(int(at), tokens.display(int(at)), float(values[at])) for at in (*order[:k], *order[::-1][:k])]
    return tuple(made[:k]), tuple(made[k:])


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


def _gain(norm: Module, width: int) -> FloatArray:
    """What the norm multiplies each component by: read off its output on a vector of ±1, whatever form it has.

    The vector has mean 0 and mean square 1 (d_model is even), so neither RMS nor
    layer norm scales it, and half the difference of two signs drops a bias.
    """
    signs = np.where(np.arange(width) % 2 == 0, 1.0, -1.0).astype(np.float32)
    x = mx.array(signs)[None, None]
    gain = np.array(((norm(x) - norm(-x)) / 2).astype(mx.float32))[0, 0] * signs
    result: FloatArray = gain.astype(np.float32)
    return result


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
