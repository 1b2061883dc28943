"""The two layouts: hook names that read back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import load_sae
from lens_tui.records import LensError
from lens_tui.records.info import SITES, read_hook
from lens_tui.sae.formats.writers import HOOKS, write_gemma_scope, write_saelens


def weights(d: int = 6, f: int = 10) -> dict[str, mx.array]:
    rng = np.random.default_rng(0)
    shapes = {"w_enc": (d, f), "w_dec": (f, d), "b_enc": (f,), "b_dec": (d,), "threshold": (f,)}
    return {name: mx.array(np.abs(rng.normal(size=shape)).astype(np.float32)) for name, shape in shapes.items()}


PLACE: dict[str, Any] = {"layer": 3, "site": "resid_post", "model_name": "some/model"}


@pytest.mark.parametrize("site", SITES)
def test_every_site_has_a_hook_name_that_reads_back(site: str) -> None:
    hook = read_hook(HOOKS[site].format(layer=3), "google/gemma-3-1b-pt")
    assert (hook.site, hook.layer) == (site, 3)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "attn_z", "mlp_in", "mlp_normed"])
def test_both_layouts_tell_site_layer_and_model(site: str, tmp_path: Path) -> None:
    place = {**PLACE, "site": site}
    write_gemma_scope(tmp_path / "a", weights(), **place, l0=4.0)
    write_saelens(tmp_path / "b", weights(), **place, bos=True, context=128)
    for folder in (tmp_path / "a", tmp_path / "b"):
        info = load_sae(folder).info
        assert (info.site, info.layer, info.model_name, info.width) == (site, 3, "some/model", 10)
    metadata = json.loads((tmp_path / "b" / "cfg.json").read_text())["metadata"]
    assert metadata["sae_lens_version"].startswith("6.")  # else SAELens drops the metadata


def test_matrices_may_be_smaller_numbers_vectors_never(tmp_path: Path) -> None:
    write_gemma_scope(tmp_path, weights(), **PLACE, l0=4.0, dtype=mx.bfloat16)
    loaded: Any = mx.load(str(tmp_path / "params.safetensors"))
    kinds = {name: value.dtype for name, value in loaded.items()}
    assert kinds["w_enc"] == kinds["w_dec"] == mx.bfloat16
    assert kinds["b_enc"] == kinds["b_dec"] == kinds["threshold"] == mx.float32


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bad = weights()
    for change, message in (
        ({"w_enc": bad["w_enc"].T}, "w_enc has shape"),
        ({"b_enc": mx.full((10,), float("nan"))}, "b_enc of the SAE to write holds NaN"),
    ):
        with pytest.raises(LensError, match=message):
            write_gemma_scope(tmp_path, {**bad, **change}, **PLACE, l0=4.0)
    del bad["threshold"]
    with pytest.raises(LensError, match="lacks threshold"):
        write_saelens(tmp_path, bad, **PLACE, bos=True, context=8)
    with pytest.raises(LensError, match="no hook name for the site 'logits'"):
        write_gemma_scope(tmp_path, weights(), **{**PLACE, "site": "logits"}, l0=4.0)
    assert not list(tmp_path.iterdir())
