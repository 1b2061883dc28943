"""Splicing an SAE in, with and without its error term."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import SAE, JumpReLUSAE, TopKSAE, splice, spliced
from lens_tui.records import LensError, SAEInfo
from lens_tui.sae.base import build
from lens_tui.sae.files import Definition

from .makers import Array, numbers


def jumprelu(w: dict[str, Array], definition: Definition | None = None) -> SAE:
    sae = JumpReLUSAE.from_arrays(w["w_enc"], w["w_dec"], w["b_dec"], b_enc=w["b_enc"], threshold=w["threshold"])
    return sae if definition is None else build(definition, sae._weights, sae.info)


def formula(w: dict[str, Array]) -> Array:
    pre = w["x"] @ w["w_enc"] + w["b_enc"]
    return np.where(pre > w["threshold"], np.maximum(pre, 0), 0)


@pytest.mark.parametrize("keep_error", [True, False])
def test_edits_by_the_formula(keep_error: bool) -> None:
    w = numbers()
    z = formula(w)
    edited = z.copy()
    edited[..., 5], edited[..., 9] = 3.0, edited[..., 9] * 0.5
    h = mx.array(w["x"])
    out = splice(jumprelu(w), clamp={5: 3.0}, scale={9: 0.5}, keep_error=keep_error)(h)
    error = w["x"] - (z @ w["w_dec"] + w["b_dec"]) if keep_error else 0
    assert np.allclose(np.array(out), edited @ w["w_dec"] + w["b_dec"] + error, atol=1e-4)


def test_without_edits_the_error_term_leaves_every_bit() -> None:
    w = numbers()
    for dtype in (mx.float32, mx.bfloat16):
        h = mx.array(w["x"]).astype(dtype)
        out = splice(jumprelu(w))(h)
        assert out.dtype == dtype
        assert mx.array_equal(out, h)
    whole = splice(jumprelu(w), keep_error=False)(mx.array(w["x"]))
    assert np.allclose(np.array(whole), formula(w) @ w["w_dec"] + w["b_dec"], atol=1e-4)


def test_the_residuals_dtype_is_kept() -> None:
    w = numbers()
    h = mx.array(w["x"]).astype(mx.bfloat16)
    for keep_error in (True, False):
        assert splice(jumprelu(w), clamp={3: 1.0}, keep_error=keep_error)(h).dtype == mx.bfloat16


def test_topk_features_compete_before_they_are_edited() -> None:
    w = numbers()
    definition = Definition(activation="topk", k=5)
    sae = TopKSAE.from_arrays(w["w_enc"], w["w_dec"], w["b_dec"], b_enc=w["b_enc"], definition=definition)
    z = np.maximum(w["x"] @ w["w_enc"] + w["b_enc"], 0)
    z = np.where(z >= np.sort(z, axis=-1)[..., -5, None], z, 0)
    feature = int(z.reshape(-1, z.shape[-1])[0].argmax())
    out = splice(sae, scale={feature: 0.0})(mx.array(w["x"]))
    assert np.allclose(np.array(out), w["x"] - z[..., feature, None] * w["w_dec"][feature], atol=1e-4)


@pytest.mark.parametrize(
    "definition",
    [
        Definition(activation="jumprelu", normalize="layer_norm"),
        Definition(activation="jumprelu", normalize="constant_norm_rescale"),
        Definition(activation="jumprelu", input_scale=0.5, output_scale=0.25),
        Definition(activation="jumprelu", scale_by_norm=True, subtract_b_dec=True),
    ],
)
def test_edits_are_in_raw_units_whatever_the_normalisation(definition: Definition) -> None:
    w = numbers()
    sae, h = jumprelu(w, definition), mx.array(w["x"])
    z = np.array(sae.encode(h))
    edited = z.copy()
    edited[..., 7] = 2.0
    change = np.array(sae.decode(mx.array(edited), like=h)) - np.array(sae.decode(mx.array(z), like=h))
    out = np.array(splice(sae, clamp={7: 2.0})(h))
    assert np.abs(change).max() > 0.1
    assert np.allclose(out - w["x"], change, atol=1e-4)


def test_a_transcoder_takes_its_input_and_changes_the_output() -> None:
    w = numbers(d_out=24)
    sae = jumprelu(w)
    sae.info = replace(sae.info, architecture="jumprelu_transcoder")
    z = formula(w)
    true = z @ w["w_dec"] + w["b_dec"] + 0.3
    out = spliced(sae, mx.array(true), source=mx.array(w["x"]), scale={2: 0.0})
    assert np.allclose(np.array(out), true - z[..., 2, None] * w["w_dec"][2], atol=1e-4)
    out = spliced(sae, mx.array(true), source=mx.array(w["x"]), keep_error=False)
    assert np.allclose(np.array(out), true - 0.3, atol=1e-4)
    with pytest.raises(LensError, match="transcoder"):
        splice(sae)
    with pytest.raises(LensError, match="needs the tensor that it reads"):
        spliced(sae, mx.array(true))


def test_what_cannot_be_edited_is_refused() -> None:
    sae = jumprelu(numbers())
    with pytest.raises(LensError, match="no feature 96"):
        splice(sae, clamp={96: 1.0})
    with pytest.raises(LensError, match="both clamped and scaled"):
        splice(sae, clamp={1: 1.0}, scale={1: 0.0})


def test_info_of_arrays_says_nothing_it_does_not_know() -> None:
    info: SAEInfo = jumprelu(numbers()).info
    assert (info.site, info.layer, info.bos, info.l0) == ("", -1, None, None)
    assert not info.is_transcoder


@pytest.mark.parametrize("keep_error", [True, False])
def test_tensors_of_another_width_are_refused_with_and_without_edits(keep_error: bool) -> None:
    sae = jumprelu(numbers())
    for edits in ({}, {5: 3.0}):
        for wrong in (mx.zeros((2, sae.d_model + 1)), mx.array(1.0)):
            with pytest.raises(LensError, match="The output has shape"):
                spliced(sae, wrong, clamp=edits, keep_error=keep_error)
            with pytest.raises(LensError, match="The output has shape"):
                splice(sae, clamp=edits, keep_error=keep_error)(wrong)
    with pytest.raises(LensError, match="The source has shape"):
        spliced(sae, mx.zeros((2, sae.d_model)), source=mx.zeros((2, 3)))
