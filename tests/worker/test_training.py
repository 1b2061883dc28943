"""From a text to an SAE in one call, on the bundled model's tokenizer and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, load_sae
from lens_tui.records.training import TrainConfig, TrainProgress
from lens_tui.tasks.train import train_sae
from tests.lens import tiny


def test_a_text_becomes_an_sae_that_fits_its_layer(tmp_path: Path) -> None:
    """A model's embeddings are few directions: an SAE learns them, and fits there better than one layer on."""
    model = LensModel.from_model(tiny.llama(vocab=8192, layers=2), tiny.tokenizer(), name="tiny")
    words = [
        "the",
        "cat",
        "saw",
        "a",
        "dog",
        "and",
        "the",
        "dog",
        "ran",
        "to",
        "the",
        "sea",
        "where",
        "a",
        "ship",
        "lay",
    ]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 40)) for _ in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"body": line}) for line in lines))
    config = TrainConfig(
        width=64,
        k=2,
        tokens=64 * 150,
        batch=64,
        learning_rate=5e-3,
        pool_tokens=640,
        calibration_tokens=256,
        evaluation_tokens=128,
    )
    seen: list[TrainProgress] = []
    report = train_sae(
        model,
        tmp_path / "text.jsonl",
        tmp_path / "sae",
        config,
        layer=0,
        site="resid_pre",
        context=16,
        rows=8,
        held_out=10,
        text_key="body",
        progress=seen.append,
    )
    assert report.final is not None
    assert report.final.fvu < 0.1
    assert report.final.loss_recovered == pytest.approx(1, abs=0.2)
    assert (report.layer, report.site, report.model_name) == (0, "resid_pre", "tiny")
    assert seen[0].stage == "read"
    sae = load_sae(tmp_path / "sae")
    assert (sae.info.layer, sae.info.site, sae.info.bos) == (0, "resid_pre", False)
    ids = mx.array([model.tokens.encode(lines[0])])
    errors = []
    for layer in (0, 1):
        with model.capture(layer, site="resid_pre") as captured:
            model.forward(ids)
        x = np.asarray(captured[layer][0, 1:])
        x_hat = np.asarray(sae.decode(sae.encode(mx.array(x))))
        errors.append(np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum())
    assert errors[0] < 0.1
    assert errors[1] > 3 * errors[0]
    assert json.loads((tmp_path / "sae" / "config.json").read_text())["evaluation_held_out"] is True
