"""Heads: their outputs and what each adds to a logit, against a float64 forward, and the sums they must have."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, attribute_logits, head_outputs
from lens_tui.records import Add, LensError, SteeringVector
from lens_tui.records.measures import LogitAttribution, Part
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, weights_of
from tests.lens.read.test_attention import gemma2, neox
from tests.lens.read.test_attribution import gpt2
from tests.lens.read.test_logit_lens import cohere, granite

IDS = list(tiny.IDS)
HEADS = 4


def seen_in(name: str, model: Any) -> dict[tuple[int, str], Array]:
    """Every site of a float64 forward."""
    seen: dict[tuple[int, str], Array] = {}

    def note(layer: int, site: str, x: Array) -> Array:
        seen[layer, site] = x
        return x

    getattr(numpy_models, name)(model, tiny.IDS, note)
    return seen


def by_hand(name: str, model: Any, layer: int, target: int) -> Array:
    """What each head of a layer adds to a token's logit, (heads, tokens), with every norm's denominator as it is."""
    w, seen = weights_of(model), seen_in(name, model)
    out = w[f"model.layers.{layer}.self_attn.o_proj.weight"]
    h = seen[3, "resid_post"]
    if name == "llama":
        direction = w["model.norm.weight"] * w["lm_head.weight"][target]
        direction = direction / np.sqrt((h * h).mean(axis=-1, keepdims=True) + 1e-5)
    else:
        direction = (1 + w["model.norm.weight"]) * w["model.embed_tokens.weight"][target]
        direction = direction / np.sqrt((h * h).mean(axis=-1, keepdims=True) + 1e-6)
        r = seen[layer, "attn_out"]
        gain = 1 + w[f"model.layers.{layer}.post_attention_layernorm.weight"]
        direction = direction * gain / np.sqrt((r * r).mean(axis=-1, keepdims=True) + 1e-6)
    z = seen[layer, "attn_z"]
    return np.stack(
        [((z[:, h * 16 : h * 16 + 16] @ out[:, h * 16 : h * 16 + 16].T) * direction).sum(axis=-1) for h in range(HEADS)]
    )


@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
@pytest.mark.parametrize("layer", [0, 3])
def test_every_head_is_that_of_a_float64_forward(name: str, make: Any, layer: int) -> None:
    model = make()
    found = attribute_logits(LensModel.from_model(model), IDS, 7, positions=range(8), heads=True)
    (mine,) = (item for item in found.heads if item.layer == layer)
    np.testing.assert_allclose(mine.values, by_hand(name, model, layer, 7), atol=1e-4)


def off(found: LogitAttribution) -> float:
    """How far heads, bias and rest are from the attention's part, at most."""
    most = 0.0
    for item in found.heads:
        assert not item.why
        part = found.values[found.parts.index(Part("attn", item.layer))]
        most = max(most, float(np.abs(item.values.sum(axis=0) + item.bias + item.rest - part).max()))
    return most


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3, gemma2, tiny.qwen3_moe, granite, cohere, gpt2, neox])
def test_heads_sum_to_the_attentions_part(make: Any) -> None:
    lens = LensModel.from_model(make())
    found = attribute_logits(lens, IDS, 7, positions=[-1, 3], heads=True)
    assert [item.layer for item in found.heads] == list(range(lens.n_layers))
    assert off(found) < 1e-4
    assert max(float(np.abs(item.rest).max()) for item in found.heads) < 1e-4
    assert max(float(np.abs(item.values).max()) for item in found.heads) > 1e-3


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
@pytest.mark.parametrize("bits", [0, 4])
def test_in_lower_precision_the_rest_is_rounding(make: Any, bits: int) -> None:
    found = attribute_logits(LensModel.from_model(make(dtype=mx.bfloat16, bits=bits)), IDS, 7, heads=True)
    assert off(found) < 1e-4
    size = max(float(np.abs(item.values).sum(axis=0).max()) for item in found.heads)
    assert max(float(np.abs(item.rest).max()) for item in found.heads) < 0.02 * size


def test_a_difference_of_logits_is_the_difference_of_heads() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    one, two, both = (
        attribute_logits(lens, IDS, target, against=less, heads=True) for target, less in ((4, None), (9, None), (4, 9))
    )
    for left, right, difference in zip(one.heads, two.heads, both.heads, strict=True):
        np.testing.assert_allclose(difference.values, left.values - right.values, atol=1e-4)


def test_steering_at_the_attentions_output_is_the_rest_and_no_heads() -> None:
    lens = LensModel.from_model(tiny.llama())
    values = np.random.default_rng(3).normal(size=64)
    vector = SteeringVector.of("v", values, 2, site="attn_out")
    add = Add(id="a", layer=2, site="attn_out", vector=vector, scale=5.0)
    plain, steered = (attribute_logits(lens, IDS, 7, interventions=items, heads=True) for items in ((), (add,)))
    assert off(steered) < 1e-4
    assert abs(float(steered.heads[2].rest[0])) > 1e-2
    np.testing.assert_allclose(steered.heads[1].rest, plain.heads[1].rest, atol=1e-4)


def test_where_heads_cannot_be_told_apart_the_reason_stands_in_their_place() -> None:
    heads = attribute_logits(LensModel.from_model(tiny.gemma4()), IDS, heads=True).heads
    assert heads
    assert all(item.why and item.values.shape == (0, 1) for item in heads)
    convolution, *_ = attribute_logits(LensModel.from_model(tiny.lfm2()), IDS, heads=True).heads
    assert "heads" in convolution.why
    assert not attribute_logits(LensModel.from_model(tiny.llama()), IDS).heads


@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
def test_head_outputs_are_slices_through_the_projection_and_sum_to_attn_out(name: str, make: Any) -> None:
    model = make()
    outputs, bias = head_outputs(LensModel.from_model(model), IDS, -2)
    seen, out = seen_in(name, model), weights_of(model)["model.layers.2.self_attn.o_proj.weight"]
    assert outputs.shape == (8, HEADS, 64)
    np.testing.assert_allclose(outputs[:, 1], seen[2, "attn_z"][:, 16:32] @ out[:, 16:32].T, atol=1e-4)
    np.testing.assert_allclose(outputs.sum(axis=1) + bias, seen[2, "attn_out"], atol=1e-4)


@pytest.mark.parametrize("make", [gpt2, neox])
def test_the_bias_of_the_projection_is_no_heads(make: Any) -> None:
    lens = LensModel.from_model(make())
    outputs, bias = head_outputs(lens, IDS, 1)
    with lens.capture([1], site="attn_out") as captured:
        lens.forward(IDS)
    assert np.abs(bias).max() > 1e-2
    np.testing.assert_allclose(outputs.sum(axis=1) + bias, np.array(captured[1][0]), atol=1e-4)


def test_what_has_no_heads_is_refused_with_the_reason() -> None:
    with pytest.raises(LensError, match="does not say how many heads"):
        head_outputs(LensModel.from_model(tiny.lfm2()), IDS, 0)
