"""Queries, keys and values as sites: read and changed as in a float64 forward, refused where they are not heads."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import Ablate, LensModel
from lens_tui.records import LensError, Positions
from tests.lens import architectures, numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.read.test_attention import gemma2, neox
from tests.lens.read.test_attribution import gpt2

IDS = list(tiny.IDS)
WIDTHS = {"attn_q": 64, "attn_k": 32, "attn_v": 32}
MODELS = [("llama", tiny.llama), ("gemma3", tiny.gemma3)]


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize(("name", "make"), MODELS)
def test_they_are_those_of_a_float64_forward(name: str, make: Any, site: str) -> None:
    model = make()
    seen: dict[tuple[int, str], Array] = {}

    def note(layer: int, at: str, x: Array) -> Array:
        seen[layer, at] = x
        return x

    getattr(numpy_models, name)(model, tiny.IDS, note)
    lens = LensModel.from_model(model)
    with lens.capture([0, 3], site=site) as captured:
        lens.forward(IDS)
    for layer in (0, 3):
        assert captured[layer].shape == (1, 8, WIDTHS[site])
        np.testing.assert_allclose(np.array(captured[layer][0]), seen[layer, site], atol=1e-4)


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize(("name", "make"), MODELS)
def test_what_is_put_in_their_place_acts_before_norms_and_rotary_embedding(name: str, make: Any, site: str) -> None:
    model = make()
    mean = np.linspace(-1.0, 1.0, WIDTHS[site], dtype=np.float32)

    def edit(layer: int, at: str, x: Array) -> Array:
        if (layer, at) != (1, site):
            return x
        x = x.copy()
        x[[2, 5]] = mean
        return x

    expected = getattr(numpy_models, name)(model, tiny.IDS, edit)
    lens = LensModel.from_model(model)
    plain = np.array(lens.forward(IDS)[0])
    with lens.intervene(Ablate(id="a", layer=1, site=site, mean=mean, positions=Positions("indices", (2, 5)))):
        found = np.array(lens.forward(IDS)[0])
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_in_lower_precision_they_are_the_projections_of_the_normed_residual(make: Any, bits: int) -> None:
    model = make(dtype=mx.bfloat16, bits=bits)
    lens = LensModel.from_model(model)
    with lens.capture(2, site=["resid_pre", *WIDTHS]) as captured:
        lens.forward(IDS)
    layer = model.model.layers[2]
    normed = layer.input_layernorm(captured[2, "resid_pre"])
    for site in WIDTHS:
        expected = getattr(layer.self_attn, f"{site[-1]}_proj")(normed).astype(mx.float32)
        np.testing.assert_allclose(np.array(captured[2, site].astype(mx.float32)), np.array(expected), atol=0.02)


@pytest.mark.parametrize(
    "make", [gemma2, tiny.qwen3_moe, *(lambda n=n: architectures.make(n) for n in ("qwen2", "qwen3"))]
)
def test_every_layer_of_common_models_has_them(make: Any) -> None:
    lens = LensModel.from_model(make())
    assert all(set(WIDTHS) <= set(lens.sites(layer)) for layer in range(lens.n_layers))


@pytest.mark.parametrize(
    "make", [gpt2, neox, lambda: architectures.make("qwen3_next"), lambda: architectures.make("deepseek_v3")]
)
def test_fused_gated_and_compressed_ones_are_refused(make: Any) -> None:
    lens = LensModel.from_model(make())
    with pytest.raises(LensError, match="attn_q that can be proved"):
        lens.intervene(Ablate(id="a", layer=-1, site="attn_q"))
