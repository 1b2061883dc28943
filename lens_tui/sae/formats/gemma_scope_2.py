"""Gemma Scope 2 (Google DeepMind, 2025) and SAEs in its layout, which are ours too.

``config.json`` and ``params.safetensors`` with ``w_enc (d, n)``, ``w_dec (n, d)``, ``b_enc``, ``b_dec``,
``threshold`` and, for affine transcoders, ``affine_skip_connection (d_in, d_out)``. ``b_dec`` is not subtracted from
what is read. Some folders have no ``config.json``; what they are then follows from their names. Our own files may hold
the matrices in 8 bits (:mod:`lens_tui.sae.files`), which Google's do not.
"""

from __future__ import annotations

from typing import Any

from lens_tui.records import LensError
from lens_tui.records.read_files import short_path

from ..files import Definition, Weights, read_json, with_scales
from .parts import Facts, Format, Parts, Source, check_sizes, natural, pick, real

_SITES = {
    "resid_post": ("model.layers.{}.output", ""),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", ""),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", ""),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}


def _recognises(source: Source) -> bool:
    if _refused(source):
        return True
    return source.kind != "npz" and (source.has("w_enc") or source.has("w_dec"))


def _read(source: Source) -> Parts:
    if kind := _refused(source):
        raise LensError(
            f"{short_path(source.path)} is a {kind}, which reads several layers at once; that kind is not supported.",
            "Take an SAE or a transcoder of one layer.",
        )
    path, tensors = source.file, source.tensors
    if len(pick(tensors, path, "w_dec").shape) == 3:
        raise LensError(
            f"{short_path(path)} writes to several layers (a cross-layer transcoder); that kind is not supported."
        )
    config = source.config("config.json")
    if config.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise LensError(
            f"{short_path(path)} is of an architecture that Gemma Scope 2 does not have.", "Update this program."
        )
    skip = tensors.get("affine_skip_connection")
    if config.get("affine_connection") and skip is None:
        raise LensError(
            f"{short_path(path)} lacks affine_skip_connection, which its config.json announces.", "Fetch it again."
        )
    weights = Weights(
        w_enc=with_scales(pick(tensors, path, "w_enc"), tensors, "w_enc", 1, path),
        w_dec=with_scales(pick(tensors, path, "w_dec"), tensors, "w_dec", 0, path),
        b_dec=pick(tensors, path, "b_dec"),
        vectors={"b_enc": pick(tensors, path, "b_enc"), "threshold": pick(tensors, path, "threshold")},
        w_skip=skip,
    )
    check_sizes(config, "config.json", {"width": weights.width})
    return Parts(Definition(activation="jumprelu"), weights, _facts(source, config))


def _refused(source: Source) -> str:
    """What kind of many-layer file it is, if it is one."""
    names = {"clt": "cross-layer transcoder", "crosscoder": "crosscoder"}
    layers = (f"params_layer_{i}.safetensors" for i in range(8))
    many = source.path.name.startswith("params_layer_") or any((source.path / name).is_file() for name in layers)
    home = source.path if source.path.is_dir() else source.path.parent
    config = read_json(home / "config.json") if (home / "config.json").is_file() else {}
    kind = config.get("type") if many or source.is_named("params.safetensors") else None
    if isinstance(kind, str) and kind in names:
        return names[kind]
    if many:
        return names["crosscoder"] if source.search(r"/crosscoder") else names["clt"]
    return ""


def _facts(source: Source, config: dict[str, Any]) -> Facts:
    facts = Facts()
    facts.say("model_name", config.get("model_name"), "config.json model_name")
    named = source.search(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
    if named:
        # The base model of the smallest is named without -pt.
        end = "" if named[0].endswith("270m-pt") else f"-{named[2]}"
        facts.say("model_name", f"google/gemma-3-{named[1]}{end}", f"the repository's name {named[0]}")
    for key, out in (("hf_hook_point_in", False), ("hf_hook_point_out", True)):
        if isinstance(config.get(key), str):
            facts.read_from(config[key], f"config.json {key}", out=out)
    _by_names(source, facts)
    facts.say("layer", natural(config.get("layer")), "config.json layer")
    facts.say("l0", real(config.get("measured_l0")), "config.json measured_l0")
    facts.say("l0", real(config.get("l0")), "config.json l0")
    facts.say("fvu", real(config.get("fvu")), "config.json fvu")
    facts.say("context", natural(config.get("context")), "config.json context")
    for key in ("bos", "bos_included"):
        if isinstance(config.get(key), bool):
            facts.say("bos", config[key], f"config.json {key}")
    apart = facts.get("site_out") not in (None, facts.get("site")) or config.get("type") == "transcoder"
    kind = "jumprelu_skip_transcoder" if apart and config.get("affine_connection") else "jumprelu_transcoder"
    facts.say("architecture", kind if apart else "jumprelu", "the format")
    return facts


def _by_names(source: Source, facts: Facts) -> None:
    """Site and layer from the folders' names, where no config.json says them."""
    layer = source.search(r"/layer_(\d+)_width_")
    site = source.search(r"/(resid_post|attn_out|mlp_out|transcoder)(_all)?/")
    if layer is None or site is None:
        return
    hook_in, hook_out = _SITES[site[1]]
    facts.read_from(hook_in.format(layer[1]), f"the folders' names {site[1]}/layer_{layer[1]}")
    if hook_out:
        facts.read_from(hook_out.format(layer[1]), f"the folders' names {site[1]}/layer_{layer[1]}", out=True)


FORMAT = Format("Gemma Scope 2", _recognises, _read, ("params.safetensors",))
