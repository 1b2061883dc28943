"""Llama and Gemma 3 forward passes written out in numpy float64, with a word at every site.

Independent of MLX's arithmetic and of the library: the reference that captures and
interventions are held against. ``edit(layer, site, x)`` may change a tensor; ``read_q``, ``read_k``, ``read_v`` and
``read_mlp`` are what a part reads of the stream, before its norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

Array = np.ndarray[Any, np.dtype[np.float64]]
Edit = Callable[[int, str, Array], Array]


def weights_of(model: Any) -> dict[str, Array]:
    flat: Any = tree_flatten(model.parameters())
    return {name: np.array(value.astype(mx.float32), dtype=np.float64) for name, value in flat}


def unchanged(layer: int, site: str, x: Array) -> Array:
    return x


def rms(x: Array, gain: Array, eps: float) -> Array:
    out: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain
    return out


def rope(x: Array, base: float) -> Array:
    """Rotate halves: x of shape (heads, tokens, dim)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)


def attend(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    window: int | None,
    look: Callable[[Array], Array] = lambda scores: scores,
    read: Callable[[Array], Array] = lambda weights: weights,
) -> Array:
    """Causal attention, within ``window`` tokens if given; k and v shared by groups of heads.

    ``look`` may change the scores, ``read`` the weights, (heads, tokens, tokens).
    """
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = q @ k.transpose(0, 2, 1) * scale
    at = np.arange(q.shape[1])
    allowed = at[:, None] >= at[None]
    if window is not None:
        allowed &= at[:, None] - at[None] < window
    scores = look(np.where(allowed, scores, -np.inf))
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out: Array = read(p / p.sum(axis=-1, keepdims=True)) @ v
    return out


def _heads(x: Array, count: int) -> Array:
    return x.reshape(x.shape[0], count, -1).transpose(1, 0, 2)


def llama(model: Any, ids: tuple[int, ...], edit: Edit = unchanged) -> Array:
    """Logits (tokens, vocabulary) of ``tiny.llama``."""
    w, a = weights_of(model), model.args
    n: Any
    x = w["model.embed_tokens.weight"][list(ids)]
    for layer in range(a.num_hidden_layers):
        p = f"model.layers.{layer}."
        x = edit(layer, "resid_pre", x)
        n = {
            name: rms(edit(layer, f"read_{name}", x), w[p + "input_layernorm.weight"], a.rms_norm_eps) for name in "qkv"
        }
        q, k, v = (edit(layer, f"attn_{m}", n[m] @ w[p + f"self_attn.{m}_proj.weight"].T) for m in "qkv")
        heads = (_heads(q, a.num_attention_heads), _heads(k, a.num_key_value_heads), _heads(v, a.num_key_value_heads))
        inner = [partial(edit, layer, site) for site in ("attn_scores", "attn_pattern")]
        z = attend(rope(heads[0], a.rope_theta), rope(heads[1], a.rope_theta), heads[2], 16**-0.5, None, *inner)
        z = edit(layer, "attn_z", z.transpose(1, 0, 2).reshape(len(ids), -1))
        x = x + edit(layer, "attn_out", z @ w[p + "self_attn.o_proj.weight"].T)
        read = edit(layer, "read_mlp", x)
        n = edit(layer, "mlp_normed", rms(read, np.ones(1), a.rms_norm_eps))
        n = edit(layer, "mlp_in", n * w[p + "post_attention_layernorm.weight"])
        gate, up = n @ w[p + "mlp.gate_proj.weight"].T, n @ w[p + "mlp.up_proj.weight"].T
        x = x + edit(layer, "mlp_out", (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T)
        x = edit(layer, "resid_post", x)
    return rms(x, w["model.norm.weight"], a.rms_norm_eps) @ w["lm_head.weight"].T


def gemma3(model: Any, ids: tuple[int, ...], edit: Edit = unchanged) -> Array:
    """Logits (tokens, vocabulary) of ``tiny.gemma3``."""
    w, a = weights_of(model), model.args
    eps = a.rms_norm_eps
    n: Any
    x = w["model.embed_tokens.weight"][list(ids)] * 8.0  # sqrt(64)
    for layer in range(a.num_hidden_layers):
        p = f"model.layers.{layer}."
        window = a.sliding_window if (layer + 1) % a.sliding_window_pattern else None
        base = a.rope_local_base_freq if window else a.rope_theta
        x = edit(layer, "resid_pre", x)
        n = {name: rms(edit(layer, f"read_{name}", x), 1 + w[p + "input_layernorm.weight"], eps) for name in "qkv"}
        q, k, v = (edit(layer, f"attn_{m}", n[m] @ w[p + f"self_attn.{m}_proj.weight"].T) for m in "qkv")
        q = rms(_heads(q, 4), 1 + w[p + "self_attn.q_norm.weight"], eps)
        k = rms(_heads(k, 2), 1 + w[p + "self_attn.k_norm.weight"], eps)
        inner = [partial(edit, layer, site) for site in ("attn_scores", "attn_pattern")]
        z = attend(rope(q, base), rope(k, base), _heads(v, 2), 16**-0.5, window, *inner)
        z = edit(layer, "attn_z", z.transpose(1, 0, 2).reshape(len(ids), -1))
        r = edit(layer, "attn_out", z @ w[p + "self_attn.o_proj.weight"].T)
        x = x + edit(layer, "attn_out_normed", rms(r, 1 + w[p + "post_attention_layernorm.weight"], eps))
        read = edit(layer, "read_mlp", x)
        n = edit(layer, "mlp_normed", rms(read, np.ones(1), eps))
        n = edit(layer, "mlp_in", n * (1 + w[p + "pre_feedforward_layernorm.weight"]))
        gate, up = n @ w[p + "mlp.gate_proj.weight"].T, n @ w[p + "mlp.up_proj.weight"].T
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        r = edit(layer, "mlp_out", (gelu * up) @ w[p + "mlp.down_proj.weight"].T)
        x = x + edit(layer, "mlp_out_normed", rms(r, 1 + w[p + "post_feedforward_layernorm.weight"], eps))
        x = edit(layer, "resid_post", x)
    return rms(x, 1 + w["model.norm.weight"], eps) @ w["model.embed_tokens.weight"].T


def log_softmax(x: Array) -> Array:
    """In float64 if ``x`` is, over the last axis."""
    x = x - x.max(axis=-1, keepdims=True)
    out: Array = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return out
