"""Transcoders of several layers: trained one after another, and what is lost with all of them in the MLPs' place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lens_tui.lens.read.activations import Windowing, text_activations
from lens_tui.records import LensError
from lens_tui.records.disk import write_text
from lens_tui.records.errors import AskedToStop
from lens_tui.records.remote import is_remote, without_password, written_to
from lens_tui.records.training import Splice, TrainConfig, TrainProgress, TrainReport
from lens_tui.sae.formats.writers import write_circuit_tracer
from lens_tui.sae.load_sae import load_sae

from .train import MLP, mlp_of, read_texts, train_on

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.activations import TextActivations
    from lens_tui.sae.load_sae import SAE

    from .train import Texts


@dataclass(frozen=True, slots=True)
class ReplacedLoss:
    """A model's cross-entropy (nats a predicted token) over one text with transcoders in the place of its MLPs.

    ``layers`` are those that have a transcoder. ``clean`` is the model as it is; ``each`` has one loss a layer, with
    that layer's MLP alone replaced; ``every`` is with all of them replaced at once, where each reads what the model
    makes of the ones before; ``zero`` with all these MLPs' outputs zero, ``mean`` with each at its mean over the
    replaced positions of the model as it is. Special positions keep the MLP. ``n_tokens`` are the positions that are
    replaced.
    """

    layers: tuple[int, ...]
    clean: float
    each: tuple[float, ...]
    every: float
    zero: float
    mean: float
    n_tokens: int

    @property
    def recovered(self) -> float | None:
        """``(zero - every) / (zero - clean)``, 1.0 when nothing is lost; ``None`` where zeroing costs nothing."""
        gap = self.zero - self.clean
        return (self.zero - self.every) / gap if gap else None


@dataclass(frozen=True, slots=True)
class TranscoderSet:
    """What training several layers made: a report a layer, and the losses once all are there."""

    reports: tuple[TrainReport, ...]
    loss: ReplacedLoss | None = None

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its end; the same call continues."""
        return self.loss is None


def replaced_loss(
    model: LensModel,
    transcoders: Sequence[SAE],
    text: str | Path,
    *,
    tokens: int = 65_536,
    context: int = 256,
    rows: int = 32,
    held_out: int = 0,
    text_key: str = "text",
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> ReplacedLoss:
    """The model's loss with transcoders in the place of its MLPs: each alone, and all at once.

    Args:
        model: the model.
        transcoders: at most one a layer, each of an MLP's input and output.
        text: a folder, a ``.txt`` or a ``.jsonl`` file.
        tokens: measure on at least so many positions, if the text has them.
        context: tokens in a window.
        rows: windows in a forward pass.
        held_out: measure on every ``held_out``-th document of each file alone, those that training with this setting
            holds out (0: on the whole text).
        text_key: in JSONL, the key that holds the text.
        seed: of the order of the windows.
        should_stop: asked between two forwards; ``AskedToStop`` is raised when it says so.

    Raises:
        LensError: for two of one layer, what is not a transcoder of an MLP, and a text that cannot be read.
    """
    by_layer = {_layer(one): one for one in transcoders}
    if len(by_layer) < len(transcoders) or not by_layer:
        raise LensError("Losses are measured with one transcoder a layer.", "Give each layer's once.")

    def pause() -> None:
        if should_stop():
            raise AskedToStop

    whole, held = text_activations(
        model, text, [mlp_of(at)[1] for at in by_layer], held_out=held_out, text_key=text_key, max_tokens=20 * tokens,
        windowing=Windowing(context=context, rows=rows, seed=seed), pause=pause,
    )  # fmt: skip
    return _losses(held or whole, by_layer, tokens)


def _losses(source: TextActivations, by_layer: dict[int, SAE], tokens: int) -> ReplacedLoss:
    blocks = seen = 0
    while seen < tokens and blocks < source.n_blocks:
        seen += source.counted(blocks)
        blocks += 1
    layers = tuple(sorted(by_layer))
    put = [(*mlp_of(at), _given(by_layer[at])) for at in layers]
    zeros = [(*mlp_of(at), _always(mx.zeros((by_layer[at].d_out,)))) for at in layers]
    means = _mean_outputs(source, layers, blocks)
    mean = [(*mlp_of(at), _always(means[at])) for at in layers]
    each = tuple(source.loss_with_all([one], blocks) for one in put)
    clean, every, zero, level = (source.loss_with_all(some, blocks) for some in ([], put, zeros, mean))
    return ReplacedLoss(layers, clean, each, every, zero, level, seen)


def _mean_outputs(source: TextActivations, layers: Sequence[int], blocks: int) -> dict[int, mx.array]:
    """The mean output of each layer's MLP over the positions of some blocks that are not special, ``(d_out,)``."""
    sums: dict[int, Any] = dict.fromkeys(layers, 0.0)
    count = 0
    for block in source.at([mlp_of(at)[1] for at in layers]).blocks(0, blocks):
        kept = mx.array(np.flatnonzero(~block.special).astype(np.int32))
        totals = {at: mx.sum(mx.take(block.values[mlp_of(at)[1]], kept, axis=0).astype(mx.float32), 0) for at in layers}
        mx.eval(totals)
        sums = {at: sums[at] + np.asarray(totals[at], np.float64) for at in layers}
        count += kept.size
    return {at: mx.array((sums[at] / max(count, 1)).astype(np.float32)) for at in layers}


def _given(one: SAE) -> Splice:
    return lambda x: one.reconstruct(x).output


def _always(row: mx.array) -> Splice:
    return lambda x: mx.broadcast_to(row, (x.shape[0], row.shape[0]))


def _layer(one: SAE) -> int:
    info = one.info
    if (info.site, info.site_out) != MLP or info.layer < 0 or info.layer != info.layer_out:
        raise LensError(
            f"{info.name or 'An SAE'} does not read an MLP's input and give its output.",
            "Give transcoders of one layer each.",
        )
    return info.layer


def train_transcoders(
    model: LensModel,
    text: str | Path,
    out: str | Path,
    config: TrainConfig,
    layers: Sequence[int],
    *,
    progress: Callable[[int, TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    context: int = 256,
    rows: int = 32,
    held_out: int = 40,
    max_tokens: int | None = None,
    text_key: str = "text",
    model_name: str = "",
    checkpoint_seconds: float = 60.0,
) -> TranscoderSet:
    """Train a transcoder for each of some layers, one after another, and measure all of them together.

    The text is tokenised once. Layer N's is in ``out/layer_N``, all of them as circuit-tracer reads a set in
    ``out/circuit_tracer``, and the losses in ``out/replaced_loss.json``. Stopped or killed, the same call continues:
    layers that are done are not trained again.

    Args:
        model: the model.
        text: a folder, a ``.txt`` or a ``.jsonl`` file; an address of fsspec (``s3://...``) as ``str``.
        out: the folder of the set, or its address.
        config: the transcoders' size, and how they are trained.
        layers: decoder blocks, from 0; negative ones count from the end.
        progress: ``progress(layer, how far its training is)``.
        should_stop: asked between two steps and two forwards.
        context, rows, held_out, max_tokens, text_key, model_name, checkpoint_seconds: of
            :func:`lens_tui.tasks.train.train_sae`.

    Raises:
        LensError: as of :func:`lens_tui.tasks.train.train_sae`.
    """
    config = replace(config, kind="transcoder")
    where = sorted({model.registry.decoder.index(layer) for layer in layers})
    places = [place for layer in where for place in mlp_of(layer)]
    texts = read_texts(
        model, text, places, config, context=context, rows=rows, held_out=held_out, max_tokens=max_tokens,
        text_key=text_key, model_name=model_name, should_stop=should_stop, progress=_of_layer(progress, where[0]),
    )  # fmt: skip
    hooks: dict[str, Any] = {"should_stop": should_stop, "checkpoint_seconds": checkpoint_seconds}
    with written_to(out) as folder:
        made = _trained(model, texts, folder, config, where, progress, **hooks)
    if not is_remote(out):
        return made
    named = (replace(report, folder=f"{without_password(out)}/layer_{report.layer}") for report in made.reports)
    return replace(made, reports=tuple(named))


def _trained(
    model: LensModel,
    texts: Texts,
    folder: Path,
    config: TrainConfig,
    layers: Sequence[int],
    progress: Callable[[int, TrainProgress], None] | None,
    **hooks: Any,
) -> TranscoderSet:
    """The transcoders of some layers, trained one after another, and what the model loses by all of them."""
    reports = []
    for layer in layers:
        report = train_on(
            model, texts, folder / f"layer_{layer}", config, *mlp_of(layer),
            progress=_of_layer(progress, layer), **hooks,
        )  # fmt: skip
        reports.append(report)
        if report.stopped:
            return TranscoderSet(tuple(reports))
        _into_set(folder, layer)
    try:
        return TranscoderSet(tuple(reports), _set_loss(folder, layers, texts[1] or texts[0], config.evaluation_tokens))
    except AskedToStop:
        return TranscoderSet(tuple(reports))


def _set_loss(folder: Path, layers: Sequence[int], source: TextActivations, tokens: int) -> ReplacedLoss:
    """The losses of a set that is trained, written beside it."""
    loss = _losses(source, {layer: load_sae(folder / f"layer_{layer}") for layer in layers}, tokens)
    said = {**asdict(loss), "recovered": loss.recovered}
    write_text(folder / "replaced_loss.json", json.dumps(said, indent=1) + "\n")
    return loss


def _of_layer(
    progress: Callable[[int, TrainProgress], None] | None, layer: int
) -> Callable[[TrainProgress], None] | None:
    return None if progress is None else lambda report: progress(layer, report)


def _into_set(folder: Path, layer: int) -> None:
    """Copy a layer's file into the folder of the set, beside the one configuration."""
    home = folder / "circuit_tracer"
    home.mkdir(parents=True, exist_ok=True)
    for name in (f"layer_{layer}.safetensors", "config.yaml"):
        own = folder / f"layer_{layer}" / "circuit_tracer" / name
        shutil.copyfile(own, home / f".{name}.part")
        (home / f".{name}.part").replace(home / name)


def write_circuit_tracer_set(transcoders: Sequence[SAE], out: str | Path) -> Path:
    """Write transcoders of single layers as circuit-tracer reads a set: float32, whatever they are stored in.

    Args:
        transcoders: at most one a layer, each of an MLP's input and output; circuit-tracer asks for every layer from 0.
        out: the folder of the set: ``config.yaml`` and a ``layer_N.safetensors`` each.

    Returns:
        the folder.

    Raises:
        LensError: for what is not a transcoder of an MLP, and for one that is more than ReLU or JumpReLU features of
            its plain input.
    """
    folder = Path(out)
    for one in transcoders:
        write_circuit_tracer(folder, _plain_weights(one), layer=_layer(one), model_name=one.info.model_name)
    return folder


def _plain_weights(one: SAE) -> dict[str, mx.array]:
    """The five arrays of a layout, and the skip connection. Raises :class:`LensError` where they would not say all."""
    how = one.definition
    scaled = (how.normalize, how.input_scale, how.output_scale) != ("none", 1.0, 1.0)
    if how.activation not in ("relu", "jumprelu") or scaled or how.subtract_b_dec or how.scale_by_norm:
        raise LensError(
            f"{one.info.name} does more than ReLU or JumpReLU features of its plain input.",
            "circuit-tracer's layout cannot say that.",
        )
    every = np.arange(one.d_sae)
    small = dict(one.tensors)
    small.setdefault("threshold", mx.zeros((one.d_sae,)))
    return {"w_enc": one.encoder_columns(every), "w_dec": one.effects(every), **small}
