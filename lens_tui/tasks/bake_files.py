"""Baked steering as files: a model's folder, a LoRA of mlx-lm's or PEFT's, a control vector of llama.cpp's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.lens.architecture.baking import BakePlan
from lens_tui.lens.architecture.weights import Part, block_writer, embeddings, matrix
from lens_tui.lens.model import LensModel
from lens_tui.records import FloatArray, LensError, SteeringVector
from lens_tui.records.disk import write_text
from lens_tui.records.model_folder import SIDECARS
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line
from lens_tui.records.steering_vector import Origin
from lens_tui.records.vector_formats import save_vectors

_OWN = ("config.json", "adapter_config.json", "model.safetensors.index.json")


def check_free(target: Path, form: str) -> None:
    """Raise :class:`LensError` for a place where something is, and for a control vector without its suffix."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise LensError(f"{short_path(target)} is there already.", "Name a folder or file that is not.")
    if form == "gguf" and target.suffix.lower() != ".gguf":
        raise LensError(f"{short_path(target)} is to be a control vector.", "Give its file a name that ends in .gguf.")


def write_model(
    model: Module, source: Path, config: Mapping[str, Any], target: Path, *, name: str, where: Sequence[str]
) -> None:
    """Write a model's folder, whole or not at all.

    Args:
        model: The model, its weights lazy: they are computed file by file.
        source: The folder that it was read from, whose tokenizer goes along.
        config: Its ``config.json``.
        target: The folder.
        name: What the model was called.
        where: What was changed, in words.
    """
    from mlx_lm import utils

    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        for file in (file for pattern in SIDECARS for file in source.glob(pattern)):
            if file.is_file() and file.name not in _OWN:
                copy = partial / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
        save: Any = utils
        save.save_model(partial, model)
        save.save_config(dict(config), partial / "config.json", keep_vision_config=True)
        write_text(partial / "README.md", _card(name, where))
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LensError(
            f"{short_path(target)} could not be written: {reason}.", "Check the place and its space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _card(name: str, where: Sequence[str]) -> str:
    lines = "\n".join(f"- {one_line(text, 300)}" for text in where)
    called = one_line(name, 120)
    return (
        f"# {called}, steered\n\nThe weights of {called} with a steering made part of them (mlx-lens-tui bake):\n\n"
        f"{lines}\n\nThe licence is that of {called}.\n"
    )


# -- adapters --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LowRankFiles:
    """A LoRA by module path: ``pairs`` (a (in, rank), b (rank, out)), ``biases`` (out,), tables (rows, rank)."""

    rank: int
    pairs: Mapping[str, tuple[mx.array, mx.array]]
    biases: Mapping[str, mx.array]
    tables: Mapping[str, tuple[mx.array, mx.array]]
    where: tuple[str, ...]


def lora_arrays(lens: LensModel, plan: BakePlan, *, peft: bool) -> LowRankFiles:
    """A plan as low-rank changes.

    Args:
        lens: The model.
        plan: What is to be baked.
        peft: For PEFT, whose LoRA may have a bias.

    Raises:
        LensError: Where the form has no place for it.
    """
    if plan.adds and plan.directions:
        raise LensError("A LoRA holds what is added or what is taken out, not both.", "Bake a model (--to mlx).")
    if plan.adds and not peft:
        raise LensError("mlx-lm's LoRA changes matrices, and what is added is a bias.", "Use --to peft, mlx or gguf.")
    return _biases(lens, plan) if plan.adds else _projections(lens, plan, peft=peft)


def _biases(lens: LensModel, plan: BakePlan) -> LowRankFiles:
    pairs, biases = {}, {}
    for (layer, part), vector in plan.adds.items():
        if part is None:
            raise LensError("A LoRA has no bias at the embedding.", "Bake a model (--to mlx).")
        writer = block_writer(lens.model, lens.registry.sites, layer, part)
        rows, width = matrix(writer.module).shape
        pairs[writer.path] = mx.zeros((width, 1)), mx.zeros((1, rows))
        biases[writer.path] = mx.array(vector)
    said = tuple(f"a bias of {path} (lora_bias)" for path in biases)
    return LowRankFiles(1, pairs, biases, {}, said)


def _projections(lens: LensModel, plan: BakePlan, *, peft: bool) -> LowRankFiles:
    decoder = lens.registry.decoder
    basis, change = _change(plan.directions)
    pairs: dict[str, tuple[mx.array, mx.array]] = {}
    for layer in range(lens.n_layers):
        for part in get_args(Part):
            writer = block_writer(lens.model, lens.registry.sites, layer, part)
            if "bias" in writer.module:
                raise LensError(f"{writer.path} has a bias, which a LoRA cannot project.", "Bake a model (--to mlx).")
            pairs[writer.path] = matrix(writer.module).T @ change.T @ basis, basis.T
    tables = embeddings(lens.model, decoder)
    tied = not hasattr(lens.model, "lm_head")
    if tied and not peft:
        raise LensError(
            "mlx-lm's LoRA changes an embedding and the unembedding tied to it alike.", "Use --to peft or mlx."
        )
    rows = {table.path: (matrix(table.module) @ change.T @ basis, basis.T) for table in tables}
    said = (
        f"taken out of the embedding and {len(pairs)} matrices that write to the stream (rank {len(plan.directions)})"
    )
    return LowRankFiles(basis.shape[1], pairs, {}, rows, (said,))


def _change(directions: Sequence[FloatArray]) -> tuple[mx.array, mx.array]:
    """The change P - I (d_model, d_model) of projections one after the other, and a basis of what it reaches."""
    rows = np.array(directions, np.float64)
    projected = np.eye(rows.shape[1])
    for row in rows:
        projected -= np.outer(row, row @ projected)
    basis = np.linalg.qr(rows.T)[0]
    return mx.array(basis.astype(np.float32)), mx.array((projected - np.eye(rows.shape[1])).astype(np.float32))


def write_lora(arrays: LowRankFiles, lens: LensModel, target: Path) -> None:
    """mlx-lm's adapter: ``adapters.safetensors`` with its ``adapter_config.json``."""
    start = f"{lens.registry.decoder.path}."
    keys = {path.removeprefix(start).split(".", 1)[1] for path in arrays.pairs}
    weights: dict[str, mx.array] = {}
    for path, (a, b) in {**arrays.pairs, **arrays.tables}.items():
        weights[f"{path}.lora_a"], weights[f"{path}.lora_b"] = mx.contiguous(a), mx.contiguous(b)
    parameters = {"rank": arrays.rank, "scale": 1.0, "dropout": 0.0, "keys": sorted([*keys, *arrays.tables])}
    config = {"fine_tune_type": "lora", "num_layers": lens.n_layers, "lora_parameters": parameters}
    _write_adapter(target, "adapters.safetensors", weights, config)


def write_peft(arrays: LowRankFiles, model: str, target: Path) -> None:
    """PEFT's adapter. Raises :class:`LensError` where mlx-lm calls a model's modules otherwise than transformers."""
    paths = [*arrays.pairs, *arrays.tables]
    if strange := next((path for path in paths if not path.startswith(("model.layers.", "model.embed_tokens"))), None):
        raise LensError(
            f"mlx-lm and transformers name {one_line(strange, 60)} differently, and PEFT goes by names.",
            "Bake a model (--to mlx).",
        )
    weights: dict[str, mx.array] = {}
    for path, (a, b) in arrays.pairs.items():
        start = f"base_model.model.{path}"
        weights[f"{start}.lora_A.weight"] = mx.contiguous(a.T)
        weights[f"{start}.lora_B.weight"] = mx.contiguous(b.T)
        if path in arrays.biases:
            weights[f"{start}.lora_B.bias"] = arrays.biases[path]
    for path, (a, b) in arrays.tables.items():
        weights[f"base_model.model.{path}.lora_embedding_A"] = mx.contiguous(a.T)
        weights[f"base_model.model.{path}.lora_embedding_B"] = mx.contiguous(b.T)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": arrays.rank,
        "lora_alpha": arrays.rank,
        "lora_dropout": 0.0,
        "target_modules": paths,
        "bias": "none",
        "lora_bias": bool(arrays.biases),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _write_adapter(target, "adapter_model.safetensors", weights, config)


def _write_adapter(target: Path, name: str, weights: dict[str, mx.array], config: Mapping[str, Any]) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(target / name), weights, metadata={"format": "pt"})
    except (OSError, RuntimeError) as error:
        raise LensError(f"{short_path(target)} could not be written.", "Check the place and its space.") from error
    write_text(target / "adapter_config.json", json.dumps(config, indent=1) + "\n")


# -- a control vector ------------------------------------------------------


def write_control_vector(plan: BakePlan, architecture: str, target: Path) -> list[str]:
    """llama.cpp's control vector: one direction a block, at the length that is added with a scale of 1."""
    if plan.directions:
        raise LensError("A control vector adds, and cannot take a direction out.", "Bake a model (--to mlx).")
    vectors = []
    for (layer, part), vector in sorted(plan.adds.items(), key=lambda item: item[0][0]):
        if part != "mlp":
            raise LensError("A control vector acts on the outputs of blocks alone.", "Bake a model (--to mlx).")
        if layer == 0:
            raise LensError("llama.cpp takes no control vector for layer 0.", "Bake a model (--to mlx).")
        origin = Origin("given", {"model_hint": one_line(architecture, 60)})
        vectors.append(SteeringVector.of(f"baked L{layer}", vector, layer, origin=origin))
    save_vectors(vectors, target)
    return [f"direction.{vector.layer}, for the output of block {vector.layer}" for vector in vectors]
