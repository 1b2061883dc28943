"""Captures at every site and every mode of intervention, against forward passes written in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import (
    Ablate,
    Add,
    CapProjection,
    ClampFeature,
    Intervention,
    LensError,
    NormMatch,
    Positions,
    ProjectOut,
    SetProjection,
    SteeringVector,
    Swap,
)
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.tiny import unit

LLAMA_SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "attn_z", "mlp_in")
GEMMA_SITES = (*LLAMA_SITES, "attn_out_normed", "mlp_out_normed")
CASES = {
    "llama": (tiny.llama, numpy_models.llama, LLAMA_SITES),
    "gemma3": (tiny.gemma3, numpy_models.gemma3, GEMMA_SITES),
}
Change = Callable[[Array], Array]


class TinySAE:
    """A JumpReLU SAE with decoder rows that are not unit, in both frameworks."""

    def __init__(self, d_model: int = 64) -> None:
        rng = np.random.default_rng(5)
        self.d_model = d_model
        self.w_enc, self.w_dec = rng.normal(size=(d_model, 40)) * 0.2, rng.normal(size=(40, d_model)) * 0.3
        self.b_enc, self.b_dec = rng.normal(size=40) * 0.1, rng.normal(size=d_model) * 0.1
        self.threshold = 0.3

    def numpy_encode(self, x: Array) -> Array:
        pre = (x @ self.w_enc) + self.b_enc
        result: Array = pre * (pre > self.threshold)
        return result

    def encode(self, residual: mx.array) -> mx.array:
        pre = residual.astype(mx.float32) @ mx.array(self.w_enc.astype(np.float32)) + mx.array(
            self.b_enc.astype(np.float32)
        )
        return pre * (pre > self.threshold)

    def decode(self, activations: mx.array) -> mx.array:
        return activations @ mx.array(self.w_dec.astype(np.float32)) + mx.array(self.b_dec.astype(np.float32))


def vector(layer: int = 0, seed: int = 2, width: int = 64) -> SteeringVector:
    return SteeringVector.of("v", unit(seed, width), layer)


def close(ours: Any, reference: Array) -> None:
    np.testing.assert_allclose(np.array(ours, dtype=np.float64), reference, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_capture_at_every_site_of_every_layer_agrees(name: str) -> None:
    make, reference, sites = CASES[name]
    sites = (*sites, "attn_q", "attn_k", "attn_v", "mlp_normed")
    model = make()
    lens = LensModel.from_model(model)
    seen: dict[tuple[int, str], Array] = {}

    def note(layer: int, site: str, x: Array) -> Array:
        if not site.startswith(("read_", "attn_scores", "attn_pattern")):  # none of those is a site
            seen[layer, site] = x
        return x

    expected = reference(model, tiny.IDS, note)
    assert set(lens.sites(1)) == set(sites)
    with lens.capture(range(4), site=sites) as captured:
        logits = lens.forward(list(tiny.IDS))
    close(logits[0], expected)
    assert len(captured) == 4 * len(sites)
    for key, value in seen.items():
        assert captured[key].shape[:2] == (1, len(tiny.IDS))
        close(captured[key][0], value)


def cases(width: int = 64) -> dict[str, tuple[Intervention, Change]]:
    """Every mode: its record at layer 1, and the same in numpy."""
    v, sae, steering = unit(width=width), TinySAE(width), vector(width=width)
    u, other = unit(seed=5, width=width), vector(seed=5, width=width)
    mean = np.random.default_rng(9).normal(size=width)

    def along(x: Array) -> Array:
        return (x @ v)[:, None]

    def clamp(x: Array) -> Array:
        now = sae.numpy_encode(x)
        wanted = now.copy()
        wanted[:, 7] = 2.5
        error = x - (now @ sae.w_dec + sae.b_dec)
        return (wanted @ sae.w_dec + sae.b_dec) + error

    common: dict[str, Any] = {"id": "i", "layer": 1}
    f32 = mean.astype(np.float32)
    return {
        "add": (Add(**common, vector=steering, scale=3.0), lambda x: x + 3.0 * v),
        "norm_match": (
            NormMatch(**common, vector=steering, scale=-0.4),
            lambda x: x - 0.4 * np.linalg.norm(x, axis=-1, keepdims=True) * v,
        ),
        "project_out": (ProjectOut(**common, vector=steering), lambda x: x - along(x) * v),
        "set_projection": (
            SetProjection(**common, vector=steering, value=1.5),
            lambda x: x + (1.5 - along(x)) * v,
        ),
        "swap": (Swap(**common, vector=steering, other=other), lambda x: x + along(x) * (u - v)),
        "cap_projection": (
            CapProjection(**common, vector=steering, low=-0.2, high=0.1),
            lambda x: x + (np.clip(along(x), -0.2, 0.1) - along(x)) * v,
        ),
        "clamp_feature": (ClampFeature(**common, sae="s", feature=7, value=2.5), clamp),
        "ablate_zero": (Ablate(**common), lambda x: 0 * x),
        "ablate_mean": (Ablate(**common, mean=f32), lambda x: 0 * x + mean),
    }


@pytest.mark.parametrize("site", GEMMA_SITES)
@pytest.mark.parametrize("mode", cases())
@pytest.mark.parametrize("name", CASES)
def test_every_mode_at_every_site_agrees(name: str, mode: str, site: str) -> None:
    from dataclasses import replace

    make, reference, sites = CASES[name]
    model = make()
    lens = LensModel.from_model(model)
    lens.attach_sae("s", TinySAE())
    record, change = cases()[mode]
    if site not in sites:
        with pytest.raises(LensError, match=f"no {site} that can be proved"):
            lens.intervene(replace(record, site=site))
        return
    expected = reference(model, tiny.IDS, lambda layer, at, x: change(x) if (layer, at) == (1, site) else x)
    plain = np.array(lens.forward(list(tiny.IDS)))
    with lens.intervene(replace(record, site=site)):
        steered = lens.forward(list(tiny.IDS))
    close(steered[0], expected)
    assert not np.allclose(np.array(steered), plain, atol=1e-3)
    np.testing.assert_array_equal(np.array(lens.forward(list(tiny.IDS))), plain)


@pytest.mark.parametrize("name", CASES)
def test_several_interventions_act_in_the_stated_order(name: str) -> None:
    make, reference, _ = CASES[name]
    model = make()
    lens = LensModel.from_model(model)
    a, b = unit(2), unit(3)

    def change(layer: int, site: str, x: Array) -> Array:
        if (layer, site) == (1, "resid_post"):
            x = x + 2.0 * a
            x = x - (x @ b)[:, None] * b
            return x + 1.5 * b + 0.5 * a
        return x * 0 if (layer, site) == (2, "attn_out") else x

    records = [
        Add(id="1", layer=1, vector=vector(1, 2), scale=2.0),
        ProjectOut(id="2", layer=1, vector=vector(1, 3)),
        Add(id="3", layer=-3, vector=vector(1, 3), scale=1.5),
        Add(id="4", layer=1, vector=vector(1, 2), scale=0.5),
        Ablate(id="5", layer=2, site="attn_out"),
        Add(id="6", layer=0, vector=vector(1, 2), scale=9.0, enabled=False),
    ]
    with lens.intervene(*records) as handle:
        close(lens.forward(list(tiny.IDS))[0], reference(model, tiny.IDS, change))
        assert [item.layer for item in handle.interventions] == [1, 1, 1, 1, 2, 0]


def _touch(kind: Positions, at: Any) -> Any:
    """Which of 8 positions a kind names, by hand."""
    table = {
        "prompt": at < 7,
        "generated": at >= 7,
        "last": at == 7,
        "not_bos": at != 0,
        "indices": (at == 2) | (at == 7),
        "slice": (at >= 3) & (at < 6),
    }
    return np.asarray(table[kind.kind])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "positions",
    [
        Positions("prompt"),
        Positions("generated"),
        Positions("last"),
        Positions("not_bos"),
        Positions("indices", indices=(2, -1)),
        Positions("slice", start=3, stop=-2),
    ],
    ids=lambda positions: positions.kind,
)
@pytest.mark.parametrize("mode", ["add", "project_out"])
def test_positions_in_one_forward_agree(name: str, positions: Positions, mode: str) -> None:
    make, reference, _ = CASES[name]
    model = make()
    lens = LensModel.from_model(model, _bos_only(tiny.IDS[0]) if positions.kind == "not_bos" else None)
    touched = _touch(positions, np.arange(len(tiny.IDS)))[:, None]
    change: Change = {"add": lambda x: x + 4 * unit(), "project_out": lambda x: x - (x @ unit())[:, None] * unit()}[
        mode
    ]
    record: Intervention = (
        Add(id="i", layer=1, vector=vector(), scale=4.0, positions=positions)
        if mode == "add"
        else ProjectOut(id="i", layer=1, vector=vector(), positions=positions)
    )
    expected = reference(
        model,
        tiny.IDS,
        lambda layer, site, x: np.where(touched, change(x), x) if (layer, site) == (1, "resid_post") else x,
    )
    with lens.intervene(record):
        close(lens.forward(list(tiny.IDS))[0], expected)


def _bos_only(bos: int) -> Any:
    class Tokenizer:
        detokenizer = None
        bos_token_id = bos
        eos_token_ids: set[int] = set()
        has_chat_template = False

    return Tokenizer()
