"""Vectors in torch files, read without torch: CAA's bare tensors, steering-vectors' ``SteeringVector``, and others.

CAA (Panickssery et al. 2023) saves one tensor (d_model,) a file, ``vec_layer_15_Llama-2-7b-chat-hf.pt``; the layer
is the output of that block, counted from 0, as are the keys of steering-vectors' ``layer_activations``. Arditi et
al. (2024, refusal_direction) save ``mean_diffs.pt``, (positions, n_layers, d_model), of the *inputs* of the blocks.
Of other dictionaries the keys are layers or names; an entry ``layer`` that is a number is the layer of the one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LensError
from ..read_files import AGAIN, regular_size, shown
from ..sanitise import one_line
from ..torch_files import Fields, TorchTensor, load_torch
from .common import MAX_BYTES, Entry, Found, Row, entry_of

OBJECTS = ("steering_vectors.steering_vector.SteeringVector",)
_SITES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
_NAME = re.compile(r"(?:^|[_-])layer[_-]?([0-9]{1,4})(?:_(.+))?$", re.IGNORECASE)


def read(path: Path) -> Found:
    """The vectors of a ``.pt`` file."""
    regular_size(path, MAX_BYTES)
    value = load_torch(path, OBJECTS)
    if isinstance(value, TorchTensor):
        layer, model = named(path.stem)
        facts = {"model_hint": model} if model else {}
        site = "resid_pre" if path.stem == "mean_diffs" and len(value.array.shape) == 3 else "resid_post"
        return Found([Entry("", layer, _numbers(path, value))], site=site, counted=True, facts=facts)
    if isinstance(value, Fields):
        kind = value.values.get("layer_type", "decoder_block")
        if not isinstance(kind, str) or kind not in _SITES:
            raise LensError(
                f"{shown(path)} is for {one_line(str(kind)[:60], 30)}, which is not a site of this library."
            )
        return Found(_entries(path, value.values.get("layer_activations")), site=_SITES[kind], counted=True)
    return Found(_entries(path, value))


def named(stem: str) -> tuple[int | None, str]:
    """The layer and the model in the name of a CAA file."""
    found = _NAME.search(stem)
    return (int(found[1]), one_line(found[2] or "", 80)) if found else (None, "")


def _entries(path: Path, value: Any) -> list[Entry]:
    """The tensors of a dictionary, or of the dictionaries in it by their names."""
    if not isinstance(value, Mapping):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not vectors by layer or name.", AGAIN)
    found = []
    for key, item in value.items():
        if isinstance(item, TorchTensor):
            found.append(entry_of(key, _numbers(path, item)))
        elif isinstance(item, Mapping):
            inner = [entry_of(at, _numbers(path, part)) for at, part in item.items() if isinstance(part, TorchTensor)]
            found += [Entry(f"{key}{'.' if one.name else ''}{one.name}", one.layer, one.array) for one in inner]
    if not found:
        raise LensError(f"{shown(path)} contains no tensor.", AGAIN)
    said = value.get("layer")
    if type(said) is int and len(found) == 1 and found[0].layer is None:
        return [Entry("", said, found[0].array)]
    return found


def _numbers(path: Path, tensor: TorchTensor) -> Row:
    if 4 * math.prod(tensor.array.shape) > MAX_BYTES:
        raise LensError(f"{shown(path)} is too large for steering vectors.", "Is it a model?")
    return tensor.float32()
