"""A decoder with held attention and norms in NumPy float64, and random transcoders: independent of the library.

One function for the shapes of llama, qwen2, qwen3, gemma2 and gemma3, by what their parameters are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.lens.graphs.replacement import Found, Ints
from lens_tui.records import FloatArray
from lens_tui.records.attribution_graph import Reads, Writes
from tests.lens.numpy_models import Array, rms, rope, weights_of

HEADS, GROUPS, SIZE, EPS = 4, 2, 16, 1e-5


@dataclass
class Held:
    """What was held at a prompt: patterns, and each norm's gain over its denominator, by layer."""

    weights: dict[str, Array]
    gemma: bool
    patterns: list[Array]
    scales: list[dict[str, Array]]
    middle: list[Array]
    mlp_in: list[Array]
    mlp_out: list[Array]
    embedded: Array
    final: Array
    logits: Array
    cap: float

    @property
    def normed(self) -> list[Array]:
        """What each MLP reads without the norm's gain."""
        return [x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS_OF[self.gemma]) for x in self.middle]


EPS_OF = {False: EPS, True: EPS}


def held(
    model: Any, ids: tuple[int, ...], known: list[Array] | None = None, added: dict[int, Array] | None = None
) -> Held:
    """Run a tiny model and keep all that a graph holds fixed.

    Args:
        model: The model.
        ids: The prompt.
        known: Patterns of each layer that are used instead of its own.
        added: What is added to the stream behind some layers (-1: the embedding).
    """
    added = added or {}
    w, a = weights_of(model), model.args
    kind = a.model_type
    gemma = kind.startswith("gemma")
    eps = a.rms_norm_eps
    EPS_OF[gemma] = eps
    embed = w["model.embed_tokens.weight"]
    start = x = embed[list(ids)] * (8.0 if gemma else 1.0) + added.get(-1, 0.0)
    patterns, scales, middles, reads, given = [], [], [], [], []

    def norm(name: str, x: Array, into: dict[str, Array], key: str) -> Array:
        gain = w[name] + (1.0 if gemma else 0.0)
        into[key] = gain / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        return x * into[key]

    for layer in range(a.num_hidden_layers):
        p = f"model.layers.{layer}."
        s: dict[str, Array] = {}
        n = norm(p + "input_layernorm.weight", x, s, "attn")
        q, k, v = (_project(w, p + f"self_attn.{m}_proj", n) for m in "qkv")
        q, k, v = (m.reshape(len(ids), -1, SIZE).transpose(1, 0, 2) for m in (q, k, v))
        if p + "self_attn.q_norm.weight" in w:
            q, k = (rms(m, w[p + f"self_attn.{at}_norm.weight"] + gemma, eps) for m, at in ((q, "q"), (k, "k")))
        window, base = None, getattr(a, "rope_theta", 10000.0)
        if kind == "gemma3_text" and (layer + 1) % a.sliding_window_pattern:
            window, base = a.sliding_window, a.rope_local_base_freq
        pattern = _pattern(rope(q, base), rope(k, base), window, 5.0 if kind == "gemma2" else 0.0)
        pattern = pattern if known is None else known[layer]
        patterns.append(pattern)
        z = (pattern @ np.repeat(v, HEADS // GROUPS, axis=0)).transpose(1, 0, 2).reshape(len(ids), -1)
        r = _project(w, p + "self_attn.o_proj", z)
        x = x + (norm(p + "post_attention_layernorm.weight", r, s, "attn_post") if gemma else r)
        middles.append(x)
        n = norm(p + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm") + ".weight", x, s, "mlp")
        reads.append(n)
        gate, up = n @ w[p + "mlp.gate_proj.weight"].T, n @ w[p + "mlp.up_proj.weight"].T
        act = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        r = ((act if gemma else gate / (1 + np.exp(-gate))) * up) @ w[p + "mlp.down_proj.weight"].T
        given.append(r)
        x = x + (norm(p + "post_feedforward_layernorm.weight", r, s, "mlp_post") if gemma else r)
        x = x + added.get(layer, 0.0)
        scales.append(s)
    final: dict[str, Array] = {}
    head = w.get("lm_head.weight", embed)
    logits = norm("model.norm.weight", x, final, "final") @ head.T
    cap = 3.0 if kind == "gemma2" else 0.0
    return Held(w, gemma, patterns, scales, middles, reads, given, start, final["final"], logits, cap)


def _project(w: dict[str, Array], name: str, x: Array) -> Array:
    found: Array = x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)
    return found


def _pattern(q: Array, k: Array, window: int | None, cap: float) -> Array:
    scores = q @ np.repeat(k, HEADS // GROUPS, axis=0).transpose(0, 2, 1) / 4.0
    scores = np.tanh(scores / cap) * cap if cap else scores
    at = np.arange(q.shape[1])
    allowed = at[:, None] >= at[None]
    if window is not None:
        allowed &= at[:, None] - at[None] < window
    p = np.exp(np.where(allowed, scores, -np.inf) - np.where(allowed, scores, -np.inf).max(axis=-1, keepdims=True))
    found: Array = p / p.sum(axis=-1, keepdims=True)
    return found


def attended(at: Held, layer: int, x: Array, *, bias: bool = False) -> Array:
    """What the held attention adds for a stream ``(tokens, 64)``; biases of it where asked for."""
    p, s = f"model.layers.{layer}.self_attn.", at.scales[layer]
    v = (x * s["attn"]) @ at.weights[p + "v_proj.weight"].T
    v = v + at.weights.get(p + "v_proj.bias", 0.0) if bias else v
    v = v.reshape(len(x), GROUPS, SIZE).transpose(1, 0, 2)
    z = (at.patterns[layer] @ np.repeat(v, HEADS // GROUPS, axis=0)).transpose(1, 0, 2).reshape(len(x), -1)
    r = z @ at.weights[p + "o_proj.weight"].T
    found: Array = r * s["attn_post"] if at.gemma else r
    return found


class RandomTranscoders:
    """Random transcoders with skip connections, and with ``crosses`` decoders to all layers behind."""

    def __init__(
        self,
        layers: int = 4,
        width: int = 24,
        reads: Reads = "mlp_in",
        writes: Writes = "mlp_out",
        *,
        crosses: bool = False,
        bias: float = -0.6,
        seed: int = 0,
        only: tuple[int, ...] | None = None,
        silent: tuple[int, ...] = (),
    ) -> None:
        rng = np.random.default_rng(seed)

        def draw(*shape: int, scale: float) -> FloatArray:
            found: FloatArray = (rng.normal(size=shape) * scale).astype(np.float32)
            return found

        self.name, self.reads, self.writes, self.crosses = "random", reads, writes, crosses
        self.layers = tuple(range(layers)) if only is None else only
        self.w_enc, self.b_enc = draw(layers, width, 64, scale=0.2), draw(layers, width, scale=0.2) + np.float32(bias)
        self.b_enc[list(silent)] = -1e3
        self.w_dec, self.b_dec = draw(layers, layers, width, 64, scale=0.1), draw(layers, 64, scale=0.1)
        self.w_skip = draw(layers, 64, 64, scale=0.05)

    def active(self, layer: int, x: mx.array) -> Found:
        """Those above 0."""
        found = np.maximum(np.array(x) @ self.w_enc[layer].T + self.b_enc[layer], 0)
        position, feature = np.nonzero(found)
        return position, feature, found[position, feature]

    def encoder(self, layer: int, features: Ints) -> tuple[mx.array, FloatArray]:
        """Rows and biases."""
        return mx.array(self.w_enc[layer][features]), self.b_enc[layer][features]

    def decoder(self, layer: int, to: int, features: Ints) -> mx.array:
        """Rows."""
        return mx.array(self.w_dec[layer, to][features])

    def decoder_bias(self, layer: int) -> mx.array:
        """``b_dec``."""
        return mx.array(self.b_dec[layer])

    def skip(self, layer: int) -> mx.array:
        """``W_skip``, from what is read to what is given."""
        return mx.array(self.w_skip[layer])


def propagated(at: Held, made: RandomTranscoders, streams: dict[int, Array], stop: int) -> tuple[Array, list[Array]]:
    """What vectors put into the stream behind some layers (-1: the embedding) are behind the last one.

    Attentions and skip connections carry them, other MLPs do not.

    Args:
        at: What is held.
        made: The transcoders.
        streams: What is added behind each layer's MLP, ``(tokens, 64)``.
        stop: Of as many layers.

    Returns:
        The stream at the end, and what is in the middle of each layer.
    """
    x = streams.get(-1, np.zeros_like(at.embedded)).copy()
    middles = []
    counted = (np.arange(len(x)) >= 1)[:, None]
    for layer in range(stop):
        x = x + attended(at, layer, x)
        middles.append(x)
        if layer in made.layers:
            skipped = (read(at, made, layer, x) @ made.w_skip[layer].astype(np.float64)) * counted
            x = x + given(at, made, layer, skipped)
        x = x + streams.get(layer, 0.0)
    return x, middles


def read(at: Held, made: RandomTranscoders, layer: int, x: Array) -> Array:
    """What the transcoder of a layer reads of a stream in its middle, norms held."""
    if made.reads == "resid_mid":
        return x
    scale = at.scales[layer]["mlp"]
    if made.reads == "mlp_normed":
        scale = 1.0 / np.sqrt((at.middle[layer] ** 2).mean(axis=-1, keepdims=True) + EPS_OF[at.gemma])
    found: Array = x * scale
    return found


def given(at: Held, made: RandomTranscoders, layer: int, x: Array) -> Array:
    """What the transcoder's output is in the stream."""
    return x * at.scales[layer]["mlp_post"] if at.gemma and made.writes == "mlp_out" else x
