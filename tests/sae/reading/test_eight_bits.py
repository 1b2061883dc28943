"""SAE matrices in 8 bits against the same numbers written out in NumPy."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import load_sae
from lens_tui.records import LensError
from lens_tui.sae.files import in_eight_bits, quantised
from lens_tui.sae.formats.writers import write_gemma_scope

from .makers import Array, N, numbers, write_json, write_safetensors
from .test_formats import agree, jump

HOOK = {"hf_hook_point_in": "model.layers.3.output", "model_name": "a model"}


def by_hand(w: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The tensors of a file, latent by latent in float64, and the matrices that they stand for."""
    columns, rows = np.abs(w["w_enc"]).max(0).astype(np.float64) / 127, np.abs(w["w_dec"]).max(1) / np.float64(127)
    tensors = {
        "w_enc": np.round(w["w_enc"] / columns).astype(np.int8),
        "w_enc_scale": columns.astype(np.float32),
        "w_dec": np.round(w["w_dec"] / rows[:, None]).astype(np.int8),
        "w_dec_scale": rows.astype(np.float32),
    }
    stand_for = {"w_enc": tensors["w_enc"] * columns, "w_dec": tensors["w_dec"] * rows[:, None]}
    return tensors, stand_for


def write(folder: Path, w: dict[str, Array], **changes: Array | None) -> Path:
    tensors, _ = by_hand(w)
    tensors |= {name: w[name] for name in ("b_enc", "b_dec", "threshold")}
    both = {**tensors, **changes}
    write_safetensors(folder / "params.safetensors", {name: a for name, a in both.items() if a is not None})
    write_json(folder / "config.json", HOOK)
    return folder


@pytest.mark.parametrize("residence", ["memory", "disk", "8bit"])
def test_every_way_to_read_it_gives_the_formula(tmp_path: Path, residence: str) -> None:
    w = numbers()
    _, matrices = by_hand(w)
    sae = load_sae(write(tmp_path, w), residence=residence)  # type: ignore[arg-type]
    z = jump(w["x"] @ matrices["w_enc"] + w["b_enc"], w["threshold"])
    if residence == "8bit":  # quantised once more, in groups: not exact
        assert np.mean((np.array(sae.encode(mx.array(w["x"]))) > 0) == (z > 0)) > 0.99
    else:
        agree(sae, w, z, z @ matrices["w_dec"] + w["b_dec"])
    rows = matrices["w_dec"][[7, 3, 95]]
    assert np.allclose(np.array(sae.decoder_norms([7, 3, 95])), np.linalg.norm(rows, axis=-1), atol=1e-5)
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert np.allclose(np.array(sae.directions([7, 3, 95])), unit, atol=1e-6)


def test_a_weight_is_off_by_half_a_scale_at_most() -> None:
    w = numbers()["w_enc"]
    w[:, 5] = 0
    made, scales = quantised(w, 1)
    assert made.dtype == np.int8
    assert np.abs(made).max() == 127
    assert (np.abs(made * scales - w) <= scales / 2 + 1e-7).all()
    assert (made[:, 5] == 0).all()
    assert scales[5] == 1


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    w = numbers()
    arrays = {name: mx.array(w[name]) for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    write_gemma_scope(tmp_path / "a", arrays, layer=3, site="resid_post", model_name="a model", l0=4.0, dtype=mx.int8)
    small = (tmp_path / "a" / "params.safetensors").stat().st_size
    assert small < 0.4 * (w["w_enc"].nbytes + w["w_dec"].nbytes)
    _, matrices = by_hand(w)
    z = jump(w["x"] @ matrices["w_enc"] + w["b_enc"], w["threshold"])
    agree(load_sae(tmp_path / "a"), w, z, z @ matrices["w_dec"] + w["b_dec"])


def test_an_id_depends_on_the_scales(tmp_path: Path) -> None:
    w = numbers()
    first = load_sae(write(tmp_path / "a", w)).info.id
    assert load_sae(write(tmp_path / "b", w)).info.id == first
    scales = by_hand(w)[0]["w_dec_scale"]
    scales[50] *= 2
    assert load_sae(write(tmp_path / "c", w, w_dec_scale=scales)).info.id != first


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"w_enc_scale": None}, "w_enc in 8 bits without w_enc_scale"),
        ({"w_dec": numbers()["w_dec"]}, "w_dec_scale without 8-bit w_dec"),
        ({"w_enc_scale": np.ones(N - 1, np.float32)}, "one number a latent"),
        ({"w_enc_scale": np.zeros(N, np.float32)}, "not positive"),
        ({"w_dec_scale": np.full(N, np.nan, np.float32)}, "NaN or infinity"),
    ],
)
def test_scales_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Array | None], says: str) -> None:
    with pytest.raises(LensError, match=says):
        load_sae(write(tmp_path, numbers(), **changes))


def test_the_two_matrices_of_a_file() -> None:
    w = numbers()
    made = in_eight_bits(w["w_enc"], w["w_dec"])
    expected, _ = by_hand(w)
    assert set(made) == set(expected)
    for name, array in expected.items():
        assert np.allclose(made[name], array, rtol=1e-6, atol=0 if array.dtype == np.float32 else 1), name
