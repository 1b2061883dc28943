"""The dictionary_learning library: a state dict of one of its classes (``ae.pt``) and ``config.json``.

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
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from ..files import Definition, Stored, Weights, in_memory
from .parts import Facts, Format, Parts, Source, check_sizes, natural, pick, whole

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
    if isinstance(source.config("config.json").get("trainer"), dict):
        return True
    if source.has("r_mag", "gate_bias") or source.has("encoder.weight", "bias"):
        return True
    if source.kind != "torch":
        return source.has("encoder.weight", "b_dec") or source.has("W_enc", "group_sizes")
    return source.has("encoder.weight") or source.has("W_enc", "threshold")


def _read(source: Source) -> Parts:
    path, tensors = source.file, source.tensors
    trainer = source.config("config.json").get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    kind, said = _kind(trainer.get("dict_class"), tensors, path)
    w_enc = tensors["W_enc"] if "W_enc" in tensors else pick(tensors, path, "encoder.weight").T
    w_dec = tensors["W_dec"] if "W_dec" in tensors else pick(tensors, path, "decoder.weight").T
    k, k_from = _k(source, trainer)
    definition, vectors = _definition(kind, tensors, path, w_enc.shape[-1] if w_enc.shape else 0, k)
    b_dec = pick(tensors, path, "b_dec", "bias", "decoder_bias", "decoder.bias")
    weights = Weights(w_enc=w_enc, w_dec=w_dec, b_dec=b_dec, vectors=vectors)
    sizes = {"activation_dim": weights.d_in, "dict_size": weights.width}
    check_sizes(trainer, f"{short_path(source.folder)}/config.json", sizes)
    facts = _facts(source, trainer)
    facts.say("architecture", kind, said)
    if kind == "topk":
        facts.say("k", k, k_from)
    return Parts(definition, weights, facts)


_BY_TENSORS = "the names of its tensors"


def _kind(named: Any, tensors: dict[str, Stored], path: Path) -> tuple[str, str]:
    """What the SAE is, and how that is known."""
    if isinstance(named, str) and named in _KINDS:
        return _KINDS[named], "config.json trainer.dict_class"
    if named:
        raise LensError(
            f"{short_path(path)} is a {one_line(str(named), 40)}, which is not supported.",
            f"Supported: {', '.join(_KINDS)}.",
        )
    if "r_mag" in tensors:
        return "gated", _BY_TENSORS
    if "group_sizes" in tensors:
        return "matryoshka_batchtopk", _BY_TENSORS
    if "encoder.bias" in tensors and "threshold" not in tensors:
        return "topk" if "b_dec" in tensors else "standard", _BY_TENSORS
    raise LensError(f"{short_path(path)} has no config.json that names its class.", "Fetch config.json too.")


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
    if threshold.size != 1 and threshold.shape != (width,):
        raise LensError(f"The tensor threshold of {short_path(path)} has shape {threshold.shape}.", "Fetch it again.")
    if kind != "jumprelu" and threshold.size == 1 and threshold.item() < 0:
        raise LensError(
            f"{short_path(path)} has no threshold yet: its training was not finished.", "Take a finished one."
        )
    vectors = {**b_enc, "threshold": in_memory("threshold", np.broadcast_to(threshold.reshape(-1), (width,)))}
    if kind == "jumprelu":
        return Definition(activation="jumprelu", scale_by_norm=True), vectors
    return Definition(activation="jumprelu", subtract_b_dec=True), vectors


def _k(source: Source, trainer: dict[str, Any]) -> tuple[int, str]:
    """How many latents a TopK SAE keeps (0: unknown), and where that is from."""
    stored = source.values.get("k")
    if isinstance(stored, Stored):
        if int(np.prod(stored.shape)) != 1:
            raise LensError(f"The tensor k of {short_path(source.file)} has shape {stored.shape}.", "Fetch it again.")
        return whole({"k": float(np.array(stored.host()).item())}, "k", short_path(source.file)), "the file's k"
    if stored is not None:
        return whole({"k": stored}, "k", short_path(source.file)), "the file's k"
    if trainer.get("k") is None:
        return 0, "not known: neither the file nor config.json says it"
    return whole(trainer, "k", f"{short_path(source.folder)}/config.json"), "config.json trainer.k"


def _facts(source: Source, trainer: dict[str, Any]) -> Facts:
    facts = Facts()
    model = trainer.get("lm_name")
    facts.say("model_name", model if isinstance(model, str) else None, "config.json trainer.lm_name")
    layer = trainer.get("layer")
    facts.say("layer", layer if type(layer) is int else None, "config.json trainer.layer")
    named = str(trainer.get("submodule_name", ""))
    site = next((ours for theirs, ours in _SITES.items() if theirs in named), "")
    facts.say("site", site, f"config.json trainer.submodule_name {named}")
    if not site:
        silent = "there is no config.json" if source.config_file("config.json") is None else "config.json does not say"
        facts.provenance["site"] = f"not known: {silent}"
    buffer = source.config("config.json").get("buffer")
    context = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    facts.say("context", natural(context), "config.json buffer.ctx_len")
    return facts


FORMAT = Format("dictionary_learning", _recognises, _read, ("ae.pt",))
