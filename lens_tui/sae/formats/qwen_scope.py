"""Qwen Scope: ``layerN.sae.pt`` with ``W_enc (n, d)``, ``W_dec (d, n)``, ``b_enc``, ``b_dec``; TopK on the residual
stream.

``k`` and the model are in the repository's name only, ``SAE-Res-{model}-W{width}K-L0_{k}``. ``b_dec`` is not
subtracted.
"""

from __future__ import annotations

import re

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path

from ..files import Definition, Weights
from .parts import Facts, Format, Parts, Source, pick

_FILE = re.compile(r"layer(\d{1,4})\.sae\.pt")


def _recognises(source: Source) -> bool:
    if isinstance(source.config("config.json").get("trainer"), dict) or source.has("encoder.weight"):
        return False
    if not source.has("W_enc", "W_dec", "b_enc") or source.kind != "torch":
        return source.weights is not None and _FILE.fullmatch(source.weights.name) is not None
    # Latents come first in its encoder, and last in its decoder; with a threshold it is another format.
    n, tensors = source.tensors["b_enc"].shape, source.tensors
    turned = tensors["W_enc"].shape[:1] == n and tensors["W_dec"].shape[1:] == n
    return turned and not source.has("threshold")


def _read(source: Source) -> Parts:
    named = source.search(r"SAE-Res-(.+?)-W(\d+)K-L0_(\d{1,7})")
    if named is None:
        raise LensError(
            f"{short_path(source.path)} does not say how many latents are active: its repository's name does.",
            "Keep it in a folder named like SAE-Res-Qwen3-8B-Base-W64K-L0_50.",
        )
    path, tensors = source.file, source.tensors
    weights = Weights(
        w_enc=pick(tensors, path, "W_enc").T,
        w_dec=pick(tensors, path, "W_dec").T,
        b_dec=pick(tensors, path, "b_dec"),
        vectors={"b_enc": pick(tensors, path, "b_enc")},
    )
    facts = Facts()
    where = f"the repository's name {named[0]}"
    facts.say("architecture", "topk", "the format")
    facts.say("model_name", f"Qwen/{named[1]}", where)
    facts.say("k", int(named[3]), where)
    facts.say("l0", float(named[3]), where)
    layer = _FILE.fullmatch(path.name)
    facts.say("layer", int(layer[1]) if layer else None, f"the file's name {path.name}")
    if layer is None:
        facts.provenance["layer"] = "not known: the file is not named layerN.sae.pt"
    facts.say("site", "resid_post", where)
    return Parts(Definition(activation="topk", k=int(named[3])), weights, facts)


FORMAT = Format("Qwen Scope", _recognises, _read)
