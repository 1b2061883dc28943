"""circuit-tracer's sets of transcoders, one layer at a time: ``layer_N.safetensors`` beside the set's ``config.yaml``.

``W_enc (n, d)``, ``W_dec (n, d)``, ``b_enc``, ``b_dec`` and, where activations are JumpReLU,
``activation_function.threshold``; with a skip connection ``W_skip (d_out, d_in)``. ``config.yaml`` names the hooks of a
block that every layer reads and writes, and may say ``activation: topk`` with its ``k``. Where it has a list
``transcoders``, that is where the layers' files are, in their order: at the hub, each in a repository of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with huggingface-hub, which needs it

from lens_tui.records import LensError
from lens_tui.records.read_files import read_text, short_path

from ..files import Definition, Weights
from .parts import MAX_LAYER, Facts, Format, Parts, Source, pick, whole

_LIMIT = 1 << 20
_LAYER = r"layer_(\d+)\.safetensors"
_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec")


def _recognises(source: Source) -> bool:
    if source.config_file("cfg.json") is not None or not source.has(*_ARRAYS):
        return False
    if source.of_set is not None:
        return True
    beside = source.config_file("config.yaml") is not None and source.file.name.startswith("layer_")
    return beside or source.has("activation_function.threshold")


def _read(source: Source) -> Parts:
    path, tensors = source.file, source.tensors
    config = _config(source)
    where = f"{short_path(source.folder)}/config.yaml"
    kind = config.get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise LensError(f"{where} is of a {kind!r:.40}, which is not read here.", "Take a set of transcoders.")
    activation = config.get("activation")
    vectors = {"b_enc": pick(tensors, path, "b_enc")}
    if activation == "topk":
        definition = Definition(activation="topk", k=whole(config, "k", where))
    elif "activation_function.threshold" in tensors and activation in (None, "jumprelu", "jump_relu"):
        definition = Definition(activation="jumprelu")
        vectors["threshold"] = tensors["activation_function.threshold"]
    elif activation in (None, "relu"):
        definition = Definition(activation="relu")
    else:
        raise LensError(f"{where} has the activation {activation!r:.40}.", "Supported: relu, topk and JumpReLU.")
    skip = tensors.get("W_skip")
    weights = Weights(
        w_enc=pick(tensors, path, "W_enc").T,
        w_dec=pick(tensors, path, "W_dec"),
        b_dec=pick(tensors, path, "b_dec"),
        vectors=vectors,
        w_skip=None if skip is None else skip.T,
    )
    return Parts(definition, weights, _facts(source, config, definition, skip=skip is not None))


def set_config(folder: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a set; nothing where there is none. Raises ``LensError`` where it is not YAML."""
    path = folder / "config.yaml"
    return _read_config(path) if path.is_file() else {}


def listed_files(folder: Path) -> list[str]:
    """What ``config.yaml`` of a set lists as the files of its layers, from 0; nothing where they lie beside it.

    Raises ``LensError`` for a list of something else.
    """
    found = set_config(folder).get("transcoders")
    if found is None:
        return []
    if not isinstance(found, list) or not found or not all(isinstance(line, str) for line in found):
        raise LensError(
            f"config.yaml of {short_path(folder)} has transcoders that are no list of files.", "Fetch the set again."
        )
    return found[:MAX_LAYER]


def _config(source: Source) -> dict[str, Any]:
    if source.of_set is not None:
        return dict(source.of_set)
    path = source.config_file("config.yaml")
    return {} if path is None else _read_config(path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_text(path, _LIMIT))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, LensError):
            raise
        raise LensError(f"{short_path(path)} is not YAML.", "Fetch it again.") from error
    return found if isinstance(found, dict) else {}


def _facts(source: Source, config: dict[str, Any], definition: Definition, *, skip: bool) -> Facts:
    facts = Facts()
    kind = "" if definition.activation == "relu" else f"{definition.activation}_"
    facts.say("architecture", f"{kind}{'skip_' if skip else ''}transcoder", "the format")
    model = config.get("model_name")
    facts.say("model_name", model if isinstance(model, str) else None, "config.yaml model_name")
    layer = source.search(_LAYER)
    if layer is not None:
        for key, out in (("feature_input_hook", False), ("feature_output_hook", True)):
            if isinstance(config.get(key), str):
                facts.read_from(f"blocks.{int(layer[1])}.{config[key]}", f"config.yaml {key}", out=out)
        facts.say("layer", int(layer[1]), f"the file's name {layer[0]}")
        facts.say("layer_out", int(layer[1]), f"the file's name {layer[0]}")
    facts.say("k", definition.k or None, "config.yaml k")
    return facts


FORMAT = Format("circuit-tracer", _recognises, _read)
