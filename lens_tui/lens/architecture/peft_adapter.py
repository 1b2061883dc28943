"""Adapters of PEFT (Hu et al. 2021, 2106.09685), read into mlx-lm's models: LoRA as safetensors, beside the weights.

A module W of the model becomes ``W x + scale (B (A x) + b)``; ``scale`` is alpha over the rank, or over its root
(rsLoRA, Kalajdzievski 2023, 2312.03732), and b is there with ``lora_bias``. Nothing is unpickled and no code that
comes with an adapter is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_unflatten

from lens_tui.records import LensError
from lens_tui.records.read_files import read_json, regular_size, short_path
from lens_tui.records.sanitise import one_line

from .taps import named
from .weights import matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<path>.+?)\.(?:"
    r"lora_(?P<part>[AB])(?:\.(?P<name>\w+))?\.(?P<leaf>weight|bias)|lora_embedding_(?P<table>[AB])(?:\.\w+)?|(?P<base>base_layer\.weight))$"
)
_MAX_CONFIG = 1 << 20
_ROUNDING = 0.2
_UNLIKE = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config")
"""Keys of ``adapter_config.json`` that make an adapter something else than a LoRA, where they are set."""
_FROM = "Save it from PEFT with safe_serialization=True."


class LowRank(Module):
    """A linear layer with a LoRA beside it: ``lora_a`` (in, rank), ``lora_b`` (rank, out), ``lora_bias`` (out,)."""

    def __init__(self, linear: Module, a: mx.array, b: mx.array, bias: mx.array | None, scale: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear, self.lora_a, self.lora_b = linear, a, b
        if bias is not None:
            self.lora_bias = bias
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        """The layer's output (..., out) of inputs (..., in)."""
        base: Any = self.linear
        y: mx.array = base(x)
        more = (x @ self.lora_a) @ self.lora_b
        if "lora_bias" in self:
            more = more + self.lora_bias
        return y + (self.scale * more).astype(y.dtype)


class LowRankTable(Module):
    """An embedding with a LoRA beside it: ``lora_a`` (rows, rank), ``lora_b`` (rank, d_model).

    An unembedding that is tied to it stays as it was, as in PEFT.
    """

    def __init__(self, embedding: Module, a: mx.array, b: mx.array, scale: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding, self.lora_a, self.lora_b = embedding, a, b
        self.scale = scale

    def __call__(self, ids: mx.array) -> mx.array:
        """The rows (..., d_model) of token ids."""
        base: Any = self.embedding
        y: mx.array = base(ids)
        return y + (self.scale * (self.lora_a[ids] @ self.lora_b)).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits of a model whose unembedding is this table, (..., rows)."""
        base: Any = self.embedding
        logits: mx.array = base.as_linear(x)
        return logits


@dataclass
class _Pair:
    """What the file has for one module."""

    a: mx.array | None = None
    b: mx.array | None = None
    bias: mx.array | None = None
    table: bool = False
    base: mx.array | None = None


def is_peft(folder: Path) -> bool:
    """Whether a folder's ``adapter_config.json`` is PEFT's, and not mlx-lm's. Raises :class:`LensError` without one."""
    config = _config(folder)
    return "peft_type" in config or "lora_alpha" in config


def put_adapter(model: Module, folder: Path) -> int:
    """Put a PEFT adapter beside a model's weights; returns how many modules it changes.

    Args:
        model: The model, unhooked.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` are.

    Raises:
        LensError: For an adapter of another kind, and for one that was made for another model.
    """
    config = _config(folder)
    _check_kind(folder, config)
    here = dict(named(model))
    found: list[tuple[str, Module]] = []
    for path, pair in _pairs(folder).items():
        place = next((name for name in _names(path) if name in here), None)
        if place is None:
            raise LensError(
                f"The adapter {short_path(folder)} changes {one_line(path, 80)}, which this model does not have.",
                "Use the model that it was made for: base_model_name_or_path in its adapter_config.json.",
            )
        found.append((place, _beside(folder, here[place], path, pair, config)))
    whole: Any = model
    whole.update_modules(tree_unflatten(found))
    return len(found)


def merge(model: Module) -> bool:
    """Make adapters part of the weights where these are float32 matrices, which loses nothing; whether all are."""
    done: list[tuple[str, Module]] = []
    left = False
    for path, module in named(model):
        if not isinstance(module, LowRank | LowRankTable):
            continue
        base: Any = module.linear if isinstance(module, LowRank) else None
        if base is None or "scales" in base or base.weight.dtype != mx.float32:
            left = True  # a tied unembedding reads the table too, so a table stays as it is
            continue
        base.weight = base.weight + module.scale * (module.lora_a @ module.lora_b).T
        if "lora_bias" in module:
            more = module.scale * module.lora_bias
            base.bias = base.bias + more if "bias" in base else more
        done.append((path, base))
    whole: Any = model
    if done:
        whole.update_modules(tree_unflatten(done))
    return not left


def _config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise LensError(f"There is no folder {short_path(folder)}.", "Give the folder that holds adapter_config.json.")
    file = folder / CONFIG
    if not file.exists():
        raise LensError(
            f"{short_path(folder)} is not an adapter: it has no {CONFIG}.", "Give the folder that holds it."
        )
    config = read_json(file, _MAX_CONFIG)
    if not isinstance(config, dict):
        raise LensError(f"{short_path(file)} is not a JSON object.", "Fetch the adapter again.")
    return config


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA":
        raise LensError(f"The adapter {short_path(folder)} is {one_line(kind, 30)}, and only LoRA is read.")
    for key in _UNLIKE:
        if config.get(key):
            raise LensError(f"The adapter {short_path(folder)} sets {key}, and only plain LoRA is read.")
    if not (folder / WEIGHTS).exists():
        other = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), "")
        has = f"only {other}, which is a pickle" if other else "no weights"
        raise LensError(f"The adapter {short_path(folder)} has {has}: {WEIGHTS} is read.", _FROM if other else "")


def _pairs(folder: Path) -> dict[str, _Pair]:
    """The tensors of the file by module."""
    file = folder / WEIGHTS
    regular_size(file)
    try:
        tensors: Any = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise LensError(f"{short_path(file)} is not a safetensors file, or is cut short.", "Fetch it again.") from error
    found: dict[str, _Pair] = {}
    for key, value in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise LensError(
                f"{short_path(file)} holds {one_line(key, 80)}, which is no part of a LoRA.", "Only LoRA is read."
            )
        pair = found.setdefault(match["path"], _Pair())
        if match["table"]:
            pair.table = True
        if match["base"]:  # PEFT saves an embedding beside its LoRA
            pair.base = value
        elif match["leaf"] == "bias":
            pair.bias = value
        elif (match["part"] or match["table"]) == "A":
            pair.a = value
        else:
            pair.b = value
    if not found:
        raise LensError(f"{short_path(file)} holds no tensors.", "Fetch it again.")
    return found


def _names(path: str) -> Iterator[str]:
    """What mlx-lm may call a module of transformers' model."""
    bare = path.removeprefix("model.")
    yield path
    yield f"model.{path}"
    yield bare
    for start in ("language_model.", "model.language_model.", "language_model.model."):
        yield start + bare
        yield start + path
    if bare.startswith("language_model."):
        inner = bare.removeprefix("language_model.")
        yield f"language_model.model.{inner}"
        yield f"model.{inner}"
    if path.startswith("transformer."):  # GPT-2
        yield "model." + path.removeprefix("transformer.")


def _beside(folder: Path, module: Any, path: str, pair: _Pair, config: Mapping[str, Any]) -> Module:
    where = f"{one_line(path, 80)} in the adapter {short_path(folder)}"
    if pair.a is None or pair.b is None:
        raise LensError(f"{where} has only one of its two matrices.", "Fetch the adapter again.")
    if "weight" not in module or not hasattr(module, "__call__"):  # noqa: B004 (the class has it, or not)
        raise LensError(f"{where} is for a module that is neither linear nor an embedding.")
    if pair.base is not None and not _alike(matrix(module), pair.base.astype(mx.float32)):
        raise LensError(f"{where} comes with a matrix of its own, and only plain LoRA is read.")
    a, b = pair.a.astype(mx.float32).T, pair.b.astype(mx.float32).T
    out, width = _shape(module)
    wanted = (out, width) if pair.table else (width, out)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or (a.shape[0], b.shape[1]) != wanted:
        raise LensError(
            f"{where} has shapes {pair.a.shape} and {pair.b.shape}, and the model's matrix is ({out}, {width}).",
            "Use the model that it was made for.",
        )
    scale = _scale(folder, path, a.shape[1], config)
    if pair.table:
        return LowRankTable(module, a, b, scale)
    bias = None if pair.bias is None else pair.bias.astype(mx.float32)
    return LowRank(module, a, b, bias, scale)


def _alike(mine: mx.array, given: mx.array) -> bool:
    """Whether two matrices are the same but for rounding and quantisation."""
    if mine.shape != given.shape:
        return False
    apart = float(np.array(mx.linalg.norm(mine - given) / mx.linalg.norm(given)))
    return apart < _ROUNDING


def _shape(module: Any) -> tuple[int, int]:
    rows, columns = module["weight"].shape[:2]
    return int(rows), int(columns * 32 // module.bits if "scales" in module else columns)


def _scale(folder: Path, path: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha", rank)
    patterns = config.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        # PEFT takes these as regular expressions; here they are names, whole or their last parts.
        if path == pattern or path.endswith(f".{str(pattern).lstrip('^')}"):
            alpha = value
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise LensError(f"The adapter {short_path(folder)} has no number as its lora_alpha.", "Fetch it again.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
