"""Make a steering permanent: a model of its own, a LoRA, or a control vector, each held against the live steering."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np

from lens_tui import demo
from lens_tui.lens.architecture.baking import BakePlan, bake_into, plan_bake
from lens_tui.lens.architecture.weights import float32_bytes
from lens_tui.lens.decode.sampling import kl, log_softmax
from lens_tui.lens.measure.effects import LOSS_TEXTS
from lens_tui.lens.model import LensModel
from lens_tui.records import Add, Intervention, LensError, ModelInfo
from lens_tui.records.info import Dequantize
from lens_tui.records.machine import free_memory
from lens_tui.records.model_folder import read_config
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import load_vectors

from .bake_files import check_free, lora_arrays, write_control_vector, write_lora, write_model, write_peft

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
