"""Direct logit attribution: each part against numpy, and every sum against the model's own logit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, attribute_logits
from lens_tui.records import Add, LensError, SteeringVector
from lens_tui.records.measures import Part
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, weights_of
from tests.lens.read.test_logit_lens import cohere, granite

IDS = list(tiny.IDS)


def gpt2() -> Any:
    """Layer norm with a bias, one projection for queries, keys and values."""
    model = tiny._model(
        "gpt2",
        n_ctx=64,
        n_embd=64,
        n_head=4,
        n_layer=3,
        n_positions=64,
        layer_norm_epsilon=1e-5,
        vocab_size=tiny.VOCAB,
    )
    return tiny.settle(model, 13)


def by_hand(name: str, model: Any, target: int) -> tuple[Array, Array]:
    """Contributions (parts, tokens) to a logit and the logits (tokens,), from a float64 forward."""
    seen: dict[tuple[int, str], Array] = {}

    def note(layer: int, site: str, x: Array) -> Array:
        seen[layer, site] = x
        return x

    w = weights_of(model)
    if name == "llama":
        logits = numpy_models.llama(model, tiny.IDS, note)
        gain, row, eps, sites = w["model.norm.weight"], w["lm_head.weight"][target], 1e-5, ("attn_out", "mlp_out")
    else:
        logits = numpy_models.gemma3(model, tiny.IDS, note)
        gain, row, eps = 1 + w["model.norm.weight"], w["model.embed_tokens.weight"][target], 1e-6
        sites = ("attn_out_normed", "mlp_out_normed")
    h = seen[3, "resid_post"]
    direction = gain * row / np.sqrt((h * h).mean(axis=-1, keepdims=True) + eps)
    parts = [seen[0, "resid_pre"], *(seen[layer, site] for layer in range(4) for site in sites)]
    return np.stack([(part * direction).sum(axis=-1) for part in parts]), logits[:, target]


@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
def test_every_part_is_that_of_a_float64_forward(name: str, make: Any) -> None:
    model = make()
    expected, logits = by_hand(name, model, 7)
    found = attribute_logits(LensModel.from_model(model), IDS, 7, positions=range(8))
    assert found.parts[:3] == (Part("embed"), Part("attn", 0), Part("mlp", 0))
    assert [part.kind for part in found.parts] == ["embed", *["attn", "mlp"] * 4]
    np.testing.assert_allclose(found.values, expected, atol=3e-4)
    np.testing.assert_allclose(found.logits, logits, atol=3e-4)
    np.testing.assert_allclose(found.by_layer(), expected[1::2] + expected[2::2], atol=5e-4)
    assert np.abs(found.rest).max() < 1e-4
    assert not found.constant.any()


def uncapped(logits: Array, cap: float) -> Array:
    return np.arctanh(logits / cap) * cap if cap else logits


MODELS = [tiny.llama, tiny.gemma3, tiny.gemma4, tiny.rwkv7, tiny.lfm2, tiny.qwen3_moe, granite, cohere, gpt2]


@pytest.mark.parametrize("make", MODELS)
def test_parts_sum_to_the_models_own_logit(make: Any) -> None:
    lens = LensModel.from_model(make())
    own = np.array(lens.forward(IDS)[0], dtype=np.float64)
    found = attribute_logits(lens, IDS, positions=[-1, 3])
    best = own.argmax(axis=-1)
    assert found.target_ids == (best[7], best[3])
    assert found.positions == (7, 3)
    expected = own[[7, 3], [best[7], best[3]]]
    np.testing.assert_allclose(found.model_logits, expected, atol=2e-4)
    total = found.values.sum(axis=0) + found.rest + found.constant
    np.testing.assert_allclose(total, uncapped(expected, found.softcap), rtol=1e-4, atol=3e-4)
    np.testing.assert_allclose(found.logits, total, atol=1e-4)
    assert np.abs(found.rest).max() < 1e-3
    assert lens.registry.installed == ()


@pytest.mark.parametrize(
    ("make", "kinds"),
    [(granite, {"embed", "attn", "mlp"}), (cohere, {"embed", "attn", "mlp"}), (tiny.gemma4, {"embed", "block"})],
)
def test_layers_are_split_where_the_parts_are_all_that_is_added_and_stand_whole_elsewhere(
    make: Any, kinds: set[str]
) -> None:
    found = attribute_logits(LensModel.from_model(make()), IDS)
    assert {part.kind for part in found.parts} == kinds
    assert all(part.why for part in found.parts if part.kind == "block")
    assert found.by_layer().shape[0] == max(part.layer for part in found.parts) + 1


def test_scaled_residual_additions_are_found_by_their_factor() -> None:
    model = granite()
    lens = LensModel.from_model(model)
    with lens.capture([1], site=["attn_out", "resid_post"]) as captured, lens.capture([-1]) as final:
        lens.forward(IDS)
    h = np.array(final[-1][0, -1], dtype=np.float64)
    w = weights_of(model)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    direction = w["model.norm.weight"] * head[5] / np.sqrt((h * h).mean() + 1e-5) / 3.0
    expected = 0.3 * np.array(captured[1, "attn_out"][0, -1]) @ direction
    found = attribute_logits(lens, IDS, 5)
    assert found.values[found.parts.index(Part("attn", 1)), 0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bits", [0, 4])
def test_in_lower_precision_the_rest_is_what_rounding_added(bits: int) -> None:
    lens = LensModel.from_model(tiny.gemma3(dtype=mx.bfloat16, bits=bits))
    own = np.array(lens.forward(IDS)[0].astype(mx.float32))
    found = attribute_logits(lens, IDS, 7, positions=range(8))
    assert {part.kind for part in found.parts} == {"embed", "attn", "mlp"}
    np.testing.assert_allclose(found.logits, found.model_logits, atol=1e-3)
    np.testing.assert_allclose(found.model_logits, own[:, 7], atol=0.1)
    size = np.abs(found.values).sum(axis=0)
    assert 0 < np.abs(found.rest).max() < 0.02 * size.max()


def test_a_difference_of_logits_is_the_difference_of_attributions() -> None:
    lens = LensModel.from_model(cohere())
    one, two = (attribute_logits(lens, IDS, token) for token in (4, 9))
    both = attribute_logits(lens, IDS, 4, against=9)
    assert both.against_ids == (9,)
    np.testing.assert_allclose(both.values, one.values - two.values, atol=1e-4)
    np.testing.assert_allclose(both.model_logits, one.model_logits - two.model_logits, atol=1e-4)


def test_what_steering_adds_is_a_part_of_its_own() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    values = np.random.default_rng(3).normal(size=64)
    add = Add(id="a", layer=2, vector=SteeringVector.of("v", values, 2), scale=5.0)
    found = attribute_logits(lens, IDS, 7, interventions=[add])
    with lens.intervene(add), lens.capture([-1]) as captured:
        own = np.array(lens.forward(IDS)[0, -1])
        around = attribute_logits(lens, IDS, 7)
    h, w = np.array(captured[-1][0, -1], dtype=np.float64), weights_of(model)
    direction = w["model.norm.weight"] * w["lm_head.weight"][7] / np.sqrt((h * h).mean() + 1e-5)
    steer = found.values[found.parts.index(Part("steer", 2)), 0]
    assert steer == pytest.approx(5.0 * values / np.linalg.norm(values) @ direction, abs=2e-4)
    assert found.logits[0] == pytest.approx(own[7], abs=3e-4)
    assert captured[-1].shape == (1, 8, 64)  # the readout's own forwards are not captured
    np.testing.assert_allclose(around.values, found.values, atol=1e-5)
    assert attribute_logits(lens, IDS, 7).logits[0] != pytest.approx(own[7], abs=1e-2)


def test_positions_and_tokens_that_do_not_exist_are_refused() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="no position 8"):
        attribute_logits(lens, IDS, positions=[8])
    with pytest.raises(LensError, match="no position to read"):
        attribute_logits(lens, IDS, positions=[])
    with pytest.raises(LensError, match="no token 97"):
        attribute_logits(lens, IDS, 97)
