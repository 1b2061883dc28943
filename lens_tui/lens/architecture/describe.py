"""What is known of a loaded model, as a record."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from lens_tui.records import ModelInfo
from lens_tui.records.sanitise import sanitise

from ..tokens import Tokens
from .find import Decoder
from .taps import named


def describe(model: Module, decoder: Decoder, tokens: Tokens, *, name: str, path: str) -> ModelInfo:
    """The record of a model: parameters are counted as they were before quantisation."""
    whole: Any = model
    arrays: Any = tree_flatten(whole.parameters())
    return ModelInfo(
        name=sanitise(name),
        path=sanitise(path),
        architecture=str(getattr(model, "model_type", "") or type(model).__module__.rpartition(".")[2]),
        n_layers=decoder.n_layers,
        d_model=decoder.d_model,
        vocab_size=decoder.vocab_size,
        n_parameters=_parameters(model),
        dtype=str(decoder.dtype).rpartition(".")[2],
        quantization=quantization(model),
        nbytes=sum(array.nbytes for _, array in arrays),
        has_chat_template=tokens.has_chat_template,
        bos_token_id=tokens.bos,
        device=_device(),
    )


def _parameters(model: Module) -> int:
    from mlx_lm import utils

    count: Any = utils.get_total_parameters
    return int(count(model))


def quantization(model: Module) -> str:
    """``"4-bit, group 64"`` of the first quantised module, with "mixed" if they differ; empty if there is none."""
    kinds: dict[str, None] = {}
    for _, module in named(model):
        bits: Any = getattr(module, "bits", None)
        if isinstance(bits, int) and "scales" in module:
            kinds[f"{bits}-bit, group {getattr(module, 'group_size', '?')}"] = None
    return "" if not kinds else next(iter(kinds)) + (", mixed" if len(kinds) > 1 else "")


def _device() -> str:
    device = mx.default_device()
    try:
        name = str(mx.device_info().get("device_name", ""))
    except RuntimeError:
        name = ""
    kind = str(device.type).rpartition(".")[2]
    return sanitise(f"{kind} ({name})" if name else kind)
