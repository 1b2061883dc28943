"""Whole training runs on activations with known features: recovery, resumption, output."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import load_sae
from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig, TrainProgress
from lens_tui.sae.training.checkpoint import FILE, load_checkpoint
from lens_tui.sae.training.objective import Step, initial_parameters, initial_state, normalizer, scalar
from lens_tui.sae.training.trainer import train

from .synthetic import PLACE, Synthetic, mean_max_cosine

SMALL = TrainConfig(
    width=64,
    k=3,
    tokens=256 * 60,
    batch=256,
    learning_rate=3e-3,
    calibration_tokens=1000,
    pool_tokens=1500,
    evaluation_tokens=500,
    dead_after=4000,
    aux_k=8,
)


def params(folder: Path) -> dict[str, np.ndarray]:
    loaded: Any = mx.load(str(folder / "params.safetensors"))
    return {name: np.asarray(value) for name, value in loaded.items()}


def checkpoint(folder: Path) -> dict[str, np.ndarray]:
    loaded: Any = mx.load(str(folder / "training" / FILE))
    return {name: np.asarray(value) for name, value in loaded.items()}


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_known_features_are_found(architecture: Any, tmp_path: Path) -> None:
    source = Synthetic()
    config = replace(SMALL, architecture=architecture, tokens=256 * 300, learning_rate=1e-2)
    report = train(source, config, tmp_path)
    found = mean_max_cosine(params(tmp_path)["w_dec"], source.directions)
    chance = mean_max_cosine(np.random.default_rng(99).normal(size=(64, 24)), source.directions)
    assert chance < 0.7
    assert found > 0.95
    assert report.final is not None
    assert report.final.fvu < 0.2
    assert report.final.l0 == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_broken_run_gives_the_bits_of_an_unbroken_one(architecture: Any, tmp_path: Path) -> None:
    """Stopped while it prepares, in the middle of a pool, while a pool is filled and while it evaluates."""
    config = replace(SMALL, architecture=architecture, evaluate_every=20, matryoshka=(16,))
    whole = train(Synthetic(), config, tmp_path / "whole")
    seen = []
    for calls in (2, 18, 16, 25, 20, 27, 22, 30, 19, 28, 23):
        count = iter(range(10_000))
        report = train(
            Synthetic(),
            config,
            tmp_path / "broken",
            should_stop=lambda c=count, n=calls: next(c) >= n,  # type: ignore[misc]
        )
        assert report.stopped
        assert not (tmp_path / "broken" / "params.safetensors").exists()
        seen.append(report.step)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert len(set(seen)) > 5
    assert seen[-1] > 35
    broken = train(Synthetic(), config, tmp_path / "broken")
    assert (broken.final, broken.history) == (whole.final, whole.history)
    assert [item.step for item in whole.history] == [20, 40, 60]
    for reader in (params, checkpoint):
        a, b = reader(tmp_path / "whole"), reader(tmp_path / "broken")
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    count = iter(range(10_000))

    def kill() -> bool:
        if next(count) == 70:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(Synthetic(), SMALL, tmp_path / "killed", should_stop=kill, checkpoint_seconds=0)
    (tmp_path / "killed" / "training" / f".{FILE}.1-aa.partial").write_bytes(b"half")
    source = Synthetic()
    train(source, SMALL, tmp_path / "killed")
    train(Synthetic(), SMALL, tmp_path / "whole")
    a, b = params(tmp_path / "whole"), params(tmp_path / "killed")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    replayed = [index for index in source.served if index > 6]  # beyond the calibration sample
    assert min(replayed) > 20  # it did not begin from the start


def test_a_run_of_other_settings_or_another_text_is_refused(tmp_path: Path) -> None:
    count = iter(range(100))
    train(Synthetic(), SMALL, tmp_path, should_stop=lambda: next(count) > 30)
    with pytest.raises(LensError, match="other settings: k, seed"):
        train(Synthetic(), replace(SMALL, k=4, seed=1), tmp_path)
    with pytest.raises(LensError, match="learns from something else: seed"):
        train(Synthetic(seed=1), SMALL, tmp_path)
    (tmp_path / "training" / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(LensError, match="cannot be read"):
        train(Synthetic(), SMALL, tmp_path)


def test_both_layouts_read_back_as_the_same_sae(tmp_path: Path) -> None:
    source = Synthetic()
    report = train(source, SMALL, tmp_path, evaluation=Synthetic(seed=0))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hf_hook_point_in"] == config["hf_hook_point_out"] == "model.layers.1.output"
    assert (config["width"], config["architecture"], config["type"]) == (64, "jump_relu", "sae")
    assert config["affine_connection"] is False
    assert report.final is not None
    assert config["fvu"] == report.final.fvu
    assert config["loss_recovered"] == report.final.loss_recovered
    assert json.loads((tmp_path / "training" / "report.json").read_text())["final"]["l0"] == report.final.l0
    ours, theirs = load_sae(tmp_path), load_sae(tmp_path / "sae_lens")
    x = mx.array(source.values(3)[~source.special()])
    np.testing.assert_array_equal(np.asarray(ours.encode(x)), np.asarray(theirs.encode(x)))
    p = params(tmp_path)
    pre = np.asarray(x) @ p["w_enc"] + p["b_enc"]
    z = np.where(pre > p["threshold"], pre, 0)
    np.testing.assert_allclose(np.asarray(ours.encode(x)), z, rtol=1e-4, atol=1e-3)
    for sae in (ours, theirs):
        info = sae.info
        assert (info.layer, info.site, info.model_name, info.width) == (1, "resid_post", "synthetic", 64)
        assert info.bos is False
    assert ours.info.fvu == report.final.fvu
    sparsity: Any = mx.load(str(tmp_path / "sae_lens" / "sparsity.safetensors"))
    assert np.asarray(10 ** sparsity["sparsity"]).sum() == pytest.approx(report.final.l0, rel=1e-3)


def test_dead_latents_come_back() -> None:
    """Half of the latents begin where TopK never chooses them: with AuxK most fire after a while, without it few."""
    source = Synthetic()
    x = mx.array(source.values(0)[~source.special()])
    config = replace(SMALL, architecture="topk", dead_after=1000, tokens=256 * 400)
    norm, b_dec = normalizer(x, config)
    dead = {}
    for coefficient in (0.0, 1.0):
        p = initial_parameters(config, b_dec)
        p["w_enc"] = p["w_enc"] * mx.where(mx.arange(64) < 32, 0.02, 1.0)
        step, state = Step(replace(config, aux_coefficient=coefficient), norm), initial_state(p)
        for i in range(150):
            state, _ = step(state, mx.array(source.values(i)[~source.special()]))
        dead[coefficient] = int(np.sum(np.asarray(state["idle"]) > config.dead_after))
    assert dead[0.0] > 25
    assert dead[1.0] < dead[0.0] / 2


def test_progress_tells_speed_time_left_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_tui.sae.training.trainer.REPORT_SECONDS", 0.0)
    seen: list[TrainProgress] = []
    config = replace(SMALL, tokens=256 * 10, evaluate_every=5)
    train(Synthetic(), config, tmp_path, progress=seen.append)
    steps = [item for item in seen if item.stage == "train" and item.fvu is not None]
    assert [item.step for item in steps] == list(range(1, 11))
    assert all(item.tokens == item.step * 256 and item.tokens_per_s > 0 for item in steps)
    assert steps[-1].seconds_left == 0
    assert [item.evaluation.step for item in seen if item.evaluation and item.stage == "train"] == [5, 10]
    assert seen[0].stage == "prepare"
    for stage, wanted in (("prepare", config.calibration_tokens), ("fill", config.pool_tokens // 256 * 256)):
        told = [item for item in seen if item.stage == stage and item.wanted]
        assert {item.wanted for item in told} == {wanted}
        assert told[0].taken == 0 < told[1].taken < told[2].taken < wanted
        assert all(item.taken < wanted for item in told)
    assert seen[-1].stage == "save"


def test_a_loss_that_blows_up_is_an_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Breaking(Synthetic):
        def values(self, index: int) -> Any:
            return super().values(index) * (np.float32(np.nan) if index > 30 else 1)

    with pytest.raises(LensError, match="no longer finite"):
        train(Breaking(), replace(SMALL, tokens=256 * 400), tmp_path, checkpoint_seconds=0)
    assert all(np.isfinite(value).all() for value in checkpoint(tmp_path).values())


def test_a_source_without_the_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="no activations of layer 3"):
        train(Synthetic(), SMALL, tmp_path, place=(3, PLACE[1]))


def test_a_compiled_step_gives_the_plain_one_s_numbers() -> None:
    source = Synthetic()
    x = mx.array(source.values(0)[~source.special()])
    config = replace(SMALL, aux_coefficient=0.0)
    norm, b_dec = normalizer(x, config)
    results = []
    for compiled in (False, True):
        step, state = Step(config, norm, compiled), initial_state(initial_parameters(config, b_dec))
        for _ in range(3):
            state, figures = step(state, x)
        mx.eval(state, figures.error)
        results.append((state, scalar(figures.error)))
    (a, error_a), (b, error_b) = results
    assert error_a == pytest.approx(error_b, rel=1e-5)
    for name in a["parameters"]:
        np.testing.assert_allclose(np.asarray(a["parameters"][name]), np.asarray(b["parameters"][name]), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gated"}, "no SAE architecture"),
        ({"k": 65}, "only 64 wide"),
        ({"matryoshka": (32, 16)}, "prefixes"),
        ({"learning_rate": 0.0}, "out of range"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        replace(SMALL, **settings)


def test_settings_survive_json() -> None:
    config = replace(SMALL, matryoshka=(8, 16))
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(LensError, match="Unknown training settings: speed"):
        TrainConfig.from_json('{"width": 8, "k": 2, "speed": 3}')


@pytest.mark.parametrize("what", ["bytes", "pipe", "folder", "metadata"])
def test_a_checkpoint_that_is_none_is_one_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    if what == "bytes":
        path.write_bytes(b"x" * 100)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        good = {"config": "[]", "facts": "{}", "position": "{}", "history": "[]", "seconds": "1"}
        mx.save_safetensors(str(path), {"norm.mean": mx.zeros(2)}, good)
    with pytest.raises(LensError, match=r"The checkpoint in .* cannot be read\. Delete it"):
        load_checkpoint(tmp_path, SMALL, {})
