"""Vectors in torch files, read without torch: CAA's bare tensors, and steering-vectors' ``SteeringVector``.

CAA (Panickssery et al. 2023) saves one tensor (d_model,) a file, ``vec_layer_15_Llama-2-7b-chat-hf.pt``; the layer
is the output of that block, counted from 0, as are the keys of steering-vectors' ``layer_activations`` and
of a plain dictionary of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LensError
from ..read_files import AGAIN, shown
from ..sanitise import one_line
from ..torch_files import Fields, TorchTensor, load_torch
from .common import MAX_LAYERS, Found

OBJECTS = ("steering_vectors.steering_vector.SteeringVector",)
_SITES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
_NAME = re.compile(r"(?:^|[_-])layer[_-]?([0-9]{1,4})(?:_(.+))?$", re.IGNORECASE)


def read(path: Path) -> Found:
    """The vectors of a ``.pt`` file."""
    value = load_torch(path, OBJECTS)
    if isinstance(value, TorchTensor):
        layer, model = named(path.stem)
        facts = {"model_hint": model} if model else {}
        rows = value.float32()
        if rows.ndim == 2 and 1 not in rows.shape:
            return Found(list(enumerate(rows)), facts=facts)
        return Found([(layer, rows.reshape(-1))], facts=facts)
    if isinstance(value, Fields):
        kind = value.values.get("layer_type", "decoder_block")
        if kind not in _SITES:
            raise LensError(f"{shown(path)} is for {one_line(str(kind), 30)}, which is no site of this library.")
        return Found(_by_layer(path, value.values.get("layer_activations")), site=_SITES[kind])
    return Found(_by_layer(path, value))


def named(stem: str) -> tuple[int | None, str]:
    """The layer and the model in the name of a CAA file."""
    found = _NAME.search(stem)
    return (int(found[1]), one_line(found[2] or "", 80)) if found else (None, "")


def _by_layer(path: Path, value: Any) -> list[tuple[int | None, Any]]:
    if not isinstance(value, Mapping) or not value:
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not vectors by layer.", AGAIN)
    rows: list[tuple[int | None, Any]] = []
    for key, tensor in value.items():
        number = key if type(key) is int else re.fullmatch(r"(?:.*[^0-9])?([0-9]{1,5})", str(key))
        layer = number if isinstance(number, int) else int(number[1]) if number else None
        if layer is None or not -MAX_LAYERS < layer < MAX_LAYERS or not isinstance(tensor, TorchTensor):
            raise LensError(f"The entry {one_line(str(key), 40)!r} of {shown(path)} is no vector of a layer.", AGAIN)
        rows.append((layer, tensor.float32().reshape(-1)))
    return rows
