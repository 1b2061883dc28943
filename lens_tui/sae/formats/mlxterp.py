"""mlxterp: ``config.json`` with ``class`` and ``d_hidden``, and ``weights.safetensors``.

``encoder.weight (n, d)``, ``encoder.bias``, ``decoder.weight (d, n)``, ``decoder.bias`` (tied: ``decoder_bias``
alone). Inputs are standardised by ``input_mean`` and ``input_std``, which is folded into the weights here, so that
decoder rows are in raw units. A BatchTopK SAE of theirs has no threshold: what it keeps depends on the batch. Here
each token keeps its ``k`` largest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from ..files import Definition, Stored, Weights, in_memory
from .parts import Facts, Format, Parts, Source, check_sizes, pick, whole

_LARGEST = 1e8
"""No activation of a model has a mean or a spread beyond it."""
_CLASSES = {"SAE": "topk", "BatchTopKSAE": "batchtopk"}
_SITES = {"mlp": "mlp_out", "attn": "attn_out", "residual": "resid_post", "resid": "resid_post", "output": "resid_post"}


def _recognises(source: Source) -> bool:
    return source.has("encoder.weight") and "d_hidden" in source.config("config.json")


def _read(source: Source) -> Parts:
    path, config = source.file, source.config("config.json")
    kind = _CLASSES.get(str(config.get("class")))
    if kind is None:
        name = one_line(str(config.get("class")), 40)
        raise LensError(
            f"{short_path(path)} is of the class {name}, which is not supported.", f"Supported: {', '.join(_CLASSES)}."
        )
    k = whole(config, "k", f"{short_path(path.parent)}/config.json")
    weights = _weights(path, source.tensors, config)
    sizes = {"d_model": weights.d_in, "d_hidden": weights.width}
    check_sizes(config, f"{short_path(path.parent)}/config.json", sizes)
    definition = Definition(activation="relu") if k >= weights.width else Definition(activation="topk", k=k)
    return Parts(definition, weights, _facts(config, kind, k))


def _weights(path: Path, tensors: dict[str, Stored], config: dict[str, Any]) -> Weights:
    encoder, b_enc = pick(tensors, path, "encoder.weight"), pick(tensors, path, "encoder.bias")
    if config.get("tied_weights"):
        decoder, b_dec = encoder, pick(tensors, path, "decoder_bias").read()
    else:
        decoder, b_dec = pick(tensors, path, "decoder.weight").T, pick(tensors, path, "decoder.bias").read()
    if not config.get("normalize_input", True):
        return Weights(w_enc=encoder.T, w_dec=decoder, b_dec=in_memory("b_dec", b_dec), vectors={"b_enc": b_enc})
    mean, std = (_statistic(name, tensors, config, path) for name in ("input_mean", "input_std"))
    if (
        len(encoder.shape) != 2
        or encoder.shape[1] != mean.size
        or len(decoder.shape) != 2
        or decoder.shape[1] != std.size
    ):
        raise LensError(f"The weights of {short_path(path)} do not fit its input_mean.", "Save it again with mlxterp.")
    w_enc = np.array(encoder.read()).T / (std[:, None] + 1e-8)
    return Weights(
        w_enc=in_memory("encoder.weight", w_enc),
        w_dec=in_memory("decoder.weight", np.array(decoder.read()) * std),
        b_dec=in_memory("decoder.bias", np.array(b_dec) * std + mean),
        vectors={"b_enc": in_memory("encoder.bias", np.array(b_enc.read()) - mean @ w_enc)},
    )


def _statistic(name: str, tensors: dict[str, Stored], config: dict[str, Any], path: Path) -> NDArray[np.float64]:
    given: Any = np.array(tensors[name].read()) if name in tensors else config.get(name)
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    good = values.ndim == 1 and values.size and (np.abs(values) <= _LARGEST).all()
    if not good or (name == "input_std" and (values < 0).any()):
        raise LensError(f"{short_path(path)} has no usable {name}.", "Save it again with mlxterp.")
    return values


def _facts(config: dict[str, Any], kind: str, k: int) -> Facts:
    facts = Facts()
    facts.say("architecture", kind, "config.json class")
    facts.say("k", k, "config.json k")
    if kind == "batchtopk":
        facts.provenance["k"] = "config.json k, taken for each token: the threshold of the batch is not in the file"
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    model, layer = metadata.get("model_name"), metadata.get("layer")
    facts.say("model_name", model if isinstance(model, str) else None, "config.json metadata.model_name")
    facts.say("layer", layer if type(layer) is int else None, "config.json metadata.layer")
    facts.say("site", _SITES.get(str(metadata.get("component")), ""), "config.json metadata.component")
    if facts.get("site") is None:
        facts.provenance["site"] = "not known: config.json metadata.component does not say it"
    return facts


FORMAT = Format("mlxterp", _recognises, _read)
