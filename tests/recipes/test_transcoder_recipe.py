from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file
from typer.testing import CliRunner

from lens_tui import demo
from recipes import transcoders
from recipes.__main__ import app
from recipes.export import export
from recipes.tokens import load_tokens
from recipes.train import Run


def test_the_shipped_transcoders_are_what_the_settings_make() -> None:
    for layer, path in zip(transcoders.LAYERS, demo.transcoder_paths(), strict=True):
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config = transcoders.SETTINGS
        assert path.name == transcoders.folder_of(layer)
        assert facts["hf_hook_point_in"] == f"model.layers.{layer}.mlp.input"
        assert facts["hf_hook_point_out"] == f"model.layers.{layer}.mlp.output"
        assert (facts["type"], facts["affine_connection"], facts["model_name"]) == ("transcoder", False, demo.NAME)
        made = (facts["width"], facts["target_l0"], facts["trained_as"])
        assert made == (config.width, config.k, config.architecture)
        assert (facts["training_steps"], facts["training_tokens"]) == (config.steps, config.tokens)


def test_the_command_trains_a_set_and_ships_what_it_measured(recipe: SimpleNamespace, tmp_path: Path) -> None:
    trained, held = load_tokens(recipe.root / "tokens", "train"), load_tokens(recipe.root / "tokens", "held_out")
    Run(tmp_path / "lm", recipe.settings, trained, held, say=lambda _: None).advance(2)
    model = export(tmp_path / "lm", recipe.settings.shape, recipe.root / "tokenizer", tmp_path / "bf16")
    changes = {"width": 48, "k": 4, "tokens": 640, "batch": 64, "pool_tokens": 512, "calibration_tokens": 256}
    (tmp_path / "changes.json").write_text(json.dumps({**changes, "evaluation_tokens": 128}))
    asked = ["transcoders", "--model", str(model), "--corpus", str(recipe.root / "corpus"), str(tmp_path / "out")]
    asked += ["--layers", "0,1", "--settings", str(tmp_path / "changes.json"), "--context", "24", "--rows", "4"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    loss = json.loads((tmp_path / "out" / "run" / "replaced_loss.json").read_text())
    assert f"all 2 MLPs replaced {loss['every']:.4f}  at their means {loss['mean']:.4f}" in done.output
    for layer in (0, 1):
        folder = tmp_path / "out" / "ship" / transcoders.folder_of(layer)
        facts = json.loads((folder / "config.json").read_text())
        assert f"layer {layer}  FVU {facts['fvu']:.4f}  L0 {facts['measured_l0']:.2f}" in done.output
        whole = load_file(tmp_path / "out" / "run" / f"layer_{layer}" / "params.safetensors")
        shipped = load_file(folder / "params.safetensors")
        assert shipped["w_enc"].dtype == shipped["w_dec"].dtype == np.int8
        off = np.abs(shipped["w_dec"] * shipped["w_dec_scale"][:, None] - whole["w_dec"])
        assert (off <= shipped["w_dec_scale"][:, None] / 2 + 1e-7).all()


def test_what_ships_is_measured_as_it_is(recipe: SimpleNamespace, tmp_path: Path) -> None:
    asked = ["measure-transcoders", "--corpus", str(recipe.root / "corpus"), str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, [*asked, "--tokens", "64", "--context", "64", "--rows", "1"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert all(0 < one["fvu"] < 1 for one in found["layers"].values())  # made-up words, but its own model
    loss = found["replaced_loss"]
    assert loss["mean"] > loss["every"] > loss["clean"] - 0.5
    assert loss["layers"] == list(transcoders.LAYERS)
