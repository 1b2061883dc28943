"""Make a steering permanent: a model of its own, a LoRA, or a control vector, each held against the live steering.

The files are a model's folder, a LoRA of mlx-lm's or PEFT's, a control vector of llama.cpp's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui import demo
from lens_tui.lens.architecture.baking import BakePlan, bake_into, plan_bake
from lens_tui.lens.architecture.weights import Part, block_writer, embeddings, float32_bytes, matrix
from lens_tui.lens.decode.sampling import kl, log_softmax
from lens_tui.lens.measure.effects import LOSS_TEXTS
from lens_tui.lens.model import LensModel
from lens_tui.records import Add, FloatArray, Intervention, LensError, ModelInfo, SteeringVector
from lens_tui.records.disk import write_text
from lens_tui.records.info import Dequantize
from lens_tui.records.machine import free_memory
from lens_tui.records.model_folder import SIDECARS, read_config
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line
from lens_tui.records.steering_vector import Origin
from lens_tui.records.vector_formats import load_vectors, save_vectors

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


BakeForm = Literal["mlx", "lora", "peft", "gguf"]
FORMS: tuple[BakeForm, ...] = get_args(BakeForm)
CLOSE = 0.05
"""Nats by which a log-probability may differ in float32 between the weights and the live steering; more is refused."""
_COMPARED, _LENGTH = 4, 64  # texts, and tokens of each, on which equality is looked at
_TEXTS = 16
Record = Callable[[LensModel], Sequence[Intervention]]


@dataclass(frozen=True, slots=True)
class Baked:
    """A steering that became weights, and what was measured of it.

    ``where``: which weights, in words. ``everywhere``: a projection at one layer became one at all. ``max_delta``: the
    largest difference of any log-probability from the live steering, in nats, with both in ``precision``. The rest is
    of what was written, as it was written, on ``texts`` texts of ``tokens`` scored tokens that no steering was made
    for: mean loss of the plain model, under the live steering as it was asked for and of what was baked; mean
    ``D(plain || baked)`` and ``D(live || baked)``. All in nats a token.
    """

    model: str
    path: str
    form: BakeForm
    where: tuple[str, ...]
    everywhere: bool
    max_delta: float
    precision: str
    loss_plain: float
    loss_live: float
    loss_baked: float
    kl_plain: float
    kl_live: float
    texts: int
    tokens: int
    quantization: str


def bake(
    model: str,
    records: Sequence[Intervention] | Record,
    out: str | Path,
    *,
    form: BakeForm = "mlx",
    texts: Sequence[Any] | None = None,
    dequantize: Dequantize = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> Baked:
    """Write a steering as weights that need nothing of this library, and measure them against it.

    What is added at a block becomes a bias, or where an architecture has none, neurons that give a constant; a
    projection is taken out of every matrix that writes to the stream (weight orthogonalisation, Arditi et al. 2024,
    2406.11717); what depends on the stream, on positions or on a gate is refused.

    Args:
        model: A folder, a hub id or ``"demo"``.
        records: The steering, or what makes it of the loaded model.
        out: The folder to make, or the file of a control vector. It may not be there yet.
        form: ``mlx``: a whole model, quantised as it was; ``lora``: mlx-lm's adapter (projections alone); ``peft``:
            PEFT's (projections, or what is added); ``gguf``: llama.cpp's control vector (what is added to outputs of
            blocks).
        texts: What loss and KL are measured on: texts or token ids. By default 16 of ``LOSS_TEXTS``.
        dequantize: How the model's weights are held where loss and KL are measured.
        progress: Called with what is done next.

    Returns:
        What was written and measured.

    Raises:
        LensError: For a steering that no weights are, and where the weights turn out not to equal it.
    """
    if form not in FORMS:
        raise LensError(f"There is no form {one_line(str(form), 30)!r} of baked models.", f"Use {', '.join(FORMS)}.")
    target = expanded(out)
    check_free(target, form)
    whole, precision = _exact(model)
    asked = tuple(records(whole) if callable(records) else records)
    plan = plan_bake(whole, asked)
    read = _ids(whole, LOSS_TEXTS[:_TEXTS] if texts is None else texts)
    few = [ids[:_LENGTH] for ids in read[:_COMPARED]]
    progress("equality")
    with whole.intervene(*plan.live):
        live = _log_probs(whole, few)
    source = demo.model_path() if model == demo.NAME else expanded(whole.info.path)
    where, delta = _WRITERS[form](_Order(model, source, plan, whole, target, few, live))
    del whole
    progress("measuring")
    found = _measured(model, asked, target, form, read, dequantize)
    return Baked(model, str(target), form, tuple(where), plan.everywhere, delta, precision, **found)


def _exact(model: str, adapter: str = "") -> tuple[LensModel, str]:
    """The model in float32 where memory allows, else as in its files; and which of the two."""
    lazy = LensModel(model, dequantize="never", lazy=True)
    need, dtype = float32_bytes(lazy.model), lazy.info.dtype
    del lazy
    exact = 2 * need < free_memory()
    return LensModel(model, dequantize="always" if exact else "never", adapter=adapter), "float32" if exact else dtype


def _ids(lens: LensModel, texts: Sequence[Any]) -> list[tuple[int, ...]]:
    if isinstance(texts, str | bytes) or not len(texts):
        raise LensError("Loss and KL need a list of texts, at least one.", "Give texts=[...].")
    found = [tuple(lens.tokens.prompt(text, raw=True).ids) for text in texts]
    read = [ids for ids in found if len(ids) > 1]
    if not read:
        raise LensError("None of the texts has a token to predict.", "Give longer texts.")
    return read


def _log_probs(lens: LensModel, rows: Sequence[Sequence[int]]) -> list[mx.array]:
    """Log-probabilities (tokens, vocabulary) of each text, evaluated."""
    return [_one(lens, row) for row in rows]


def _one(lens: LensModel, row: Sequence[int]) -> mx.array:
    logits: mx.array = log_softmax(lens.forward(list(row)))[0]
    mx.eval(logits)
    return logits


Written = tuple[Sequence[str], float]
"""Which weights were changed, in words, and the largest difference of a log-probability."""


@dataclass(frozen=True, eq=False)
class _Order:
    """What is to be written: the model by name, folder and as it is loaded, the live log-probabilities of few texts."""

    model: str
    source: Path
    plan: BakePlan
    whole: LensModel
    target: Path
    few: Sequence[Sequence[int]]
    live: Sequence[mx.array]

    def apart(self, baked: LensModel) -> float:
        """The largest difference of a log-probability from the live steering; refused where they are not the same."""
        pairs = zip(self.live, _log_probs(baked, self.few), strict=True)
        delta = max(float(np.array(mx.abs(one - other).max())) for one, other in pairs)
        if not delta <= CLOSE:
            raise LensError(
                f"The weights do not equal the live steering on this architecture (log-probabilities differ by"
                f" {delta:.2g} nats), so nothing is kept.",
                "Steer it live.",
            )
        return delta


def _as_model(order: _Order) -> Written:
    config, plan, whole = read_config(order.source), order.plan, order.whole
    if config.get("quantization_config") and not config.get("quantization"):
        raise LensError(
            "This model is quantised in another format than MLX's, in which nothing can be written.",
            "Convert it first: mlx_lm.convert --hf-path MODEL --mlx-path FOLDER.",
        )
    bake_into(whole, plan, config)
    delta = order.apart(LensModel.from_model(whole.model, whole.tokenizer))
    packed = LensModel(order.model, dequantize="never", lazy=True)
    done = bake_into(packed, plan, config)
    changed, name = {**config, **done.config}, packed.info.name
    write_model(packed.model, order.source, changed, order.target, name=name, where=done.where)
    return done.where, delta


def _as_lora(order: _Order) -> Written:
    arrays = lora_arrays(order.whole, order.plan, peft=False)
    write_lora(arrays, order.whole, order.target)
    return _adapted(order, arrays.where)


def _as_peft(order: _Order) -> Written:
    arrays = lora_arrays(order.whole, order.plan, peft=True)
    write_peft(arrays, order.model, order.target)
    return _adapted(order, arrays.where)


def _adapted(order: _Order, where: Sequence[str]) -> Written:
    try:
        return where, order.apart(_exact(order.model, str(order.target))[0])
    except LensError:
        shutil.rmtree(order.target, ignore_errors=True)
        raise


def _as_control_vector(order: _Order) -> Written:
    whole = order.whole
    where = write_control_vector(order.plan, whole.info.architecture, order.target)
    with whole.intervene(*_read_back(whole, order.target)):
        return where, order.apart(whole)


_WRITERS: dict[BakeForm, Callable[[_Order], Written]] = {
    "mlx": _as_model,
    "lora": _as_lora,
    "peft": _as_peft,
    "gguf": _as_control_vector,
}


def _read_back(lens: LensModel, file: Path) -> list[Intervention]:
    """A control vector as it will act: each direction at its own length."""
    found = load_vectors(file, d_model=lens.d_model, n_layers=lens.n_layers)
    return [Add(id=f"l{one.layer}", layer=one.layer, vector=one, scale=one.norm) for one in found]


def _measured(
    model: str,
    asked: Sequence[Intervention],
    target: Path,
    form: BakeForm,
    read: Sequence[tuple[int, ...]],
    dequantize: Dequantize,
) -> dict[str, Any]:
    """Loss and KL of what was written, as it was written."""
    lens = LensModel(model, dequantize=dequantize)
    other = (
        lens
        if form == "gguf"
        else LensModel(str(target), dequantize=dequantize)
        if form == "mlx"
        else LensModel(model, dequantize=dequantize, adapter=str(target))
    )
    vectors = _read_back(lens, target) if form == "gguf" else []
    sums, count = np.zeros(5), 0
    for ids in read:
        plain = _one(lens, ids)[:-1]
        with lens.intervene(*asked):
            live = _one(lens, ids)[:-1]
        if vectors:
            with lens.intervene(*vectors):
                baked = _one(lens, ids)[:-1]
        else:
            baked = _one(other, ids)[:-1]
        wanted = mx.array(ids[1:])[:, None]
        losses = [-mx.take_along_axis(one, wanted, axis=-1).sum() for one in (plain, live, baked)]
        parts = [*losses, kl(plain, baked).sum(), kl(live, baked).sum()]
        sums += np.array([float(np.array(part)) for part in parts])
        count += len(ids) - 1
    if not np.isfinite(sums).all():
        raise LensError("What was baked gives numbers that are not finite.", "Bake a smaller scale.")
    means = (sums / count).tolist()
    names = ("loss_plain", "loss_live", "loss_baked", "kl_plain", "kl_live")
    info: ModelInfo = other.info
    return {
        **dict(zip(names, means, strict=True)),
        "texts": len(read),
        "tokens": count,
        "quantization": info.quantization,
    }
