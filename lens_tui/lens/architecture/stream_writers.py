"""Which weights write to a model's residual stream: the embedding, and the last matrix of every attention and MLP.

They are found by the sites that :mod:`..hooks.places` proved: the module whose output is ``attn_out`` or ``mlp_out``,
and in it the projection that gives this output. A block that norms what its attention or MLP gave (Gemma 2 and 3)
has no matrix that writes to the stream, which is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from ..hooks.places import PROJECTION_NAMES, SiteMap
from .find import Decoder
from .taps import named, original_class
from .unembed import EMBED_NAMES

Part = Literal["attn", "mlp"]
_OUT_NAMES: dict[Part, tuple[str, ...]] = {
    "attn": PROJECTION_NAMES,
    "mlp": ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "w2", "fc_out", "out_proj", "proj_2"),
}
LINEAR = ("Linear", "QuantizedLinear")
_CALLED: dict[Part, str] = {"attn": "attention", "mlp": "MLP"}


@dataclass(frozen=True, eq=False)
class Writer:
    """A matrix (d_model, in) whose output goes into the stream, and its path in the model."""

    path: str
    module: Any


def block_writer(model: Module, sites: SiteMap, layer: int, part: Part) -> Writer:
    """The last matrix of a block's attention or MLP.

    Args:
        model: The model.
        sites: The sites of its blocks.
        layer: Which block, from 0.
        part: Its attention or its MLP.

    Raises:
        LensError: Where there is none, with the reason.
    """
    there = sites.available(layer)
    site = f"{part}_out"
    if site not in there:
        raise LensError(
            f"Layer {layer} of this model has no {_CALLED[part]} whose output can be told from the rest of the block,"
            " so no weight is known to change."
        )
    if f"{site}_normed" in there:
        raise LensError(
            f"Layer {layer} norms what its {_CALLED[part]} gives before it goes into the stream, so no matrix writes"
            " to the stream and nothing can be folded into one.",
            "Steer it live, or write a control vector for llama.cpp (--to gguf).",
        )
    whole = sites.point(layer, site).module
    found = [module for name in _OUT_NAMES[part] if (module := getattr(whole, name, None)) is not None]
    if len(found) != 1 or original_class(found[0]).__name__ not in LINEAR:
        raise LensError(
            f"The {_CALLED[part]} of layer {layer} does not end in one linear layer (a mixture of experts has many),"
            " so a steering cannot be folded into it."
        )
    return Writer(path_of(model, found[0]), found[0])


def embeddings(model: Module, decoder: Decoder) -> tuple[Writer, ...]:
    """The table of tokens, and that of learnt positions where there is one (GPT-2's ``wpe``), each (rows, d_model)."""
    found: list[Writer] = []
    for owner in decoder.owners:
        for name in (*EMBED_NAMES, "wpe"):
            module = getattr(owner, name, None)
            if isinstance(module, Module) and all(module is not writer.module for writer in found):
                found.append(Writer(path_of(model, module), module))
    if not [writer for writer in found if not writer.path.endswith("wpe")]:
        raise LensError("This model's embedding cannot be found, so nothing can be folded into it.")
    return tuple(found)


def path_of(model: Module, wanted: Module) -> str:
    """Where a module is in a model, as its parameters are named."""
    return next(path for path, module in named(model) if module is wanted)


def matrix(module: Any) -> mx.array:
    """A linear layer's or an embedding's weight in float32 (rows, columns), dequantised where it is packed."""
    weight: mx.array = module["weight"]
    if "scales" not in module:
        return weight.astype(mx.float32)
    return mx.dequantize(
        weight,
        module["scales"],
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=getattr(module, "mode", "affine"),
    ).astype(mx.float32)


def put_matrix(module: Any, value: mx.array) -> None:
    """Give a module another weight, packed as the one it has, in the dtype it has."""
    if "scales" not in module:
        module.weight = value.astype(module["weight"].dtype)
        return
    dtype = module["scales"].dtype
    mode = getattr(module, "mode", "affine")
    given = value.astype(dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16)
    weight, scales, *biases = mx.quantize(given, group_size=module.group_size, bits=module.bits, mode=mode)
    module.weight, module.scales = weight, scales
    if biases:
        module.biases = biases[0]


def extend(module: Any, kept: int, new: mx.array, *, axis: int) -> None:
    """Put rows (axis 0) or columns (axis 1) behind the first ``kept`` ones of a linear layer's weight.

    Of a packed weight the rows and columns that stay keep their bits; ``kept`` columns are whole groups.
    """
    if "scales" not in module:
        weight = module["weight"]
        stays = weight[:kept] if axis == 0 else weight[:, :kept]
        module.weight = mx.concatenate([stays, new.astype(weight.dtype)], axis=axis)
        return
    bits, group = module.bits, module.group_size
    dtype = module["scales"].dtype
    given = new.astype(dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16)
    packed = mx.quantize(given, group_size=group, bits=bits, mode=getattr(module, "mode", "affine"))
    for name, more in zip(("weight", "scales", "biases"), packed, strict=False):
        here = module[name]
        count = kept if axis == 0 else kept * bits // 32 if name == "weight" else kept // group
        module[name] = mx.concatenate([here[:count] if axis == 0 else here[:, :count], more], axis=axis)
    if "bias" in module and axis == 0:
        module.bias = mx.concatenate([module.bias[:kept], mx.zeros((new.shape[0],), dtype=module.bias.dtype)])
