"""The fit check catches a shifted layer, a wrong site and a model quantised too far."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lens_tui import SAE, JumpReLUSAE, LensModel, demo, load_sae
from lens_tui.records import LensError, SAEInfo
from lens_tui.records.training import Place
from lens_tui.sae.fit import candidates, check_fit, check_fit_with

from .makers import Array

TEXT = (
    "The king who lived in the castle on the hill was sad, because his daughter had gone to the sea. "
    "In 1905 the company opened a factory in Manchester, where it built steam engines for the railways."
)
SITES = ("resid_post", "mlp_out", "attn_out")


@functools.cache
def activations(bits: int) -> Mapping[Place, Any]:
    """Every layer's tensors of the bundled model over the text, BOS left out; ``bits`` 0: as it is bundled."""
    lens = LensModel("demo")
    if bits:
        from mlx_lm.utils import dequantize_model

        dequantize_model(lens.model)
        nn.quantize(lens.model, group_size=64, bits=bits)  # type: ignore[attr-defined, unused-ignore]
    found: dict[Place, Any] = {}
    for site in SITES:
        with lens.capture(list(range(lens.n_layers)), site=site) as held:
            lens.forward(TEXT)
        found |= {(layer, site): held[layer][0, 1:].astype(mx.float32) for layer in range(lens.n_layers)}
    mx.eval(found.values())
    return found


def capture(places: Sequence[Place], bits: int = 0) -> Mapping[Place, Any]:
    held = activations(bits)
    return {place: held[place] for place in places if place in held}


def n_layers() -> int:
    return 1 + max(layer for layer, _ in activations(0))


@functools.cache
def bundled() -> SAE:
    return load_sae(demo.sae_paths()[demo.default_sae()])


def moved(**changes: Any) -> SAE:
    """The bundled SAE with another word of its own on where it belongs."""
    sae = load_sae(demo.sae_paths()[demo.default_sae()])
    sae.info = replace(sae.info, **changes)
    return sae


def home() -> Place:
    return bundled().info.layer, bundled().info.site


def test_the_bundled_sae_fits_the_bundled_model() -> None:
    report = check_fit_with(bundled(), capture, n_layers())
    assert report.verdict == "fits"
    assert report.fits
    row = report.rows[0]
    assert row.place == report.declared == home()
    x = np.array(activations(0)[home()], dtype=np.float64)
    out = np.array(bundled().decode(bundled().encode(mx.array(x.astype(np.float32)))), dtype=np.float64)
    assert row.fvu == pytest.approx(((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-3)
    assert row.l0 == pytest.approx(float((np.array(bundled().encode(mx.array(x))) > 0).sum(1).mean()), rel=1e-3)
    assert f"{row.fvu:.2f}" in report.sentence
    assert len(report.rows) == 5


@pytest.mark.parametrize("shift", [1, -1])
def test_a_layer_shifted_by_one_is_caught(shift: int) -> None:
    layer = home()[0] + shift
    report = check_fit_with(moved(layer=layer, layer_out=layer), capture, n_layers())
    assert report.verdict == "fits better elsewhere"
    assert report.better == home()
    assert "but fits resid_post of layer" in report.sentence


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_a_wrong_site_is_caught(site: str) -> None:
    report = check_fit_with(moved(site=site, site_out=site), capture, n_layers())
    assert report.verdict == "fits better elsewhere"
    assert report.better == home()


def test_an_sae_that_declares_nothing_is_placed() -> None:
    report = check_fit_with(moved(site="", layer=-1, site_out="", layer_out=-1), capture, n_layers())
    assert report.verdict == "not declared"
    assert report.better == home()
    assert report.declared is None


def test_a_model_quantised_too_far_is_caught() -> None:
    report = check_fit_with(bundled(), lambda places: capture(places, bits=2), n_layers())
    assert report.verdict == "does not fit"
    stated = bundled().info.fvu
    assert stated is not None
    assert report.rows[0].fvu is not None
    assert report.rows[0].fvu > 3 * stated


def test_another_sae_altogether_does_not_fit() -> None:
    rng = np.random.default_rng(0)
    sae, d, n = bundled(), bundled().d_model, 512
    w = rng.standard_normal((d, n)).astype(np.float32)
    other = JumpReLUSAE.from_arrays(w / d, w.T, np.zeros(d), b_enc=np.zeros(n), threshold=np.full(n, 0.1))
    other.info = replace(sae.info, d_model=d, width=n)
    assert check_fit_with(other, capture, n_layers()).verdict == "does not fit"


def test_l0_alone_can_tell() -> None:
    report = check_fit(moved(l0=0.5), {home(): activations(0)[home()]})
    assert report.verdict == "does not fit"
    assert "L0 is far off" in report.sentence


def test_tensors_of_another_width_are_passed_over_and_none_at_all_refused() -> None:
    report = check_fit(bundled(), {home(): activations(0)[home()], (0, "attn_z"): np.zeros((5, 7), np.float32)})
    assert [row.place for row in report.rows] == [home()]
    with pytest.raises(LensError, match="reads width"):
        check_fit(bundled(), {home(): np.zeros((5, 7), np.float32)})
    with pytest.raises(LensError, match="layers are 0 to 3"):
        check_fit_with(moved(layer=9), capture, 4)


def test_a_transcoder_is_held_against_its_target() -> None:
    rng = np.random.default_rng(0)
    x: Array = rng.standard_normal((60, 16)).astype(np.float32)
    w_enc, w_dec = rng.standard_normal((16, 64)).astype(np.float32), rng.standard_normal((64, 16)).astype(np.float32)
    sae = JumpReLUSAE.from_arrays(w_enc, w_dec, np.zeros(16), b_enc=np.zeros(64), threshold=np.full(64, 0.5))
    info = SAEInfo("t", "t", "", "jumprelu_transcoder", "mlp_in", 1, 16, 64, "m", site_out="mlp_out", layer_out=1)
    sae.info = info
    y = np.array(sae.decode(sae.encode(mx.array(x))))
    held: dict[Place, Array] = {(1, "mlp_in"): x, (0, "mlp_in"): x[::-1].copy(), (1, "mlp_out"): y, (0, "mlp_out"): y}
    report = check_fit_with(sae, lambda places: {p: held[p] for p in places if p in held}, 3)
    assert report.verdict == "fits"
    assert report.rows[0].fvu == pytest.approx(0, abs=1e-6)
    assert [row.place for row in report.rows] == [(1, "mlp_in"), (0, "mlp_in")]
    assert report.rows[1].fvu is not None
    assert report.rows[1].fvu > 0.5


def test_what_is_tried() -> None:
    info = replace(bundled().info, layer=0, site="attn_out")
    assert candidates(info, 2) == (
        (0, "attn_out"),
        (1, "attn_out"),
        (0, "attn_out_normed"),
        (0, "attn_z"),
        (0, "resid_post"),
    )
