"""An index or a training that does not fit into memory is refused before anything of its text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens import room
from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig
from lens_tui.sae.index.index_settings import IndexSettings
from lens_tui.sae.index.tally import Tally, bytes_per_feature
from lens_tui.sae.load_sae import load_sae
from lens_tui.tasks import index
from lens_tui.tasks.index import index_text
from lens_tui.tasks.train import train_sae
from tests.folders import sae_folder
from tests.lens import tiny

CONFIG = TrainConfig(width=256, batch=64, tokens=64, pool_tokens=128, calibration_tokens=32)


def of(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    monkeypatch.setattr(room, "SMALL", 1)
    monkeypatch.setattr(room, "memory_left", lambda: left)


def nbytes(held: Any) -> int:
    """All arrays of an object and of those it is made of."""
    if isinstance(held, np.ndarray):
        return held.nbytes
    return sum(nbytes(part) for part in vars(held).values()) if hasattr(held, "__dict__") else 0


@pytest.mark.parametrize("settings", [IndexSettings(), IndexSettings(top_k=3, sample_per_bin=0)])
def test_a_tally_takes_what_is_said(settings: IndexSettings) -> None:
    assert nbytes(Tally(100, settings)) == 100 * bytes_per_feature(settings)


def test_an_index_is_refused_by_its_features_and_by_its_forward(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lens = LensModel.from_model(tiny.llama())
    sae = load_sae(sae_folder(tmp_path / "sae", d_model=64))
    counted, read = sae.d_sae * bytes_per_feature(IndexSettings()), 4 * 32 * sae.d_model * 4
    for free, left, says in (
        (counted - 1, read, r"An index of 64 features would take .*0\.0 GB can be had.*top_k"),
        (counted, read - 1, r"Activations of 128 tokens at a time would take .*Lower rows"),
        (counted, read, "no file or folder"),
    ):
        of(monkeypatch, left)
        monkeypatch.setattr(index, "free_memory", lambda free=free: free)
        with pytest.raises(LensError, match=says):
            index_text(lens, [sae], tmp_path / "none.txt", tmp_path, rows=4, context=32)


def test_a_training_is_refused_by_its_weights_its_pool_and_a_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lens = LensModel.from_model(tiny.llama())
    weights = 2 * 64 * 256 + 256  # encoder, decoder, bias
    need = 4 * (3 * weights + (128 + 32) * 64 + 64 * 256)
    of(monkeypatch, need - 1)
    with pytest.raises(LensError, match=r"Training 256 features of width 64 in batches of 64 .*0\.0 GB can be had"):
        train_sae(lens, tmp_path / "none.txt", tmp_path, CONFIG, layer=2)
    of(monkeypatch, need)
    with pytest.raises(LensError, match=r"no file or folder"):
        train_sae(lens, tmp_path / "none.txt", tmp_path, CONFIG, layer=2)
