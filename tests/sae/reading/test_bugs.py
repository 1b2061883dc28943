"""The known fault of mlx-lens 0.1.2 in reading SAEs, B24: each test says what goes wrong there."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import JumpReLUSAE, load_sae
from lens_tui.records import LensError

from .makers import numbers, write_json, write_safetensors

NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
WAYS = (("in", "pre"), ("out", "post"))


def gemma_scope_2(folder: Path) -> JumpReLUSAE:
    w = numbers()
    write_safetensors(folder / "params.safetensors", {name: w[name] for name in NAMES})
    write_json(folder / "config.json", {"hf_hook_point_in": "model.layers.3.output", "type": "sae"})
    return JumpReLUSAE.from_pretrained(folder)


def test_b24_gemma_scope_1_is_read_as_it_is_published(tmp_path: Path) -> None:
    """There its ``.npz`` is ``KeyError: 'w_enc'``, for the names there are ``W_enc`` and ``W_dec``."""
    w = numbers()
    home = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_59"
    home.mkdir(parents=True)
    np.savez(home / "params.npz", **{name.replace("w_", "W_"): w[name] for name in NAMES})  # type: ignore[arg-type]
    sae = JumpReLUSAE.from_pretrained(home)
    pre = w["x"] @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], pre, 0)
    np.testing.assert_allclose(np.array(sae.encode(mx.array(w["x"]))), z, atol=1e-4)
    np.testing.assert_allclose(np.array(sae.decode(mx.array(z))), z @ w["w_dec"] + w["b_dec"], atol=1e-4)


def test_b24_a_skip_connection_is_part_of_the_reconstruction(tmp_path: Path) -> None:
    """There it is dropped without a word."""
    w = numbers()
    write_safetensors(
        tmp_path / "params.safetensors",
        {name: w[name] for name in NAMES} | {"affine_skip_connection": w["w_skip"]},
    )
    hooks = {f"hf_hook_point_{way}": f"model.layers.3.{norm}_feedforward_layernorm.output" for way, norm in WAYS}
    write_json(tmp_path / "config.json", {**hooks, "affine_connection": True, "type": "transcoder"})
    sae = load_sae(tmp_path)
    pre = w["x"] @ w["w_enc"] + w["b_enc"]
    wanted = np.where(pre > w["threshold"], pre, 0) @ w["w_dec"] + w["b_dec"] + w["x"] @ w["w_skip"]
    np.testing.assert_allclose(np.array(sae.reconstruct(mx.array(w["x"])).output), wanted, atol=1e-4)


@pytest.mark.parametrize("ids", [[96], [10**6], [-1], [0, 96]])
def test_b24_features_that_do_not_exist_are_named(tmp_path: Path, ids: list[int]) -> None:
    """There one too many gives zeros, a million a crash of the process, and -1 the last of them."""
    sae = gemma_scope_2(tmp_path)
    with pytest.raises(LensError, match=r"no feature (96|1000000|-1): this SAE has 96"):
        sae.directions(ids)


def test_b24_no_features_are_no_directions(tmp_path: Path) -> None:
    """There an empty list is an error from inside MLX."""
    assert gemma_scope_2(tmp_path).directions([]).shape == (0, 32)
