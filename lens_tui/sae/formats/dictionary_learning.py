"""The dictionary_learning library: ``config.json`` and ``ae.pt``, a state dict of one of its classes.

``AutoEncoder`` and ``AutoEncoderTopK`` hold ``encoder.weight (n, d)`` and ``decoder.weight (d, n)``;
``JumpReluAutoEncoder`` and the Matryoshka SAE ``W_enc (d, n)`` and ``W_dec (n, d)``. BatchTopK SAEs keep one
threshold for all latents and are used with it. The gated and JumpReLU classes multiply activations by the length of
the decoder row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.mapped import shown
from lens_tui.records.sanitise import one_line

from ..definition import Definition, Weights
from ..tensors import Stored, in_memory
from ..torch_files import read_torch
from .parts import Facts, Format, Parts, Source, pick

_KINDS = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk",
}
_SITES = {"resid_post": "resid_post", "residual": "resid_post", "mlp_out": "mlp_out", "attn_out": "attn_out"}


def _recognises(source: Source) -> bool:
    return source.find("ae.pt") is not None


def _read(source: Source) -> Parts:
    path = source.find("ae.pt")
    assert path is not None
    values = read_torch(path)
    tensors = {name: value for name, value in values.items() if isinstance(value, Stored)}
    trainer = source.config("config.json").get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = _kind(str(trainer.get("dict_class", "")), tensors, path)
    w_enc = tensors["W_enc"] if "W_enc" in tensors else pick(tensors, path, "encoder.weight").T
    w_dec = tensors["W_dec"] if "W_dec" in tensors else pick(tensors, path, "decoder.weight").T
    k = _k(values, trainer)
    definition, vectors = _definition(kind, tensors, path, w_enc.shape[-1], k)
    b_dec = pick(tensors, path, "b_dec", "bias", "decoder_bias", "decoder.bias")
    return Parts(
        definition, Weights(w_enc=w_enc, w_dec=w_dec, b_dec=b_dec, vectors=vectors), _facts(source, trainer, kind, k)
    )


def _kind(named: str, tensors: dict[str, Stored], path: Path) -> str:
    if named in _KINDS:
        return _KINDS[named]
    if named:
        raise LensError(
            f"{shown(path)} is a {one_line(named, 40)}, which is not read.", f"Read are {', '.join(_KINDS)}."
        )
    if "r_mag" in tensors:
        return "gated"
    if "encoder.bias" in tensors and "threshold" not in tensors:
        return "topk" if "b_dec" in tensors else "standard"
    raise LensError(f"{shown(path)} has no config.json that says of which class it is.", "Fetch config.json too.")


def _definition(
    kind: str, tensors: dict[str, Stored], path: Path, width: int, k: int
) -> tuple[Definition, dict[str, Stored]]:
    if kind == "gated":
        names = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
        found = {ours: pick(tensors, path, theirs) for ours, theirs in names.items()}
        return Definition(activation="gated", subtract_b_dec=True, scale_by_norm=True), found
    b_enc = {"b_enc": pick(tensors, path, "encoder.bias", "b_enc")}
    if kind == "standard":
        # The newer class has a bias in the decoder layer, and does not subtract it.
        return Definition(activation="relu", subtract_b_dec="decoder.bias" not in tensors), b_enc
    if kind == "topk":
        return Definition(activation="topk", k=k, subtract_b_dec=True), b_enc
    threshold = np.array(pick(tensors, path, "threshold").read())
    if kind != "jumprelu" and threshold.size == 1 and threshold.item() < 0:
        raise LensError(f"{shown(path)} has no threshold yet: its training was not finished.", "Take a finished one.")
    vectors = {**b_enc, "threshold": in_memory("threshold", np.broadcast_to(threshold.reshape(-1), (width,)))}
    if kind == "jumprelu":
        return Definition(activation="jumprelu", scale_by_norm=True), vectors
    return Definition(activation="jumprelu", subtract_b_dec=True), vectors


def _k(values: dict[str, Any], trainer: dict[str, Any]) -> int:
    stored = values.get("k")
    if isinstance(stored, Stored) and stored.array.size == 1:
        return int(stored.array.item())
    return next((k for k in (stored, trainer.get("k")) if type(k) is int), 0)


def _facts(source: Source, trainer: dict[str, Any], kind: str, k: int) -> Facts:
    facts = Facts()
    facts.say("architecture", kind, "config.json trainer.dict_class")
    if kind == "topk":
        facts.say("k", k, "the file's k")
    model = trainer.get("lm_name")
    facts.say("model_name", model if isinstance(model, str) else None, "config.json trainer.lm_name")
    layer = trainer.get("layer")
    facts.say("layer", layer if type(layer) is int else None, "config.json trainer.layer")
    named = str(trainer.get("submodule_name", ""))
    site = next((ours for theirs, ours in _SITES.items() if theirs in named), "")
    facts.say("site", site, f"config.json trainer.submodule_name {named}")
    if not site:
        facts.provenance["site"] = "not known: config.json does not say which tensor it reads"
    buffer = source.config("config.json").get("buffer")
    context = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    facts.say("context", context if type(context) is int else None, "config.json buffer.ctx_len")
    return facts


FORMAT = Format("dictionary_learning", _recognises, _read)
