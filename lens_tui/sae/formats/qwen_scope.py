"""Qwen Scope: ``layerN.sae.pt`` with ``W_enc (n, d)``, ``W_dec (d, n)``, ``b_enc``, ``b_dec``; TopK on the residual
stream.

``k`` and the model stand in the repository's name only, ``SAE-Res-{model}-W{width}K-L0_{k}``. ``b_dec`` is not
subtracted.
"""

from __future__ import annotations

import re

from lens_tui.records import LensError
from lens_tui.records.mapped import shown

from ..definition import Definition, Weights
from ..tensors import Stored
from ..torch_files import read_torch
from .parts import Facts, Format, Parts, Source, pick

_FILE = re.compile(r"layer(\d+)\.sae\.pt")


def _recognises(source: Source) -> bool:
    return source.path.is_file() and _FILE.fullmatch(source.path.name) is not None


def _read(source: Source) -> Parts:
    named = source.search(r"SAE-Res-(.+?)-W(\d+)K-L0_(\d+)")
    if named is None:
        raise LensError(
            f"{shown(source.path)} does not say how many latents are active: its repository's name does.",
            "Keep it in a folder named like SAE-Res-Qwen3-8B-Base-W64K-L0_50.",
        )
    tensors = {name: value for name, value in read_torch(source.path).items() if isinstance(value, Stored)}
    weights = Weights(
        w_enc=pick(tensors, source.path, "W_enc").T,
        w_dec=pick(tensors, source.path, "W_dec").T,
        b_dec=pick(tensors, source.path, "b_dec"),
        vectors={"b_enc": pick(tensors, source.path, "b_enc")},
    )
    facts = Facts()
    where = f"the repository's name {named[0]}"
    facts.say("architecture", "topk", "the format")
    facts.say("model_name", f"Qwen/{named[1]}", where)
    facts.say("k", int(named[3]), where)
    facts.say("l0", float(named[3]), where)
    layer = _FILE.fullmatch(source.path.name)
    assert layer is not None
    facts.say("layer", int(layer[1]), f"the file's name {source.path.name}")
    facts.say("site", "resid_post", where)
    return Parts(Definition(activation="topk", k=int(named[3])), weights, facts)


FORMAT = Format("Qwen Scope", _recognises, _read)
