"""Llama Scope (OpenMOSS, 2024) and what that group made after it.

``hyperparams.json`` with ``checkpoints/final.safetensors``, or ``config.json`` with ``sae_weights.safetensors``:
``encoder.weight (n, d)``, ``encoder.bias``, ``decoder.weight (d, n)``, ``decoder.bias``. Weights are for
activations whose mean length is ``sqrt(d)``; that length over the data set is in the configuration or among the
tensors. The older ones have one threshold for all latents, given for the raw scale: it is multiplied by the scale
of the input (as their own inference code, which leaves the input raw, implies). The newer ones hold
``log_jumprelu_threshold`` of each latent in the scaled units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path

from ..files import Definition, Stored, Weights, in_memory
from .parts import Facts, Format, Parts, Source, check_sizes, input_scale, number, pick, positive

_NORM = "dataset_average_activation_norm"
_CONFIGS = ("hyperparams.json", "config.json")


def _recognises(source: Source) -> bool:
    if source.config_file("cfg.json") is not None:
        return False
    if source.has("encoder.weight") and (source.has("log_jumprelu_threshold") or _norms(source.tensors)):
        return True
    if source.has("encoder.weight") or source.is_named("final.safetensors", "sae_weights.safetensors"):
        return "hook_point_in" in source.config(*_CONFIGS)
    return False


def _read(source: Source) -> Parts:
    path, tensors = source.file, source.tensors
    config, home = source.config(*_CONFIGS), source.config_file(*_CONFIGS)
    named = "the configuration, which is missing" if home is None else home.name
    w_enc = pick(tensors, path, "encoder.weight").T
    w_dec = pick(tensors, path, "decoder.weight").T
    if len(w_enc.shape) != 2:
        raise LensError(f"The weights of {short_path(path)} are not matrices.", "Fetch the file again.")
    check_sizes(config, named, {"d_model": w_enc.shape[0], "d_sae": w_enc.shape[1]})
    scale_in, scale_out, where = _scales(config, named, source, w_enc.shape[0], w_dec.shape[-1])
    facts = Facts()
    facts.say("architecture", "jumprelu", "the format")
    model = config.get("model_name")
    facts.say("model_name", model if isinstance(model, str) else None, f"{named} model_name")
    for key, out in (("hook_point_in", False), ("hook_point_out", True)):
        if isinstance(config.get(key), str):
            facts.read_from(config[key], f"{named} {key}", out=out)
    facts.provenance["input_scale"] = where
    threshold, said = _threshold(config, named, source, w_enc.shape[1], scale_in)
    facts.provenance["threshold"] = said
    weights = Weights(
        w_enc=w_enc,
        w_dec=w_dec,
        b_dec=pick(tensors, path, "decoder.bias"),
        vectors={"b_enc": pick(tensors, path, "encoder.bias"), "threshold": threshold},
    )
    return Parts(Definition(activation="jumprelu", input_scale=scale_in, output_scale=scale_out), weights, facts)


def _norms(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors that say how long activations are, by hook."""
    return {name.removeprefix(f"{_NORM}."): tensor for name, tensor in tensors.items() if _NORM in name}


def _scales(config: dict[str, Any], named: str, source: Source, d_in: int, d_out: int) -> tuple[float, float, str]:
    """What the input is multiplied by, what the output is divided by, and where that is from."""
    norms = config.get(_NORM)
    given: dict[str, Any]
    if isinstance(norms, dict) and norms:
        given, where = norms, f"{_NORM} of {named}"
    else:
        given = {hook: _single(tensor) for hook, tensor in _norms(source.tensors).items()}
        where = f"the tensors {_NORM}"
    if config.get("norm_activation") == "inference":
        return 1.0, 1.0, f"{named} norm_activation inference: folded into the weights"
    if not given:
        scale = input_scale(source, None)
        return scale, scale, "given by the caller"
    into = given.get("in", given.get(str(config.get("hook_point_in"))))
    out = given.get("out", given.get(str(config.get("hook_point_out")), into))
    at = short_path(source.folder)
    return d_in**0.5 / positive(into, _NORM, at), d_out**0.5 / positive(out, _NORM, at), where


def _single(tensor: Stored) -> float:
    if int(np.prod(tensor.shape)) != 1:
        raise LensError(
            f"The tensor {tensor.name} has shape {tensor.shape}; it should be one number.", "Fetch it again."
        )
    return float(np.array(tensor.read()).item())


def _threshold(config: dict[str, Any], named: str, source: Source, width: int, scale: float) -> tuple[Stored, str]:
    if "log_jumprelu_threshold" in source.tensors:
        log = np.array(source.tensors["log_jumprelu_threshold"].read())
        if log.size != 1 and log.shape != (width,):
            raise LensError(
                f"The tensor log_jumprelu_threshold has shape {log.shape}, not {(width,)}.", "Fetch it again."
            )
        with np.errstate(over="ignore"):
            value = np.exp(np.broadcast_to(log.reshape(-1), (width,)))
        return in_memory("threshold", value), "exp of log_jumprelu_threshold"
    if config.get("act_fn", "jumprelu") not in ("jumprelu", "topk"):
        raise LensError(
            f"{short_path(source.file)} has an activation that is not supported.", "Supported are its JumpReLU SAEs."
        )
    value = number(config, "jump_relu_threshold", f"{short_path(source.folder)}'s {named}")
    if not 0 <= value <= 1e8:
        raise LensError(
            f"jump_relu_threshold of {named} is {value:g}, which is not a possible threshold.", "Fetch it again."
        )
    return in_memory("threshold", np.full(width, value * scale)), "jump_relu_threshold times the scale of the input"


FORMAT = Format("Llama Scope", _recognises, _read)
