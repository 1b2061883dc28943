from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from lens_tui import LensModel, demo
from recipes import saes
from recipes.__main__ import app
from recipes.export import export
from recipes.measure_saes import weights
from recipes.tokens import load_tokens
from recipes.train import Run


def test_the_shipped_saes_are_what_the_settings_make() -> None:
    for depth in saes.DEPTHS.values():
        facts = json.loads((demo.sae_paths()[depth.folder] / "config.json").read_text(encoding="utf-8"))
        config = saes.settings(depth)
        assert facts["hf_hook_point_in"] == f"model.layers.{depth.layer}.output"
        assert facts["model_name"] == saes.NAME == demo.NAME
        assert (facts["width"], facts["target_l0"], facts["trained_as"]) == (depth.width, config.k, config.architecture)
        assert facts["training_steps"] == config.steps == depth.steps
        assert facts["training_tokens"] == config.tokens


def test_an_archive_is_unpacked_once(recipe: SimpleNamespace, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "corpus.tar.xz", "w:xz") as archive:
        for path in sorted((recipe.root / "corpus").iterdir()):
            archive.add(path, path.name)
    folder = saes.unpacked(tmp_path / "corpus.tar.xz", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["code.txt", "farm.txt", "ship.txt"]
    (folder / "farm.txt").write_text("kept")
    assert (saes.unpacked(tmp_path / "corpus.tar.xz", tmp_path) / "farm.txt").read_text() == "kept"
    assert saes.unpacked(recipe.root / "corpus", tmp_path) == recipe.root / "corpus"


def test_the_command_trains_and_ships_what_it_measured(
    recipe: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, held = load_tokens(recipe.root / "tokens", "train"), load_tokens(recipe.root / "tokens", "held_out")
    Run(tmp_path / "lm", recipe.settings, trained, held, say=lambda _: None).advance(2)
    model = export(tmp_path / "lm", recipe.settings.shape, recipe.root / "tokenizer", tmp_path / "bf16")
    monkeypatch.setitem(saes.DEPTHS, "late", saes.Depth(0, 48, 0))
    changes = {"k": 4, "batch": 64, "pool_tokens": 512, "calibration_tokens": 256, "evaluation_tokens": 128}
    (tmp_path / "changes.json").write_text(json.dumps(changes))
    asked = ["sae", "--model", str(model), "--corpus", str(recipe.root / "corpus"), str(tmp_path / "out")]
    asked += ["--depth", "late", "--tokens", "640", "--settings", str(tmp_path / "changes.json")]
    done = CliRunner().invoke(app, [*asked, "--context", "24", "--rows", "4"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out" / "ship" / "layer_0_width_0k_l0_medium"
    facts = json.loads((folder / "config.json").read_text())
    assert f"FVU {facts['fvu']:.4f}  L0 {facts['measured_l0']:.2f}" in done.output
    whole = load_file(tmp_path / "out" / "run" / "params.safetensors")
    shipped = load_file(folder / "params.safetensors")
    assert shipped["w_enc"].dtype == shipped["w_dec"].dtype == np.int8
    assert np.array_equal(shipped["threshold"], whole["threshold"])
    assert shipped["w_enc"].shape == (LensModel(str(model)).d_model, 48)
    for name, scales in (("w_enc", shipped["w_enc_scale"]), ("w_dec", shipped["w_dec_scale"][:, None])):
        assert (np.abs(shipped[name] * scales - whole[name]) <= scales / 2 + 1e-7).all()


def test_what_ships_is_measured_as_it_is(
    recipe: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "layer_2_width_4k_l0_medium"
    monkeypatch.setattr(saes, "DEPTHS", {"early": saes.DEPTHS["early"]})
    asked = ["measure-saes", "--corpus", str(recipe.root / "corpus"), str(tmp_path / "out.json"), "--tokens", "64"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())[name]
    assert 0 < found["fvu"] < 1  # made-up words, but the SAE's own model and layer
    assert found["loss_zero"] > found["loss_spliced"] > found["loss_clean"] - 0.5
    stored = load_file(demo.sae_paths()[name] / "params.safetensors")
    made = weights(demo.sae_paths()[name])
    assert np.array_equal(np.array(made["w_enc"]), stored["w_enc"] * stored["w_enc_scale"])


def test_a_depth_that_is_not_there(tmp_path: Path) -> None:
    asked = ["sae", "--model", str(tmp_path), "--corpus", str(tmp_path), str(tmp_path / "out"), "--depth", "top"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "early, middle, late" in done.output
