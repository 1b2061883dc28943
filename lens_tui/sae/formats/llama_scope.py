"""Llama Scope (OpenMOSS, 2024) and what that group made after it.

``hyperparams.json`` with ``checkpoints/final.safetensors``, or ``config.json`` with ``sae_weights.safetensors``:
``encoder.weight (n, d)``, ``encoder.bias``, ``decoder.weight (d, n)``, ``decoder.bias``. Weights are for
activations whose mean length is ``sqrt(d)``; that length over the data set is in the configuration or among the
tensors. The older ones have one threshold for all latents, given for the raw scale: it is multiplied by the scale
of the input (as their own inference code, which leaves the input raw, implies). The newer ones hold
``log_jumprelu_threshold`` of each latent in the scaled units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.mapped import shown

from ..definition import Definition, Weights
from ..files import read_safetensors
from ..tensors import Stored, in_memory
from .parts import Facts, Format, Parts, Source, input_scale, number, pick

_NORM = "dataset_average_activation_norm"


def _recognises(source: Source) -> bool:
    return _path(source) is not None


def _path(source: Source) -> Path | None:
    if source.path.name == "final.safetensors" and (source.path.parents[1] / "hyperparams.json").is_file():
        return source.path
    inside = source.folder / "checkpoints" / "final.safetensors"
    if (source.folder / "hyperparams.json").is_file() and inside.is_file():
        return inside
    weights = source.find("sae_weights.safetensors")
    newer = weights is not None and not (source.folder / "cfg.json").is_file()
    return weights if newer and source.config("config.json").get("hook_point_in") else None


def _read(source: Source) -> Parts:
    path = _path(source)
    assert path is not None
    home = path.parents[1] if path.name == "final.safetensors" else path.parent
    config = Source(home, source.name).config("hyperparams.json", "config.json")
    tensors = read_safetensors(path)
    w_enc = pick(tensors, path, "encoder.weight").T
    scale_in, scale_out, where = _scales(config, tensors, w_enc.shape[0], source)
    facts = Facts()
    facts.say("architecture", "jumprelu", "the format")
    facts.say("model_name", config.get("model_name"), "hyperparams.json model_name")
    for key, out in (("hook_point_in", False), ("hook_point_out", True)):
        if isinstance(config.get(key), str):
            facts.read_from(config[key], f"hyperparams.json {key}", out=out)
    facts.provenance["input_scale"] = where
    threshold, said = _threshold(config, tensors, w_enc.shape[1], scale_in, path)
    facts.provenance["threshold"] = said
    weights = Weights(
        w_enc=w_enc,
        w_dec=pick(tensors, path, "decoder.weight").T,
        b_dec=pick(tensors, path, "decoder.bias"),
        vectors={"b_enc": pick(tensors, path, "encoder.bias"), "threshold": threshold},
    )
    return Parts(Definition(activation="jumprelu", input_scale=scale_in, output_scale=scale_out), weights, facts)


def _scales(config: dict[str, Any], tensors: dict[str, Stored], d: int, source: Source) -> tuple[float, float, str]:
    """What the input is multiplied by, what the output is divided by, and where that is from."""
    norms = config.get(_NORM)
    if isinstance(norms, dict) and norms:
        given: dict[str, Any]
        given, where = norms, f"{_NORM} of the configuration"
    else:
        given = {
            name.removeprefix(f"{_NORM}."): np.array(t.read()).item() for name, t in tensors.items() if _NORM in name
        }
        where = f"the tensors {_NORM}"
    if config.get("norm_activation") == "inference":
        return 1.0, 1.0, "norm_activation inference: folded into the weights"
    if not given:
        scale = input_scale(source, None)
        return scale, scale, "given by the caller"
    into = given.get("in", given.get(str(config.get("hook_point_in"))))
    out = given.get("out", given.get(str(config.get("hook_point_out")), into))
    scale_in, scale_out = (d**0.5 / number({"norm": norm}, "norm", shown(source.path)) for norm in (into, out))
    return scale_in, scale_out, where


def _threshold(
    config: dict[str, Any], tensors: dict[str, Stored], width: int, scale: float, path: Path
) -> tuple[Stored, str]:
    if "log_jumprelu_threshold" in tensors:
        log = np.array(tensors["log_jumprelu_threshold"].read())
        value = np.exp(np.broadcast_to(log, (width,)) if log.size == 1 else log)
        return in_memory("threshold", value), "exp of log_jumprelu_threshold"
    if config.get("act_fn", "jumprelu") not in ("jumprelu", "topk"):
        raise LensError(f"{shown(path)} is of an activation that is not read.", "Read are its JumpReLU SAEs.")
    value = number(config, "jump_relu_threshold", shown(path)) * scale
    return in_memory("threshold", np.full(width, value)), "jump_relu_threshold times the scale of the input"


FORMAT = Format("Llama Scope", _recognises, _read)
