"""SAELens, version 6 and before: ``cfg.json`` and ``sae_weights.safetensors``.

Weights are ``W_enc (d_in, n)``, ``W_dec (n, d_out)``, ``b_dec`` and what the architecture needs; ``W_skip`` is
``(d_out, d_in)``. Version 6 keeps what concerns the model under ``metadata``; before, the keys were flat and some had
other names. BatchTopK and Matryoshka SAEs are saved as JumpReLU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from ..files import VECTORS, Activation, Definition, Normalization, Stored, Weights, in_memory
from .parts import Facts, Format, Parts, Source, check_sizes, input_scale, natural, pick, whole

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


def _recognises(source: Source) -> bool:
    if source.config_file("cfg.json") is None:
        return False
    return source.has("W_enc") or source.has("W_dec")


def _read(source: Source) -> Parts:
    path, tensors, config = source.file, source.tensors, _flat(source.config("cfg.json"))
    definition = _definition(config, source)
    weights = _weights(definition, tensors, path, config)
    check_sizes(config, f"{short_path(source.folder)}/cfg.json", {"d_in": weights.d_in, "d_sae": weights.width})
    return Parts(definition, weights, _facts(config, definition))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in today's names, ``metadata`` beside the rest."""
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    inner = config.get("metadata")
    flat = {names.get(key, key): value for key, value in config.items() if key != "metadata"}
    flat.update({key: value for key, value in (inner if isinstance(inner, dict) else {}).items() if value is not None})
    if not isinstance(inner, dict):
        # Before version 6 these were the defaults.
        flat.setdefault("apply_b_dec_to_input", True)
        if "hook_z" in str(flat.get("hook_name")):
            flat.setdefault("reshape_activations", "hook_z")
    kwargs = flat.get("activation_fn_kwargs")
    if flat.get("activation_fn") == "topk" and isinstance(kwargs, dict):
        flat.setdefault("k", kwargs.get("k"))
        flat["architecture"], flat["_architecture"] = "topk", "cfg.json activation_fn"
    if "architecture" not in flat:
        flat["architecture"], flat["_architecture"] = "standard", "the format: cfg.json names no architecture"
    return flat


def _definition(config: dict[str, Any], source: Source) -> Definition:
    where = short_path(source.path)
    kind = str(config["architecture"])
    if kind not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise LensError(
            f"{where} is of the architecture {one_line(kind, 40)}, which is not supported.", f"Supported: {known}."
        )
    if config.get("activation_fn") not in (None, "relu", "topk", "jumprelu"):
        name = one_line(str(config["activation_fn"]), 40)
        raise LensError(
            f"{where} has the activation {name}, which is not supported.", "Supported: relu, topk and jumprelu."
        )
    if config.get("reshape_activations") not in (None, "none", "hook_z"):
        raise LensError(f"{where} reshapes activations in an unknown way.", "Known: none and hook_z.")
    normalize, scale = _normalization(config, source)
    return Definition(
        activation=_ACTIVATIONS[kind],
        k=whole(config, "k", f"{where}/cfg.json") if kind == "topk" else 0,
        # A transcoder's bias is of the output's width and is never subtracted from the input.
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)) and "transcoder" not in kind,
        normalize=normalize,
        input_scale=scale,
        output_scale=scale,
        scale_by_norm=kind == "topk" and bool(config.get("rescale_acts_by_decoder_norm")),
    )


def _normalization(config: dict[str, Any], source: Source) -> tuple[Normalization, float]:
    mode = config.get("normalize_activations")
    if isinstance(mode, bool):
        mode = "expected_average_only_in" if mode else "none"
    if mode in (None, "none"):
        return "none", 1.0
    if mode == "layer_norm":
        return "layer_norm", 1.0
    if mode == "constant_norm_rescale":
        return "constant_norm_rescale", 1.0
    if mode == "expected_average_only_in":
        return "none", input_scale(source, config.get("norm_scaling_factor"), "norm_scaling_factor")
    if mode == "covariance_whitening":
        raise LensError(
            f"{short_path(source.path)} expects whitened activations, and the whitening matrix is not in the file.",
            "Save it again with SAELens, which folds the whitening into the weights.",
        )
    raise LensError(f"{short_path(source.path)} normalises activations in an unknown way.", "Update this program.")


def _weights(definition: Definition, tensors: dict[str, Stored], path: Path, config: dict[str, Any]) -> Weights:
    w_dec = pick(tensors, path, "W_dec")
    scaling = tensors.get("scaling_factor")
    if scaling is not None and config.get("finetuning_scaling_factor"):
        factor = np.array(scaling.read())
        if not np.all(factor == 1.0):
            # Activations are multiplied by it before decoding: the same as longer decoder rows.
            if factor.shape != w_dec.shape[:1]:
                raise LensError(
                    f"The tensor scaling_factor of {short_path(path)} has shape {factor.shape}.", "Fetch it again."
                )
            with np.errstate(over="ignore"):
                w_dec = in_memory(w_dec.name, np.array(w_dec.read()) * factor[:, None])
    skip = tensors.get("W_skip")
    return Weights(
        w_enc=pick(tensors, path, "W_enc"),
        w_dec=w_dec,
        b_dec=pick(tensors, path, "b_dec"),
        vectors={name: pick(tensors, path, name) for name in VECTORS[definition.activation]},
        w_skip=None if skip is None else skip.T,
    )


def _facts(config: dict[str, Any], definition: Definition) -> Facts:
    facts = Facts()
    facts.say("architecture", str(config["architecture"]), str(config.get("_architecture", "cfg.json architecture")))
    model = config.get("model_name")
    facts.say("model_name", model if isinstance(model, str) else None, "cfg.json model_name")
    if config.get("hook_head_index") is not None:
        facts.provenance["site"] = f"not known: cfg.json hook_head_index is {config['hook_head_index']}, one head alone"
    else:
        for key, out in (("hf_hook_name", 0), ("hook_name", 0), ("hf_hook_name_out", 1), ("hook_name_out", 1)):
            if isinstance(config.get(key), str):
                facts.read_from(config[key], f"cfg.json {key}", out=bool(out))
    layer = config.get("hook_layer", config.get("hook_point_layer"))
    facts.say("layer", layer if type(layer) is int else None, "cfg.json hook_layer")
    if isinstance(config.get("bos_included"), bool):  # our own trainer says it outright
        facts.say("bos", config["bos_included"], "cfg.json bos_included")
    if isinstance(config.get("prepend_bos"), bool):
        left_out = config.get("exclude_special_tokens")
        where = "cfg.json prepend_bos" + (" and exclude_special_tokens" if left_out else "")
        facts.say("bos", config["prepend_bos"] and not left_out, where)
    context = config.get("context_size")
    facts.say("context", natural(context), "cfg.json context_size")
    facts.say("k", definition.k or None, "cfg.json k")
    return facts


FORMAT = Format("SAELens", _recognises, _read, ("sae_weights.safetensors",))
