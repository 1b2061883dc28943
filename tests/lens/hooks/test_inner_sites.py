"""Sites inside a block, queries, keys and values of heads and the MLP's input before its gain, as in a float64 forward.

Read, changed and given to a transcoder; refused where they cannot be proved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import Ablate, LensModel, load_sae
from lens_tui.records import LensError, Positions
from lens_tui.sae.fit import check_fit_with
from lens_tui.sae.formats.writers import write_gemma_scope
from tests.lens import architectures, numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.read.test_attention import gemma2, neox
from tests.lens.read.test_attribution import gpt2

IDS = list(tiny.IDS)
MODELS = [("llama", tiny.llama), ("gemma3", tiny.gemma3)]
HEADS = ("attn_q", "attn_k", "attn_v")
NORMED = "mlp_normed"
WIDTHS = {"attn_q": 64, "attn_k": 32, "attn_v": 32, NORMED: 64}
GAINS = {"llama": "post_attention_layernorm", "gemma3": "pre_feedforward_layernorm"}


def with_gains(name: str, make: Any, **how: Any) -> Any:
    """A model whose MLP norms have gains of many sizes, one of them nothing at all."""
    model = make(**how)
    for layer in model.model.layers:
        norm = getattr(layer, GAINS[name])
        nothing = -1.0 if name == "gemma3" else 0.0
        gain = np.linspace(-0.9, 3.0, 64)
        gain[7] = nothing
        norm.weight = mx.array(gain.astype(np.float32)).astype(norm.weight.dtype)
    return model


def read_in(name: str, model: Any) -> dict[tuple[int, str], Array]:
    seen: dict[tuple[int, str], Array] = {}

    def note(layer: int, at: str, x: Array) -> Array:
        seen[layer, at] = x
        return x

    getattr(numpy_models, name)(model, tiny.IDS, note)
    return seen


def model_with(site: str, name: str, make: Any) -> Any:
    """A model that tells the site from others: with gains where these come after it."""
    return with_gains(name, make) if site == NORMED else make()


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize(("name", "make"), MODELS)
def test_they_are_those_of_a_float64_forward_also_where_a_gain_is_zero(name: str, make: Any, site: str) -> None:
    model = model_with(site, name, make)
    seen = read_in(name, model)
    lens = LensModel.from_model(model)
    with lens.capture([0, 3], site=[site, "mlp_in"]) as captured:
        lens.forward(IDS)
    for layer in (0, 3):
        assert captured[layer, site].shape == (1, 8, WIDTHS[site])
        found = np.array(captured[layer, site][0])
        np.testing.assert_allclose(found, seen[layer, site], atol=1e-4)
        if site == NORMED:  # another tensor than mlp_in
            assert np.abs(found - np.array(captured[layer, "mlp_in"][0])).max() > 0.5


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize(("name", "make"), MODELS)
def test_what_is_put_in_their_place_acts_before_gains_norms_and_rotary_embedding(
    name: str, make: Any, site: str
) -> None:
    model = model_with(site, name, make)
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
    np.testing.assert_allclose(found, expected, atol=5e-4 if site == NORMED else 3e-4)
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_in_lower_precision_heads_are_the_projections_of_the_normed_residual(make: Any, bits: int) -> None:
    model = make(dtype=mx.bfloat16, bits=bits)
    lens = LensModel.from_model(model)
    with lens.capture(2, site=["resid_pre", *HEADS]) as captured:
        lens.forward(IDS)
    layer = model.model.layers[2]
    normed = layer.input_layernorm(captured[2, "resid_pre"])
    for site in HEADS:
        expected = getattr(layer.self_attn, f"{site[-1]}_proj")(normed).astype(mx.float32)
        np.testing.assert_allclose(np.array(captured[2, site].astype(mx.float32)), np.array(expected), atol=0.02)


@pytest.mark.parametrize(
    "make", [gemma2, tiny.qwen3_moe, *(lambda n=n: architectures.make(n) for n in ("qwen2", "qwen3"))]
)
def test_every_layer_of_common_models_has_queries_keys_and_values(make: Any) -> None:
    lens = LensModel.from_model(make())
    assert all(set(HEADS) <= set(lens.sites(layer)) for layer in range(lens.n_layers))


@pytest.mark.parametrize(
    "make", [gpt2, neox, lambda: architectures.make("qwen3_next"), lambda: architectures.make("deepseek_v3")]
)
def test_fused_gated_and_compressed_ones_are_refused(make: Any) -> None:
    lens = LensModel.from_model(make())
    with pytest.raises(LensError, match="attn_q that can be proved"):
        lens.intervene(Ablate(id="a", layer=-1, site="attn_q"))


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize(("name", "make"), MODELS)
def test_in_lower_precision_the_normed_input_is_rounded_once(name: str, make: Any, bits: int) -> None:
    model = with_gains(name, make, dtype=mx.bfloat16, bits=bits)
    lens = LensModel.from_model(model)
    added = "attn_out" if name == "llama" else "attn_out_normed"
    with lens.capture(2, site=["resid_pre", added, NORMED]) as captured:
        lens.forward(IDS)
    middle = (captured[2, "resid_pre"] + captured[2, added]).astype(mx.float32)
    x = np.array(middle, np.float64)
    expected = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    found = np.array(captured[2, NORMED].astype(mx.float32))
    assert captured[2, NORMED].dtype == mx.bfloat16
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_layer_norms_take_the_mean_away_and_have_a_shift() -> None:
    lens = LensModel.from_model(gpt2())
    norm = lens.registry.sites.entries(1).mlp
    with lens.capture(1, site=["resid_pre", "attn_out", NORMED, "mlp_in"]) as captured:
        lens.forward(IDS)
    x = np.array(captured[1, "resid_pre"] + captured[1, "attn_out"], np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    expected = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.array(captured[1, NORMED]), expected, atol=1e-4)
    given = np.array(captured[1, NORMED]) * np.array(norm["weight"]) + np.array(norm["bias"])
    np.testing.assert_allclose(given, np.array(captured[1, "mlp_in"]), atol=1e-4)


def test_a_transcoder_is_checked_on_what_it_reads(tmp_path: Path) -> None:
    """Declared for the right tensor it fits; declared for ``mlp_in`` it is told which one fits better."""
    model = with_gains("llama", tiny.llama)
    lens = LensModel.from_model(model)
    seen = read_in("llama", model)
    rng = np.random.default_rng(0)
    read, given = seen[1, NORMED], seen[1, "mlp_out"]
    encoder = rng.normal(size=(64, 40))
    features = np.maximum(read @ encoder, 0)
    decoder = np.linalg.lstsq(features, given, rcond=None)[0]
    zeros = {"b_enc": np.zeros(40), "threshold": np.zeros(40), "b_dec": np.zeros(64)}
    made = {"w_enc": encoder, "w_dec": decoder, **zeros}
    arrays = {key: mx.array(value.astype(np.float32)) for key, value in made.items()}

    def capture(places: Any) -> Any:
        with lens.capture([1], site=[site for _, site in places]) as captured:
            lens.forward(IDS)
        return {place: captured[place][0] for place in places if place[0] == 1}

    for site, right in ((NORMED, True), ("mlp_in", False)):
        write_gemma_scope(tmp_path / site, arrays, layer=1, site=site, model_name="m", l0=20.0, site_out="mlp_out")
        sae = load_sae(tmp_path / site)
        assert (sae.info.site, sae.info.is_transcoder) == (site, True)
        report = check_fit_with(sae, capture, lens.n_layers)
        found = {row.place: row.fvu or 1.0 for row in report.rows}
        assert found[1, NORMED] < 0.5 * found[1, "mlp_in"]
        assert report.better == (None if right else (1, NORMED))


def test_a_norm_that_the_attention_reads_too_is_refused() -> None:
    lens = LensModel.from_model(architectures.make("cohere"))
    with pytest.raises(LensError, match="mlp_normed that can be proved"):
        lens.registry.sites.point(0, NORMED)
    assert NORMED not in lens.sites(0)
