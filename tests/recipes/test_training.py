"""Training: the optimiser's arithmetic, resuming, and what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from typer.testing import CliRunner

from recipes import optimiser
from recipes.__main__ import app
from recipes.evaluate import score, windows_of
from recipes.export import export, load_float32, quantise
from recipes.precision import compare
from recipes.tokens import load_tokens
from recipes.train import Run, inference, merge_settings, new_state, rate_factor, read_settings


def _run(recipe: SimpleNamespace, folder: Path, **changes: Any) -> Run:
    trained, held = load_tokens(recipe.root / "tokens", "train"), load_tokens(recipe.root / "tokens", "held_out")
    return Run(folder, replace(recipe.settings, **changes), trained, held, say=lambda _: None, score_every=20)


@pytest.fixture(scope="session")
def trained(recipe: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of 25 steps."""
    mx.disable_compile()
    folder: Path = tmp_path_factory.mktemp("unbroken")
    _run(recipe, folder).advance(25)
    return folder


def test_training_learns(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "curve.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert abs(losses[1] - np.log(300)) < 0.2
    assert losses[25] < losses[1] - 1.5
    assert [row["step"] for row in rows if "held_out_sample" in row] == [20]


def test_a_stopped_run_resumes_to_the_same_weights(recipe: SimpleNamespace, trained: Path, tmp_path: Path) -> None:
    run = _run(recipe, tmp_path)
    run.advance(9)
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "loss": 0.0}) + "\n")  # written after the last save, then killed
    run.advance(25)
    one: Any = mx.load(str(trained / "state.safetensors"))
    other: Any = mx.load(str(tmp_path / "state.safetensors"))
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(np.array(one[name]), np.array(other[name]), err_msg=name)
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert 12 not in steps


def test_settings_survive_the_run_folder(recipe: SimpleNamespace, trained: Path) -> None:
    assert read_settings(trained) == recipe.settings
    changed = merge_settings(recipe.settings, {"epochs": 3, "shape": {"layers": 4}})
    assert changed.epochs == 3
    assert changed.shape == replace(recipe.settings.shape, layers=4)
    with pytest.raises(TypeError):
        merge_settings(None, {"no_such_setting": 1})


def test_rate_rises_holds_and_falls_to_zero() -> None:
    assert rate_factor(0.0, 0.1, 0.5) < 0.02
    assert rate_factor(0.1, 0.1, 0.5) == rate_factor(0.49, 0.1, 0.5) == 1.0
    assert rate_factor(0.75, 0.1, 0.5) == pytest.approx(0.5)
    assert rate_factor(1.0, 0.1, 0.5) == 0.0


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_orthogonalise_keeps_directions_and_evens_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    result = np.array(optimiser.orthogonalise(mx.array(matrix[None].astype(np.float32))))[0]
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    found = np.diag(left.T @ result @ right.T)  # in the matrix's own singular basis the result is diagonal
    np.testing.assert_allclose(left.T @ result @ right.T, np.diag(found), atol=2e-3)
    assert found.min() > 0.3
    assert found.max() < 1.3


def test_muon_step_is_the_written_formula() -> None:
    rng = np.random.default_rng(1)
    weight, gradient, momentum = (rng.normal(size=(6, 3)).astype(np.float32) for _ in range(3))
    moved, kept = optimiser.muon_step(
        {"w": mx.array(weight)}, {"w": mx.array(gradient)}, {"w": mx.array(momentum)}, mx.array(0.1), decay=0.5
    )
    new = 0.95 * momentum + 0.05 * gradient
    x = (0.95 * new + 0.05 * gradient).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    np.testing.assert_allclose(np.array(kept["w"]), new, rtol=1e-5)
    expected = weight * (1 - 0.1 * 0.5) - 0.1 * np.sqrt(2) * x.T
    np.testing.assert_allclose(np.array(moved["w"]), expected, atol=1e-4)


def test_matrices_of_one_shape_do_not_mix() -> None:
    rng = np.random.default_rng(2)
    names = ["a", "b", "c"]
    parts = {name: [mx.array(rng.normal(size=(5, 4)).astype(np.float32)) for _ in range(3)] for name in names}
    rate = mx.array(0.1)
    weights, gradients, momentum = ({name: parts[name][i] for name in names} for i in range(3))
    together, _ = optimiser.muon_step(weights, gradients, momentum, rate, 0.1)
    for name in names:
        weight, gradient, past = ({name: part} for part in parts[name])
        alone, _ = optimiser.muon_step(weight, gradient, past, rate, 0.1)
        np.testing.assert_allclose(np.array(together[name]), np.array(alone[name]), atol=1e-6)


def test_dropout_is_there_in_training_and_gone_at_inference(recipe: SimpleNamespace) -> None:
    state = new_state(replace(recipe.settings, dropout=0.5))
    ids = mx.array([[0, 5, 9, 30]])
    mx.random.seed(0)
    first, second = state.model(ids), state.model(ids)
    assert not mx.array_equal(first, second)
    model = inference(state, recipe.settings)
    assert mx.array_equal(model(ids), model(ids))


def test_export_loads_in_mlx_lm_and_is_the_trained_model(
    recipe: SimpleNamespace, trained: Path, tmp_path: Path
) -> None:
    out = export(trained, recipe.settings.shape, recipe.root / "tokenizer", tmp_path / "model", "float32")
    loaded: Any = load(str(out))
    model, tokenizer = loaded
    assert tokenizer.encode("cow barn")[0] == tokenizer.eos_token_id == 0
    run = _run(recipe, trained)
    inner = inference(run.advance(25), recipe.settings)
    ids = mx.array([tokenizer.encode("cow barn milk sail")])
    np.testing.assert_allclose(np.array(model(ids)), np.array(inner(ids)), atol=1e-5)


def test_quantised_export_computes_in_float32_close_to_the_original(
    recipe: SimpleNamespace, trained: Path, tmp_path: Path
) -> None:
    plain = export(trained, recipe.settings.shape, recipe.root / "tokenizer", tmp_path / "bf16")
    small = quantise(plain, tmp_path / "q8", bits=8, group=32)
    loaded: Any = load(str(small))
    ids = mx.array([[0, 40, 50, 60, 70]])
    logits = loaded[0](ids)
    assert logits.dtype == mx.float32
    expected = load_float32(plain)(ids)
    assert float(mx.abs(logits - expected).max()) < 0.05 * float(mx.abs(expected).max())
    assert not mx.array_equal(logits, expected)
    with pytest.raises(ValueError, match="is quantised already"):
        quantise(small, tmp_path / "again")


def test_windows_score_every_token_once() -> None:
    ids = np.arange(24, dtype=np.uint16)
    for window, stride in ((8, 8), (8, 3), (40, 40), (23, 5)):
        scored = [int(token) for cut in windows_of(ids, window, stride) for token in cut.targets[cut.skip :]]
        assert scored == list(range(1, 24))
        assert all(len(cut.inputs) <= window for cut in windows_of(ids, window, stride))


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (64, 64)])
def test_score_is_the_sum_of_token_losses(recipe: SimpleNamespace, window: int, stride: int) -> None:
    """Against one forward per token on just its context, summed in float64."""
    held = load_tokens(recipe.root / "tokens", "held_out")["farm"]
    model = inference(new_state(recipe.settings), recipe.settings)
    found = score(model, held, window, stride, batch_tokens=200)
    expected, count = 0.0, 0
    for index in range(len(held)):
        ids = held.document(index).astype(np.int32)
        for place in range(1, len(ids)):
            block = 0 if place <= window else -(-(place - window) // stride)
            context = mx.array(ids[None, block * stride : place])
            logits = np.array(model(context))[0, -1].astype(np.float64)
            expected += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[place]]
            count += 1
    assert found.tokens == count
    assert found.nats == pytest.approx(expected, rel=1e-5)
    characters = sum(len(text) for text in recipe.domains[1].held_out)
    assert found.characters == characters
    assert found.bits_per_character == pytest.approx(expected / np.log(2) / characters, rel=1e-5)


def test_commands_go_from_export_to_report(recipe: SimpleNamespace, trained: Path, tmp_path: Path) -> None:
    model, tokens = tmp_path / "model", recipe.root / "tokens"
    done = CliRunner().invoke(app, ["export", str(trained), str(model), "--tokenizer", str(recipe.root / "tokenizer")])
    assert done.exit_code == 0, done.output
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    asked = ["evaluate", "--model", str(model), "--tokens", str(tokens), "--window", "32"]
    assert CliRunner().invoke(app, [*asked, str(first)]).exit_code == 0
    done = CliRunner().invoke(app, [*asked, str(second), "--baseline", str(first)])
    assert done.exit_code == 0, done.output
    figures = json.loads(second.read_text())["domains"]
    assert set(figures) == {"farm", "ship", "code", "all"}
    for row in figures.values():
        assert row["gap_nats_per_token"] == pytest.approx(row["nats_per_token"] - row["trained_nats_per_token"])
        assert f"{row['bits_per_character']:10.4f}{row['bits_per_character']:10.4f}" in done.output
    assert figures["all"]["nats"] == pytest.approx(sum(figures[name]["nats"] for name in ("farm", "ship", "code")))


def test_precision_finds_a_whole_dose_in_float32_and_less_in_bfloat16(
    recipe: SimpleNamespace, trained: Path, tmp_path: Path
) -> None:
    plain = export(trained, recipe.settings.shape, recipe.root / "tokenizer", tmp_path / "bf16")
    variants = {"float32 scales": {"bits": 8, "group": 32, "dtype": "float32"}}
    rows = {row["type"]: row for row in compare(plain, recipe.root / "tokens", 0, 1, 32, variants)}
    exact, rounded = rows["float32 scales"], rows["bfloat16"]
    assert exact["small_dose_worst_error"] < 1e-4 < rounded["small_dose_worst_error"]
    assert 0 <= exact["kl_to_reference"] < exact["kl_of_steering"]
