"""The logit lens against numpy forward passes, and its last layer against every model's own logits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui import logit_lens as read
from lens_tui.lens.read import logits
from lens_tui.records import Add, LensError, SteeringVector
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, rms, weights_of

IDS = list(tiny.IDS)


def granite() -> Any:
    """Multiplies what its blocks add and divides its logits."""
    model = tiny._model(
        "granite",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=tiny.VOCAB,
        logits_scaling=3.0,
        attention_multiplier=0.2,
        embedding_multiplier=6.0,
        residual_multiplier=0.3,
        max_position_embeddings=64,
        attention_bias=False,
        mlp_bias=False,
        rope_theta=10000.0,
    )
    return tiny.settle(model, 11)


def cohere() -> Any:
    """Layer norm, attention beside the MLP, scaled logits."""
    model = tiny._model(
        "cohere",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tiny.VOCAB,
        logit_scale=0.4,
        use_qk_norm=False,
    )
    return tiny.settle(model, 12)


def softmax(logits: Array) -> Array:
    p: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def by_hand(name: str, model: Any, add: Array | None = None) -> Array:
    """Distributions (layers, tokens, vocabulary) read off a float64 forward; ``add`` goes in at layer 1."""
    seen: list[Array] = []

    def note(layer: int, site: str, x: Array) -> Array:
        if site == "resid_post":
            x = x + add if layer == 1 and add is not None else x
            seen.append(x)
        return x

    w = weights_of(model)
    if name == "llama":
        numpy_models.llama(model, tiny.IDS, note)
        return softmax(rms(np.stack(seen), w["model.norm.weight"], 1e-5) @ w["lm_head.weight"].T)
    numpy_models.gemma3(model, tiny.IDS, note)
    return softmax(rms(np.stack(seen), 1 + w["model.norm.weight"], 1e-6) @ w["model.embed_tokens.weight"].T)


@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
def test_every_number_of_the_lens_is_that_of_a_float64_forward(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    p = by_hand(name, model)
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 3 * 5 * tiny.VOCAB)  # three tokens at a time
    steps: list[tuple[int, int]] = []
    found = read(LensModel.from_model(model), IDS, top_k=4, progress=lambda *step: steps.append(step))
    assert steps == [(0, 8), (3, 8), (6, 8)]
    assert (found.layers, found.token_ids) == ((0, 1, 2, 3), tiny.IDS)
    order = np.argsort(-p, axis=-1)[..., :4]
    np.testing.assert_array_equal(found.top_ids, order)
    np.testing.assert_allclose(found.top_logprobs, np.log(np.take_along_axis(p, order, -1)), atol=2e-4)
    follow = [*IDS[1:], int(p[-1, -1].argmax())]
    np.testing.assert_array_equal(found.target_ids, follow)
    chosen = p[:, np.arange(8), follow]
    np.testing.assert_allclose(found.target_logprobs, np.log(chosen), atol=2e-4)
    np.testing.assert_allclose(found.target_probabilities, chosen, atol=1e-4)
    np.testing.assert_array_equal(found.target_ranks, (p > chosen[..., None]).sum(axis=-1))
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(axis=-1), atol=1e-3)
    np.testing.assert_allclose(found.kl, (p[-1] * (np.log(p[-1]) - np.log(p))).sum(axis=-1), atol=1e-3)
    assert found.target_ranks[-1, -1] == 0
    assert np.abs(found.kl[-1]).max() < 1e-5


@pytest.mark.parametrize("bits", [0, 4])
def test_bf16_and_quantised_models_are_read_in_float32(bits: int) -> None:
    model = tiny.llama(dtype=mx.bfloat16, bits=bits)
    lens = LensModel.from_model(model)
    found = read(lens, IDS, top_k=3)
    with lens.capture([1]) as captured:
        lens.forward(IDS)
    h = np.array(captured[1][0].astype(mx.float32), dtype=np.float64)
    w = weights_of(model)
    head = model.lm_head
    dense = head.weight
    if bits:
        scales, biases = head.scales.astype(mx.float32), head.biases.astype(mx.float32)
        dense = mx.dequantize(dense, scales, biases, group_size=32, bits=bits)
    p = softmax(rms(h, w["model.norm.weight"], 1e-5) @ np.array(dense.astype(mx.float32), dtype=np.float64).T)
    chosen = p[np.arange(8), found.target_ids]
    # bf16 logits would be off by 1e-2.
    np.testing.assert_allclose(found.target_logprobs[1], np.log(chosen), atol=5e-4)
    np.testing.assert_array_equal(found.target_ranks[1], (p > chosen[:, None]).sum(axis=-1))


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.rwkv7, tiny.lfm2, tiny.qwen3_moe, granite, cohere])
def test_the_last_layer_is_the_models_own_distribution(make: Any) -> None:
    lens = LensModel.from_model(make())
    logits = np.array(lens.forward(IDS)[0], dtype=np.float64)
    found = read(lens, IDS, layers=[0, -1], target=5)
    p = softmax(logits)
    assert found.layers == (0, lens.n_layers - 1)
    np.testing.assert_allclose(found.target_logprobs[1], np.log(p[:, 5]), atol=1e-4)
    np.testing.assert_array_equal(found.top_ids[1, :, 0], logits.argmax(axis=-1))
    assert not np.allclose(found.target_logprobs[0], found.target_logprobs[1], atol=1e-2)
    assert lens.registry.installed == ()


def test_the_lens_of_a_steered_model_and_of_other_sites() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    direction = np.random.default_rng(0).normal(size=64)
    add = Add(id="a", layer=1, vector=SteeringVector.of("v", direction, 1), scale=4.0)
    expected = by_hand("llama", model, 4.0 * direction / np.linalg.norm(direction))
    plain = read(lens, IDS, target=7)
    steered = read(lens, IDS, target=7, interventions=[add])
    np.testing.assert_allclose(steered.target_probabilities, expected[:, :, 7], atol=1e-4)
    with lens.intervene(add):
        np.testing.assert_allclose(read(lens, IDS, target=7).target_logprobs, steered.target_logprobs, atol=1e-5)
        np.testing.assert_array_equal(
            read(lens, IDS, target=7, interventions=[]).target_logprobs, plain.target_logprobs
        )
    before = read(lens, IDS, target=7, site="resid_pre")
    np.testing.assert_allclose(before.target_logprobs[1:], plain.target_logprobs[:-1], atol=1e-5)


def test_targets_are_ids_texts_of_one_token_or_one_for_each_position() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    text = "The old man"
    ids = lens.tokens.encode(text)
    door = lens.tokens.encode("The door")[-1]
    found = read(lens, text, target=" door")
    assert set(found.target_ids.tolist()) == {door}
    assert found.texts[door] == lens.tokens.display(door)
    each = read(lens, text, target=list(range(len(ids))))
    assert each.target_ids.tolist() == list(range(len(ids)))
    with pytest.raises(LensError, match="not one token but"):
        read(lens, text, target=" incomprehensibilities door")
    with pytest.raises(LensError, match="target tokens"):
        read(lens, text, target=[1, 2])
    with pytest.raises(LensError, match="no token 9000"):
        read(lens, text, target=9000)


def test_what_cannot_be_read_is_refused() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    with pytest.raises(LensError, match="no layer 9"):
        read(lens, IDS, layers=[9])
    with pytest.raises(LensError, match="no layer to read"):
        read(lens, IDS, layers=[])
    with pytest.raises(LensError, match="one text, not 2"):
        read(lens, [IDS, IDS])
    wide = tiny._model(
        "llama",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        head_dim=32,
        rms_norm_eps=1e-5,
        vocab_size=tiny.VOCAB,
    )
    with pytest.raises(LensError, match="width 128"):
        read(LensModel.from_model(tiny.settle(wide, 0)), IDS, site="attn_z")
