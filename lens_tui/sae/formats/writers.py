"""Write a JumpReLU SAE for raw activations in the two layouts that others read.

Both take the same arrays: ``w_enc (d, f)``, ``w_dec (f, d)``, ``b_enc (f,)``, ``b_dec (d,)``,
``threshold (f,)``; the SAE is ``relu(x @ w_enc + b_enc)`` where that is above
``threshold``, decoded as ``z @ w_dec + b_dec``. ``b_dec`` is not subtracted from ``x``. Every file is
replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError
from lens_tui.records.disk import write_text, write_with

from ..files import in_eight_bits

HOOKS = {
    "resid_pre": "model.layers.{layer}.input",
    "resid_post": "model.layers.{layer}.output",
    "attn_out": "model.layers.{layer}.self_attn.output",
    "attn_z": "model.layers.{layer}.self_attn.o_proj.input",
    "attn_out_normed": "model.layers.{layer}.post_attention_layernorm.output",
    "mlp_in": "model.layers.{layer}.mlp.input",
    "mlp_out": "model.layers.{layer}.mlp.output",
    "mlp_out_normed": "model.layers.{layer}.post_feedforward_layernorm.output",
}
"""Site -> Hugging Face hook point, as Gemma Scope 2's config.json names them."""

_TRANSFORMER_LENS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "attn_z": "blocks.{layer}.attn.hook_z",
}
SAELENS_LAYOUT = "6.0.0"
"""The SAELens version whose layout is written: without one SAELens takes the file for an old one, drops metadata."""

_NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def write_gemma_scope(
    folder: Path,
    weights: Mapping[str, mx.array],
    *,
    layer: int,
    site: str,
    model_name: str,
    l0: float,
    dtype: mx.Dtype = mx.float32,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json`` and ``params.safetensors`` as Gemma Scope 2 lays them out.

    ``dtype`` is that of the two matrices (Gemma Scope's is float32; ``int8``, with a scale a latent, only this library
    reads: :mod:`lens_tui.sae.files`); vectors stay float32. ``facts`` are further keys of config.json (JSON
    values). Raises ``LensError`` for weights that do not fit together.
    """
    width, _ = _check(weights)
    hook = _hook(HOOKS, site, layer)
    config = {
        "hf_hook_point_in": hook,
        "hf_hook_point_out": hook,
        "width": width,
        "model_name": model_name,
        "architecture": "jump_relu",
        "l0": l0,
        "affine_connection": False,
        "type": "sae",
        **(facts or {}),
    }
    eight = dtype == mx.int8
    arrays = {name: weights[name].astype(mx.float32 if eight or weights[name].ndim == 1 else dtype) for name in _NAMES}
    if eight:
        made = in_eight_bits(np.array(arrays["w_enc"]), np.array(arrays["w_dec"]))
        arrays |= {name: mx.array(value) for name, value in made.items()}
    _write(folder / "params.safetensors", arrays)
    write_text(folder / "config.json", json.dumps(config, indent=1, allow_nan=False) + "\n")


def write_saelens(
    folder: Path,
    weights: Mapping[str, mx.array],
    *,
    layer: int,
    site: str,
    model_name: str,
    bos: bool,
    context: int,
    log_density: mx.array | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``cfg.json``, ``sae_weights.safetensors`` and ``sparsity.safetensors`` as SAELens 6 does.

    The architecture is ``jumprelu``.

    ``log_density`` ``(f,)`` is ``log10`` of each latent's firing rate. SAELens names hooks
    as TransformerLens does; a site that has no such name gets its Hugging Face one.
    """
    width, d = _check(weights)
    names = _TRANSFORMER_LENS if site in _TRANSFORMER_LENS else HOOKS
    metadata = {
        "model_name": model_name,
        "hook_name": _hook(names, site, layer),
        "hf_hook_name": _hook(HOOKS, site, layer),
        "prepend_bos": bos,
        "exclude_special_tokens": True,
        "context_size": context,
        "sae_lens_version": SAELENS_LAYOUT,
        **(facts or {}),
    }
    config = {
        "architecture": "jumprelu",
        "d_in": d,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if site == "attn_z" else "none",
        "metadata": metadata,
    }
    arrays = {
        "W_enc": weights["w_enc"],
        "W_dec": weights["w_dec"],
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
        "threshold": weights["threshold"],
    }
    _write(folder / "sae_weights.safetensors", {name: a.astype(mx.float32) for name, a in arrays.items()})
    if log_density is not None:
        _write(folder / "sparsity.safetensors", {"sparsity": log_density.astype(mx.float32)})
    write_text(folder / "cfg.json", json.dumps(config, indent=1, allow_nan=False) + "\n")


def _check(weights: Mapping[str, mx.array]) -> tuple[int, int]:
    missing = [name for name in _NAMES if name not in weights]
    if missing:
        raise LensError(f"The SAE to write lacks {', '.join(missing)}.", "Give all five arrays.")
    width, d = weights["w_dec"].shape
    wanted = {"w_enc": (d, width), "w_dec": (width, d), "b_enc": (width,), "b_dec": (d,), "threshold": (width,)}
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise LensError(f"{name} has shape {tuple(weights[name].shape)}, not {shape}.", "Transpose or fix it.")
        if not bool(mx.all(mx.isfinite(weights[name])).item()):
            raise LensError(f"{name} of the SAE to write holds NaN or infinity.", "Lower the learning rate.")
    return width, d


def _hook(table: Mapping[str, str], site: str, layer: int) -> str:
    if site not in table:
        raise LensError(f"There is no hook name for the site {site!r}.", f"The sites are {', '.join(HOOKS)}.")
    return table[site].format(layer=layer)


def _write(path: Path, arrays: dict[str, mx.array]) -> None:
    arrays = {name: mx.contiguous(value) for name, value in arrays.items()}
    mx.eval(arrays)
    write_with(path, lambda file: mx.save_safetensors(file, arrays))
