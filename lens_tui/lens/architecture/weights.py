"""A loaded model's weights: how they are held, which write to the residual stream, what is known of the model.

MLX's products of quantised and of 16-bit weights on the CPU are its own and some 30 times slower than OpenBLAS is in
float32. So there, if memory allows, weights are turned into float32 as a model is loaded: exactly, for what a
quantised weight stands for is a product and a sum of two numbers that float32 holds. What such a model computes is
what the quantised one does, with less rounding on the way.

Those that write to the stream are the embedding, and the last matrix of every attention and MLP. They are found by the
sites that :mod:`..hooks.points` proved: the module whose output is ``attn_out`` or ``mlp_out``, and in it the
projection that gives this output. A block that norms what its attention or MLP gave (Gemma 2 and 3) has no matrix that
writes to the stream, which is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten, tree_unflatten

from lens_tui import blas
from lens_tui.records import LensError, ModelInfo, machine
from lens_tui.records.info import Dequantize
from lens_tui.records.sanitise import sanitise

from ..hooks.points import PROJECTION_NAMES, SiteMap
from ..tokens import Tokens
from .find import Decoder
from .taps import named, original_class
from .unembed import EMBED_NAMES

_OF_PACKED = ("scales", "biases", "global_scale")
_PIECE = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Held:
    """How a model's weights are held: its files' quantisation, and where they are not as in the files, how and why.

    ``adapter`` is the folder of the LoRA in them.
    """

    quantization: str = ""
    says: str = ""
    adapter: str = ""

    def noted(self, info: ModelInfo) -> ModelInfo:
        """The model's record with this in it."""
        return replace(
            info, quantization=self.quantization or info.quantization, weights=self.says, adapter=self.adapter
        )


def check_dequantize(how: str) -> Dequantize:
    """``how`` if it is one of the words; raises :class:`LensError` if not."""
    known: dict[str, Dequantize] = {word: word for word in get_args(Dequantize)}
    if how not in known:
        raise LensError(f"dequantize cannot be {how!r}.", "Use 'auto', 'never' or 'always'.")
    return known[how]


def dequantize(model: Module, how: Dequantize) -> Held:
    """Turn quantised and 16-bit weights into float32, lazily: they are computed when first used or evaluated.

    ``auto`` does it where MLX runs on a CPU with a fast BLAS and the weights take at most half of the memory that is
    free (:func:`lens_tui.blas.in_float32`), and on a GPU where MLX has no product for them as they are packed. Modules
    of a kind that is not known stay as they are.

    Raises:
        LensError: For ``never`` where MLX cannot compute them packed.
    """
    before = quantization(model)
    if not (before or _has_half(model)):
        return Held(before)
    if how != "always" and mx.default_device().type != mx.DeviceType.cpu:
        return _as_the_device_can(model, how, before)
    size, free = float32_bytes(model), machine.free_memory()
    if not blas.in_float32(how, size, free):
        little = how == "auto" and blas.state().fast
        room = f"{size / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
        return Held(before, f"as in the files; in float32, which is faster, they would take {room}" if little else "")
    return _in_float32(model, before)


def _in_float32(model: Module, before: str, why: str = "") -> Held:
    left = _replace(model)
    model.set_dtype(mx.float32)
    _lay_turned(model)
    rest = f"; {left} of them as in the files" if left else ""
    return Held(before, f"float32, {'dequantised' if before else 'from 16 bits'} on loading{rest}{why}")


def _as_the_device_can(model: Module, how: Dequantize, before: str) -> Held:
    """On a GPU weights stay packed where MLX has a product for them; in CUDA it has none for some that Metal has."""
    kind = next(filter(None, (_without_product(module) for module in _one_of_each_kind(model))), "")
    if not kind:
        return Held(before)
    if how == "never":
        raise LensError(f"MLX cannot multiply {kind} on this device.", "Load it with dequantize='auto'.")
    return _in_float32(model, before, f": MLX cannot multiply {kind} on this device")


def _one_of_each_kind(model: Module) -> Iterator[Any]:
    """A quantised linear layer of each kind that the model has."""
    seen: set[object] = set()
    for _, module in named(model):
        if type(module) is QuantizedLinear:
            linear: Any = module
            kind = linear.bits, linear.group_size, getattr(linear, "mode", "affine"), linear["scales"].dtype
            if kind not in seen:
                seen.add(kind)
                yield linear


def _without_product(linear: Any) -> str:
    """A layer's kind, in words, if MLX fails at products of few or of many rows with its weights; else nothing."""
    width = linear["scales"].shape[-1] * linear.group_size
    mode = getattr(linear, "mode", "affine")
    dtype = linear["scales"].dtype if mode == "affine" else mx.bfloat16
    try:
        for rows in (1, 64, 512):  # each has a kernel of its own
            mx.eval(linear(mx.zeros((1, rows, width), dtype=dtype)))
    except RuntimeError:
        return f"{linear.bits}-bit weights in groups of {linear.group_size} with {str(dtype).rpartition('.')[2]}"
    return ""


def evaluate(model: Module) -> Iterator[tuple[int, int]]:
    """Compute the weights piece by piece; yields the bytes done and the bytes in all, at first with nothing done.

    What a piece is made of is let go as it comes, so that packed and plain weights are never there together.
    """
    arrays = _weights(model)
    total, done, waiting = sum(array.nbytes for array in arrays), 0, 0
    piece: list[mx.array] = []
    yield 0, total
    for array in arrays:
        piece.append(array)
        waiting += array.nbytes
        if waiting >= _PIECE:
            yield (done := _computed(piece, done + waiting)), total
            piece, waiting = [], 0
    yield _computed(piece, done + waiting), total


def _computed(piece: list[mx.array], done: int) -> int:
    mx.eval(piece)
    mx.clear_cache()
    return done


def float32_bytes(model: Module) -> int:
    """What the weights would take in float32."""
    total = 0
    for _, module in named(model):
        packed = _is_quantized(module)
        for name, value in module.items():
            if not isinstance(value, mx.array) or name.startswith("_") or (packed and name in _OF_PACKED):
                continue
            total += 4 * (value.size * 32 // _get(module, "bits") if packed and name == "weight" else value.size)
    return total


def _is_quantized(module: Any) -> bool:
    return isinstance(getattr(module, "bits", None), int) and "scales" in module


def _has_half(model: Module) -> bool:
    return any(array.dtype in (mx.bfloat16, mx.float16) and array.ndim > 1 for array in _weights(model))


def _lay_turned(model: Module) -> None:
    """Lay the weights of linear layers with their inputs, not their outputs, in rows: the products of few rows, as in
    decoding, are then a third faster, and no product is slower. Shapes and values stay.
    """
    for _, module in named(model):
        if type(module) is Linear:
            module.weight = mx.contiguous(module.weight.T).T


def _replace(model: Module) -> int:
    """Put plain modules in place of quantised ones; returns how many are of a kind that is not known."""
    found: list[tuple[str, Module]] = []
    left = 0
    replaced: dict[int, Module] = {}
    for path, module in named(model):
        if not _is_quantized(module):
            continue
        new = replaced.get(id(module)) or _plain(module)
        if new is None:
            left += 1
            continue
        replaced[id(module)] = new
        found.append((path, new))
    if found:
        whole: Any = model
        whole.update_modules(tree_unflatten(found))
    return left


def _plain(module: Any) -> Module | None:
    """The module with its weight in float32, ``None`` for a kind that is not known."""
    from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds: dict[Any, Any] = {
        QuantizedLinear: Linear,
        QuantizedEmbedding: Embedding,
        QuantizedSwitchLinear: SwitchLinear,
        QuantizedMultiLinear: MultiLinear,
    }
    kind = kinds.get(type(module))
    if kind is None or _get(module, "global_scale") is not None:
        return None
    # Made without its constructor, which would draw random weights only to drop them.
    base: Any = Module
    plain: Any = kind.__new__(kind)
    base.__init__(plain)
    plain.weight = _weight(module)
    if "bias" in module:
        plain.bias = module.bias
    return plain  # type: ignore[no-any-return]


def _weight(module: Any) -> mx.array:
    mode = getattr(module, "mode", "affine")
    scales, biases = module["scales"], module.get("biases")
    if mode == "affine":  # the others have scales of a kind of their own
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(
        module["weight"],
        scales,
        biases,
        group_size=module.group_size,
        bits=module.bits,
        mode=mode,
        dtype=mx.float32,
    )


def _weights(model: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(model.parameters())
    return [array for _, array in leaves]


def _get(module: Any, name: str) -> Any:
    return getattr(module, name, None)


def check_device(model: Module) -> None:
    """Refuse a mixture of experts that MLX cannot compute on this device: on a CPU it takes float32 alone."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    experts = [module for _, module in named(model) if original_class(module).__name__ == "SwitchLinear"]
    for dtype in {module.weight.dtype for module in experts} - {mx.float32}:
        one = mx.zeros((1, 1, 1), dtype=dtype)
        try:
            mx.eval(mx.gather_mm(one, one, rhs_indices=mx.array([[0]])))
        except RuntimeError:
            raise LensError(
                f"This mixture of experts is in {str(dtype).rpartition('.')[2]}, which MLX cannot compute on the CPU.",
                "Load it with dequantize='always', which holds its weights in float32, or quantise it.",
            ) from None


def describe(model: Module, decoder: Decoder, tokens: Tokens, *, name: str, path: str) -> ModelInfo:
    """The record of a model: parameters are counted as they were before quantisation.

    Args:
        model: The model.
        decoder: Its blocks.
        tokens: Its tokenizer.
        name: What it is called.
        path: Where it was read from.
    """
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
        takes_chat=tokens.takes_chat,
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
