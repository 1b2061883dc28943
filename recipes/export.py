"""The finished model as a folder that `mlx_lm.load` reads: weights, config, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_model

from recipes.model import Shape, build, cast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(run: Path, shape: Shape, tokenizer: Path, out: Path, dtype: str = "bfloat16") -> Path:
    """Write a run's master weights in ``dtype`` with its config and tokenizer; returns the folder."""
    saved: Any = mx.load(str(run / "state.safetensors"))
    prefix = "parameters/"
    weights = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    model = build(shape)
    model.load_weights(list(cast(weights, getattr(mx, dtype)).items()))
    _write(model, shape.config() | {"torch_dtype": dtype}, tokenizer, out)
    return out


def quantise(folder: Path, out: Path, bits: int = 8, group: int = 64, dtype: str = "float32") -> Path:
    """Write a quantised copy of an exported model.

    Args:
        folder: an exported model, not quantised.
        out: where the copy goes.
        bits: per weight.
        group: weights that share a scale and an offset.
        dtype: of scales, offsets and gains. It is also the type that the model computes in: with "float32" the
            residual stream is float32, a steering vector arrives whole, and a CPU runs several times faster
            than with bfloat16 scales.
    """
    model, config = load_model(folder)
    if "quantization" in config:
        raise ValueError(f"{folder} is quantised already; give the bf16 export")
    model.update(cast(model.parameters(), getattr(mx, dtype)))
    quantize(model, group_size=group, bits=bits)
    facts = {"group_size": group, "bits": bits}
    _write(model, config | {"quantization": facts, "torch_dtype": dtype}, folder, out)
    return out


def _write(model: Any, config: dict[str, Any], tokenizer: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    flat: Any = tree_flatten(model.parameters())
    weights: dict[str, mx.array] = dict(flat)
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)


def load_float32(folder: Path) -> Any:
    """An exported model computing in float32, as the reference for smaller types."""
    model, _ = load_model(folder)
    weights: Any = tree_flatten(model.parameters())
    floating = [(name, value.astype(mx.float32)) for name, value in weights if value.dtype != mx.uint32]
    model.update(tree_unflatten(floating + [(name, value) for name, value in weights if value.dtype == mx.uint32]))
    return model
