"""Write a JumpReLU SAE or transcoder for raw activations in the layouts that others read.

All take the same arrays: ``w_enc (d, f)``, ``w_dec (f, d_out)``, ``b_enc (f,)``, ``b_dec (d_out,)``,
``threshold (f,)``; the SAE is ``relu(x @ w_enc + b_enc)`` where that is above
``threshold``, decoded as ``z @ w_dec + b_dec``. ``b_dec`` is not subtracted from ``x``. To what a transcoder gives
``x @ w_skip`` is added where there is a ``w_skip (d, d_out)``. Every file is replaced atomically.
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
    "attn_q": "model.layers.{layer}.self_attn.q_proj.output",
    "attn_k": "model.layers.{layer}.self_attn.k_proj.output",
    "attn_v": "model.layers.{layer}.self_attn.v_proj.output",
    "attn_z": "model.layers.{layer}.self_attn.o_proj.input",
    "attn_out_normed": "model.layers.{layer}.post_attention_layernorm.output",
    "mlp_in": "model.layers.{layer}.mlp.input",
    "mlp_normed": "blocks.{layer}.ln2.hook_normalized",
    "mlp_out": "model.layers.{layer}.mlp.output",
    "mlp_out_normed": "model.layers.{layer}.post_feedforward_layernorm.output",
}
"""Site -> Hugging Face hook point, as Gemma Scope 2's config.json names them; TransformerLens' where there is none."""

_TRANSFORMER_LENS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "attn_z": "blocks.{layer}.attn.hook_z",
    "mlp_normed": "blocks.{layer}.ln2.hook_normalized",
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
    site_out: str = "",
    dtype: mx.Dtype = mx.float32,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json`` and ``params.safetensors`` as Gemma Scope 2 lays them out.

    ``site_out`` is what a transcoder gives.

    ``dtype`` is that of the two matrices (Gemma Scope's is float32; ``int8``, with a scale a latent, only this library
    reads: :mod:`lens_tui.sae.files`); vectors stay float32. ``facts`` are further keys of config.json (JSON
    values). Raises ``LensError`` for weights that do not fit together.
    """
    width, _, _ = _check(weights)
    config = {
        "hf_hook_point_in": _hook(HOOKS, site, layer),
        "hf_hook_point_out": _hook(HOOKS, site_out or site, layer),
        "width": width,
        "model_name": model_name,
        "architecture": "jump_relu",
        "l0": l0,
        "affine_connection": "w_skip" in weights,
        "type": "transcoder" if site_out else "sae",
        **(facts or {}),
    }
    eight = dtype == mx.int8
    arrays = {name: weights[name].astype(mx.float32 if eight or weights[name].ndim == 1 else dtype) for name in _NAMES}
    if eight:
        made = in_eight_bits(np.array(arrays["w_enc"]), np.array(arrays["w_dec"]))
        arrays |= {name: mx.array(value) for name, value in made.items()}
    if "w_skip" in weights:
        arrays["affine_skip_connection"] = weights["w_skip"].astype(mx.float32)
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
    site_out: str = "",
    log_density: mx.array | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``cfg.json``, ``sae_weights.safetensors`` and ``sparsity.safetensors`` as SAELens 6 does.

    The architecture is ``jumprelu``, of a transcoder, which gives ``site_out``, ``jumprelu_transcoder`` or, with a skip
    connection, ``jumprelu_skip_transcoder``.

    ``log_density`` ``(f,)`` is ``log10`` of each latent's firing rate. SAELens names hooks
    as TransformerLens does; a site that has no such name gets its Hugging Face one.
    """
    hooks = _hooks(layer, site, site_out)
    metadata = {
        "model_name": model_name,
        **hooks,
        "prepend_bos": bos,
        "exclude_special_tokens": True,
        "context_size": context,
        "sae_lens_version": SAELENS_LAYOUT,
        **(facts or {}),
    }
    config = {**_saelens_kind(weights, site, transcoder=bool(site_out)), "metadata": metadata}
    arrays = {
        "W_enc": weights["w_enc"],
        "W_dec": weights["w_dec"],
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
        "threshold": weights["threshold"],
        **({"W_skip": weights["w_skip"].T} if "w_skip" in weights else {}),
    }
    _write(folder / "sae_weights.safetensors", {name: a.astype(mx.float32) for name, a in arrays.items()})
    if log_density is not None:
        _write(folder / "sparsity.safetensors", {"sparsity": log_density.astype(mx.float32)})
    write_text(folder / "cfg.json", json.dumps(config, indent=1, allow_nan=False) + "\n")


def _hooks(layer: int, site: str, site_out: str) -> dict[str, str]:
    names = _TRANSFORMER_LENS if {site, site_out or site} <= _TRANSFORMER_LENS.keys() else HOOKS
    hooks = {"hook_name": _hook(names, site, layer), "hf_hook_name": _hook(HOOKS, site, layer)}
    if site_out:
        hooks |= {"hook_name_out": _hook(names, site_out, layer), "hf_hook_name_out": _hook(HOOKS, site_out, layer)}
    return hooks


def _saelens_kind(weights: Mapping[str, mx.array], site: str, *, transcoder: bool) -> dict[str, Any]:
    width, d, d_out = _check(weights)
    skip = "_skip" if "w_skip" in weights else ""
    return {
        "architecture": f"jumprelu{skip}_transcoder" if transcoder else "jumprelu",
        "d_in": d,
        **({"d_out": d_out} if transcoder else {}),
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if site == "attn_z" else "none",
    }


def write_circuit_tracer(folder: Path, weights: Mapping[str, mx.array], *, layer: int, model_name: str) -> None:
    """Write a transcoder of an MLP as ``layer_N.safetensors`` and ``config.yaml``, as circuit-tracer 0.4 reads sets.

    A set is the files of all layers from 0 in one folder, beside one ``config.yaml``.
    """
    _check(weights)
    arrays = {
        "W_enc": weights["w_enc"].T,
        "W_dec": weights["w_dec"],
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
        "activation_function.threshold": weights["threshold"],
        **({"W_skip": weights["w_skip"].T} if "w_skip" in weights else {}),
    }
    _write(folder / f"layer_{layer}.safetensors", {name: a.astype(mx.float32) for name, a in arrays.items()})
    facts = {
        "model_name": model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": model_name,
    }
    # A string of JSON is one of YAML.
    write_text(folder / "config.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in facts.items()))


def _check(weights: Mapping[str, mx.array]) -> tuple[int, int, int]:
    """Width, what is read and what is given."""
    missing = [name for name in _NAMES if name not in weights]
    if missing:
        raise LensError(f"The SAE to write lacks {', '.join(missing)}.", "Give all five arrays.")
    width, d_out = weights["w_dec"].shape
    d = weights["w_enc"].shape[0]
    wanted: dict[str, tuple[int, ...]] = {
        "w_enc": (d, width),
        "w_dec": (width, d_out),
        "b_enc": (width,),
        "b_dec": (d_out,),
        "threshold": (width,),
    }
    if "w_skip" in weights:
        wanted["w_skip"] = (d, d_out)
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise LensError(f"{name} has shape {tuple(weights[name].shape)}, not {shape}.", "Transpose or fix it.")
        if not bool(mx.all(mx.isfinite(weights[name])).item()):
            raise LensError(f"{name} of the SAE to write holds NaN or infinity.", "Lower the learning rate.")
    return width, d, d_out


def _hook(table: Mapping[str, str], site: str, layer: int) -> str:
    if site not in table:
        raise LensError(f"There is no hook name for the site {site!r}.", f"The sites are {', '.join(HOOKS)}.")
    return table[site].format(layer=layer)


def _write(path: Path, arrays: dict[str, mx.array]) -> None:
    arrays = {name: mx.contiguous(value) for name, value in arrays.items()}
    mx.eval(arrays)
    write_with(path, lambda file: mx.save_safetensors(file, arrays))
