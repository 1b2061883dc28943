"""The bundled model's transcoders: all its MLPs through the product's own trainer, and the copies that are shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from lens_tui import demo
from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress
from lens_tui.tasks.train import mlp_of
from lens_tui.tasks.transcoders import ReplacedLoss, TranscoderSet, replaced_loss, train_transcoders
from recipes.bundled import open_model
from recipes.corpus import HELD_OUT_EVERY
from recipes.measure_saes import held_out_activations, weights
from recipes.saes import ship, unpacked

LAYERS = tuple(range(8))

SETTINGS = TrainConfig(
    kind="transcoder",
    width=2048,
    k=32,
    architecture="batchtopk",
    tokens=5000 * 8192,
    batch=8192,
    learning_rate=8e-3,
    warmup=0.02,
    decay=0.4,
    dead_after=1_000_000,
    aux_slots=512,
    pool_tokens=1 << 20,
    calibration_tokens=1 << 18,
    evaluation_tokens=1 << 18,
    compute="bfloat16",
)
"""What all layers have in common."""


def settings(**changes: Any) -> TrainConfig:
    """The shipped settings, with changes."""
    return replace(SETTINGS, **changes)


def folder_of(layer: int) -> str:
    """The name of a shipped transcoder's folder."""
    return f"layer_{layer}_transcoder_2k"


def train(
    corpus: Path,
    config: TrainConfig,
    out: Path,
    *,
    model: Path | None = None,
    layers: Sequence[int] = LAYERS,
    context: int = 512,
    rows: int = 128,
    progress: Callable[[int, TrainProgress], None] | None = None,
) -> TranscoderSet:
    """Train a transcoder of each layer's MLP into ``out/run`` and write what ships to ``out/ship``.

    The model is the bundled one (or an exported one), its weights turned into bfloat16. ``corpus`` is the folder or
    archive that it was trained on. Run again, it goes on where it stopped.
    """
    made = train_transcoders(
        open_model(model, mx.bfloat16),
        unpacked(corpus, out),
        out / "run",
        config,
        layers,
        context=context,
        rows=rows,
        held_out=HELD_OUT_EVERY,
        model_name=demo.NAME,
        progress=progress,
    )
    if not made.stopped:
        for report in made.reports:
            ship(Path(report.folder), out / "ship" / folder_of(report.layer))
    return made


def measure_shipped(
    corpus: Path, tokens: int, *, model: Path | None = None, context: int = 512, rows: int = 64
) -> tuple[dict[int, Evaluation], ReplacedLoss]:
    """The figures of each bundled transcoder by layer, and the losses of all, over ``tokens`` held-out positions."""
    from lens_tui import load_sae
    from lens_tui.sae.training.trainer import measure

    lens = open_model(model)
    folders = demo.transcoder_paths()
    places = [place for layer in LAYERS for place in mlp_of(layer)]
    held = held_out_activations(lens, corpus, places, tokens, context=context, rows=rows)
    each = {}
    for layer, folder in zip(LAYERS, folders, strict=True):
        place, place_out = mlp_of(layer)
        each[layer], _ = measure(
            weights(folder), held.at([place, place_out]), place, tokens, SETTINGS.steps, place_out=place_out
        )
    saes = [load_sae(folder) for folder in folders]
    loss = replaced_loss(lens, saes, corpus, tokens=tokens, context=context, rows=rows, held_out=HELD_OUT_EVERY)
    return each, loss


def loss_figures(loss: ReplacedLoss) -> str:
    """One line of the losses in nats a token."""
    all_of = f"all {len(loss.layers)} MLPs replaced {loss.every:.4f}"
    return f"as it is {loss.clean:.4f}  {all_of}  at their means {loss.mean:.4f}  zero {loss.zero:.4f}"
