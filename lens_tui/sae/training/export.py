"""What a finished run leaves behind: the SAE in two layouts, with its figures, and the report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records.activations import SourceFacts
from lens_tui.records.atomic import write_text
from lens_tui.records.training import TrainReport
from lens_tui.sae.formats.writers import write_gemma_scope, write_saelens

from .parameters import Normalizer, Parameters, scalar

NEVER_FIRED = -10.0
"""``log10`` density given to latents that did not fire, as SAELens does (``log10(1e-10)``)."""


def write_outputs(
    folder: Path,
    folded: Parameters,
    report: TrainReport,
    density: NDArray[np.float64],
    norm: Normalizer,
    trained_on: SourceFacts,
    measured_on: SourceFacts,
) -> None:
    """Write the SAE and the report into ``folder``; ``density (f,)`` is each latent's firing rate."""
    facts = training_facts(report, norm, trained_on, measured_on)
    place: dict[str, Any] = {"layer": report.layer, "site": report.site, "model_name": report.model_name}
    l0 = report.final.l0 if report.final else float(report.config.k)
    log_density = np.where(density > 0, np.log10(np.maximum(density, 1e-10)), NEVER_FIRED).astype(np.float32)
    write_saelens(
        folder / "sae_lens",
        folded,
        **place,
        bos=trained_on.bos,
        context=trained_on.context,
        log_density=mx.array(log_density),
        facts=facts,
    )
    write_text(folder / "training" / "report.json", json.dumps(asdict(report), indent=1) + "\n")
    write_gemma_scope(folder, folded, **place, l0=round(l0, 3), facts=facts)


def training_facts(
    report: TrainReport, norm: Normalizer, trained_on: SourceFacts, measured_on: SourceFacts
) -> dict[str, Any]:
    """What config.json says beyond Gemma Scope's keys. All plain JSON; shares are between 0 and 1.

    ``bos_included`` is whether activations at BOS were learnt from (never: special positions are left out),
    ``bos_prepended`` whether the model saw a BOS before each window.
    """
    final = report.final
    figures: dict[str, Any] = {}
    if final is not None:
        figures = {
            "fvu": final.fvu,
            "measured_l0": final.l0,
            "loss_clean": final.loss_clean,
            "loss_spliced": final.loss_spliced,
            "loss_zero_ablated": final.loss_zero,
            "loss_recovered": final.loss_recovered,
            "dead_share": final.dead,
            "dense_share": final.dense,
            "evaluation_tokens": final.n_tokens,
            "evaluation_held_out": measured_on != trained_on,
        }
    config = report.config
    return {
        **figures,
        "bos_included": report.bos_included,
        "bos_prepended": trained_on.bos,
        "skipped_positions": trained_on.skipped,
        "context": trained_on.context,
        "corpus_sha256": trained_on.corpus_sha256,
        "trained_as": config.architecture,
        "target_l0": config.k,
        "training_tokens": report.tokens,
        "training_steps": report.step,
        "matryoshka_prefixes": list(config.matryoshka),
        "normalization_folded": config.normalize,
        "normalization_scale": scalar(norm.scale),
        "seed": config.seed,
    }
