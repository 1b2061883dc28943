"""Gemma Scope (Google DeepMind, 2024): JumpReLU SAEs and transcoders of Gemma 2, ``params.npz``.

``W_enc (d, n)``, ``W_dec (n, d)``, ``b_enc``, ``b_dec``, ``threshold``; ``b_dec`` is not subtracted from what is
read. There is no configuration: model, site and layer are in the names of the repository and folders. SAEs of the
``mlp`` repositories read the MLP's output after its norm, those of ``att`` the heads' outputs, transcoders map the
MLP's input before the gain of its norm to its normed output.
"""

from __future__ import annotations

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path

from ..files import Definition, Stored, Weights
from .parts import Facts, Format, Parts, Source, pick

_SITES = {"res": ("resid_post", ""), "mlp": ("mlp_out_normed", ""), "att": ("attn_z", "")}
_TRANSCODER = ("mlp_normed", "mlp_out_normed")


def _recognises(source: Source) -> bool:
    return source.kind == "npz" and source.config_file("cfg.json") is None


def _read(source: Source) -> Parts:
    path, tensors = source.file, {name.lower(): tensor for name, tensor in source.tensors.items()}
    w_enc, w_dec = pick(tensors, path, "w_enc"), pick(tensors, path, "w_dec")
    facts = _facts(source)
    if facts.get("site") == "embedding":
        w_enc, w_dec = _for_embeddings(w_enc, w_dec)
        del facts.values["site"]
        facts.provenance["site"] = "not known: it reads the scaled token embeddings, which is not a site of a block"
    weights = Weights(
        w_enc=w_enc,
        w_dec=w_dec,
        b_dec=pick(tensors, path, "b_dec"),
        vectors={"b_enc": pick(tensors, path, "b_enc"), "threshold": pick(tensors, path, "threshold")},
    )
    return Parts(Definition(activation="jumprelu"), weights, facts)


def _for_embeddings(w_enc: Stored, w_dec: Stored) -> tuple[Stored, Stored]:
    """It was trained on embeddings before Gemma multiplies them by ``sqrt(d)``."""
    if len(w_enc.shape) != 2 or len(w_dec.shape) != 2:
        raise LensError("The embedding SAE's weights are not matrices.", "Fetch the file again.")
    root = np.float32(w_enc.shape[0] ** 0.5)
    return Stored(w_enc.name, np.asarray(w_enc.array) / root), Stored(w_dec.name, np.asarray(w_dec.array) * root)


def _facts(source: Source) -> Facts:
    facts = Facts()
    repo = source.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
    if repo:
        where = f"the repository's name {repo[0]}"
        facts.say("model_name", f"google/gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else ""), where)
        site, out = _TRANSCODER if repo[3] == "transcoders" else _SITES[repo[3]]
        facts.say("site", site, where)
        facts.say("site_out", out, where)
    else:
        facts.provenance["site"] = f"not known: {short_path(source.path)} names no repository of Gemma Scope"
    if source.search(r"/embedding/width_"):
        facts.values["site"] = "embedding"
    facts.say("architecture", "jumprelu_transcoder" if facts.get("site_out") else "jumprelu", "the format")
    layer = source.search(r"/layer_(\d+)/")
    if layer:
        where = f"the folder's name layer_{layer[1]}"
        facts.say("layer", int(layer[1]), where)
        facts.say("layer_out", int(layer[1]) if facts.get("site_out") else None, where)
    l0 = source.search(r"average_l0_(\d+)")
    if l0:
        facts.say("l0", float(l0[1]), f"the folder's name {l0[0]}")
    return facts


FORMAT = Format("Gemma Scope", _recognises, _read)
