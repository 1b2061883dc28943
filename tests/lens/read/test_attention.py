"""Attention patterns against softmax of queries and keys by numpy, and the refusal where there is none to read."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, attention_patterns
from lens_tui.records import Add, LensError, SteeringVector
from tests.lens import architectures, numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.read.test_attribution import gpt2
from tests.lens.read.test_logit_lens import cohere, granite

LONG = [int(token) for token in np.random.default_rng(5).integers(0, tiny.VOCAB, size=37)]


def gemma2(scale: float = 0.4) -> Any:
    """Soft-caps its attention scores, in code of its own."""
    model = tiny._model(
        "gemma2",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        vocab_size=tiny.VOCAB,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
    )
    return tiny.settle(model, 14, scale)


def neox(scale: float = 0.15) -> Any:
    """Queries, keys and values of a head side by side in one projection."""
    model = tiny._model(
        "gpt_neox",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        vocab_size=tiny.VOCAB,
        layer_norm_eps=1e-5,
        max_position_embeddings=64,
        rotary_emb_base=10000,
        rotary_pct=0.5,
        use_parallel_residual=True,
    )
    return tiny.settle(model, 15, scale)


def internlm2(scale: float = 0.2) -> Any:
    """Queries, key and value of each key-value head side by side in one projection."""
    model = tiny._model(
        "internlm2",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        vocab_size=tiny.VOCAB,
        bias=False,
    )
    return tiny.settle(model, 16, scale)


def cohere2(scale: float = 0.2) -> Any:
    """Layer norm, rotary embedding of neighbouring pairs, a window."""
    model = tiny._model(
        "cohere2",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=tiny.VOCAB,
        sliding_window=8,
        sliding_window_pattern=2,
    )
    return tiny.settle(model, 17, scale)


def plain(module: Any) -> tuple[Array, Array]:
    """Weight and bias of a linear layer in float32, whatever it is kept in."""
    weight = module.weight
    if "scales" in module:
        weight = mx.dequantize(weight, module.scales, module.biases, group_size=module.group_size, bits=module.bits)
    bias = np.array(module.bias.astype(mx.float32)) if "bias" in module else np.zeros(weight.shape[0], np.float32)
    return np.array(weight.astype(mx.float32)), bias


def heads(x: Array, module: Any) -> Array:
    """A projection of (tokens, d) by numpy as (heads, tokens, 16)."""
    weight, bias = plain(module)
    return (x @ weight.T + bias).reshape(len(x), -1, 16).transpose(1, 0, 2)


def first_pattern(name: str, model: Any) -> Array:
    """The pattern of layer 0 of one of the models above, in float32 from the weights as they are kept."""
    inner = model.model
    window = len(LONG)
    embed = inner.tok_embeddings if name == "internlm2" else inner.embed_in if name == "neox" else inner.embed_tokens
    x = np.array(embed(mx.array(LONG)).astype(mx.float32))
    layer = inner.h[0] if name == "neox" else inner.layers[0]
    norm = layer.attention_norm if name == "internlm2" else layer.input_layernorm
    gain = np.array(norm.weight.astype(mx.float32))
    if name == "gemma2":
        x, gain = x * 8.0, 1.0 + gain
    if name in ("neox", "cohere2"):
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + (1e-6 if name in ("gemma2", "internlm2") else 1e-5)) * gain
    if "bias" in norm:
        x = x + np.array(norm.bias.astype(mx.float32))
    attention = layer.self_attn if name in ("gemma2", "cohere2") else layer.attention
    if name == "neox":
        whole = heads(x, attention.query_key_value)
        q, k = whole[0::3], whole[1::3]
    elif name == "internlm2":
        whole = heads(x, attention.wqkv)
        q, k = whole[[0, 1, 4, 5]], whole[[2, 6]]
    else:
        q, k = heads(x, attention.q_proj), heads(x, attention.k_proj)
    q, k = (np.array(attention.rope(mx.array(part[None])))[0] for part in (q, k))
    scores = q @ np.repeat(k, 4 // len(k), axis=0).transpose(0, 2, 1) * 0.25
    if name == "gemma2":
        scores = np.tanh(scores / 2.0) * 2.0
    if name == "cohere2":
        window = 8
    at = np.arange(len(LONG))
    seen = (at[:, None] >= at) & (at[:, None] < at + window)
    p = np.exp(np.where(seen, scores, -np.inf))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(("dtype", "bits"), [(mx.float32, 0), (mx.bfloat16, 0), (mx.bfloat16, 4)], ids=str)
@pytest.mark.parametrize("make", [gemma2, cohere2, neox, internlm2])
def test_patterns_are_those_of_the_formula_in_any_precision(make: Any, dtype: mx.Dtype, bits: int) -> None:
    model = tiny.finished(make(0.1), dtype, bits)  # small: the scores of large weights are rounded to whole numbers
    (found,) = attention_patterns(LensModel.from_model(model), LONG, 0)
    expected = first_pattern(make.__name__, model)
    np.testing.assert_allclose(found.weights, expected, atol=1e-4 if dtype == mx.float32 else 0.03)
    assert np.abs(found.weights - expected).mean() < (1e-5 if dtype == mx.float32 else 2e-3)


def weights_by_hand(name: str, model: Any, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Softmaxed scores of each layer (heads, tokens, tokens): the numpy forward attends to unit vectors as well."""
    found: list[Array] = []
    attend = numpy_models.attend

    def noting(q: Array, k: Array, v: Array, scale: float, window: int | None, *edits: Any) -> Array:
        units = np.tile(np.eye(len(ids)), (k.shape[0], 1, 1))
        found.append(attend(q, k, units, scale, window))
        return attend(q, k, v, scale, window, *edits)

    monkeypatch.setattr(numpy_models, "attend", noting)
    getattr(numpy_models, name)(model, tuple(ids))
    return found


@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
def test_patterns_are_softmaxed_scores_with_rope_norms_and_window(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    expected = weights_by_hand(name, model, LONG, monkeypatch)
    lens = LensModel.from_model(model)
    found = attention_patterns(lens, LONG, range(4))
    assert [pattern.layer for pattern in found] == [0, 1, 2, 3]
    for pattern, by_hand in zip(found, expected, strict=True):
        assert pattern.weights.shape == (4, 37, 37)
        np.testing.assert_allclose(pattern.weights, by_hand, atol=1e-4)
        assert pattern.error < 1e-4
    assert lens.registry.installed == ()
    np.testing.assert_array_equal(np.array(lens.forward(LONG)), np.array(model(mx.array([LONG]))))


@pytest.mark.parametrize("make", [gpt2, granite, cohere, tiny.qwen3_moe, tiny.gemma4, gemma2])
def test_patterns_of_other_architectures_are_causal_distributions_that_rebuild_the_output(make: Any) -> None:
    lens = LensModel.from_model(make())
    (found,) = attention_patterns(lens, LONG, -1)
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1.0, atol=1e-5)
    assert np.abs(np.triu(found.weights, 1)).max() == 0.0
    assert (found.weights >= 0).all()
    assert found.error < 1e-4


def test_soft_capped_scores_are_those_of_the_formula() -> None:
    model = gemma2()
    lens = LensModel.from_model(model)
    attention = model.model.layers[0].self_attn
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(mx.array([LONG])) * 8.0)
    q, k = (part(x).reshape(1, 37, -1, 16).transpose(0, 2, 1, 3) for part in (attention.q_proj, attention.k_proj))
    q, k = np.array(attention.rope(q))[0], np.repeat(np.array(attention.rope(k))[0], 2, axis=0)
    scores = np.tanh(q @ k.transpose(0, 2, 1) * 0.25 / 2.0) * 2.0
    p = np.exp(np.where(np.tril(np.ones((37, 37))) > 0, scores, -np.inf))
    (found,) = attention_patterns(lens, LONG, 0)
    np.testing.assert_allclose(found.weights, p / p.sum(axis=-1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("bits", [0, 4])
def test_in_lower_precision_the_weights_are_float32(bits: int) -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16, bits=bits))
    (found,) = attention_patterns(lens, LONG, 2)
    # Weights rounded to bf16 would sum to 1 only within 1e-3.
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1.0, atol=1e-5)
    assert found.error < 0.02


def test_a_steered_model_has_the_patterns_of_its_steered_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    values = np.random.default_rng(1).normal(size=64)
    add = Add(id="a", layer=0, vector=SteeringVector.of("v", values, 0), scale=6.0)
    plain, steered = (attention_patterns(lens, LONG, [0, 1], interventions=items) for items in ([], [add]))
    np.testing.assert_array_equal(plain[0].weights, steered[0].weights)
    assert np.abs(plain[1].weights - steered[1].weights).max() > 0.01
    with lens.intervene(add):
        np.testing.assert_array_equal(attention_patterns(lens, LONG, 1)[0].weights, steered[1].weights)


@pytest.mark.parametrize(
    ("make", "layer", "words"),
    [
        (tiny.lfm2, 0, "no "),
        (tiny.rwkv7, 0, "not what it hands on"),
        (lambda: architectures.make("deepseek_v3"), 0, "no projection of values"),
        (lambda: architectures.make("afm7"), 0, "no values that can be replaced"),
    ],
)
def test_where_there_is_no_pattern_to_read_it_is_refused(make: Any, layer: int, words: str) -> None:
    model = make()
    lens = LensModel.from_model(model)
    with pytest.raises(LensError, match=words):
        attention_patterns(lens, LONG, layer)
    assert lens.registry.installed == ()
    np.testing.assert_array_equal(np.array(lens.forward(LONG)), np.array(model(mx.array([LONG]))))


def test_patterns_too_large_for_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_tui.lens.read.attention.LIMIT_BYTES", 1000)
    with pytest.raises(LensError, match="fewer layers"):
        attention_patterns(LensModel.from_model(tiny.llama()), LONG, 0)
