"""Transcoders: the objective, its folding, whole runs on a known map from inputs to outputs, and the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui import load_sae
from lens_tui.records import LensError
from lens_tui.records.training import ActivationBlock, Place, SourceFacts, Splice, TrainConfig
from lens_tui.sae.formats.writers import write_circuit_tracer
from lens_tui.sae.training.checkpoint import FILE
from lens_tui.sae.training.objective import (
    Normalizer,
    encode_folded,
    fold,
    initial_transcoder,
    losses,
    pair_normalizer,
    preactivations,
    reconstruct,
)
from lens_tui.sae.training.trainer import train

from .synthetic import Synthetic, mean_max_cosine

IN: Place = (1, "mlp_in")
OUT: Place = (1, "mlp_out")
D_OUT = 20
CONFIG = TrainConfig(
    width=64,
    k=3,
    kind="transcoder",
    tokens=256 * 600,
    batch=256,
    learning_rate=3e-3,
    calibration_tokens=1000,
    pool_tokens=1500,
    evaluation_tokens=500,
    dead_after=4000,
    aux_k=8,
)
QUICK = replace(CONFIG, tokens=256 * 300, learning_rate=1e-2)


class Mapped(Synthetic):
    """Inputs are sums of known directions; outputs the same sums of others, with a linear part if asked."""

    def __init__(self, *, linear: float = 0.0) -> None:
        super().__init__()
        rng = np.random.default_rng(77)
        to = rng.normal(size=(len(self.directions), D_OUT))
        self.to: NDArray[np.float64] = to / np.linalg.norm(to, axis=1, keepdims=True)
        self.linear = rng.normal(size=(self.d_model(IN), D_OUT)) * linear
        self.out_offset = rng.normal(size=D_OUT) * 10

    @property
    def places(self) -> tuple[Place, ...]:
        return (IN, OUT)

    @property
    def facts(self) -> SourceFacts:
        return replace(super().facts, extra=(("to", "others"),))

    def d_model(self, place: Place) -> int:
        return D_OUT if place == OUT else super().d_model(place)

    def outputs(self, index: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([0, index])
        fires = rng.random((200, len(self.directions))) < 3 / 40
        strength = fires * rng.uniform(0.5, 1.5, fires.shape) * 5
        return np.asarray(strength @ self.to + self.values(index) @ self.linear + self.out_offset, np.float32)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        for block in super().blocks(start, stop):
            ((_, x),) = block.values.items()
            yield replace(block, values={IN: x, OUT: mx.array(self.outputs(block.index))})

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """1 plus the share of the output's variance that is lost."""
        assert place == OUT
        x, y = (
            np.concatenate([part(i)[~self.special()] for i in range(blocks)]) for part in (self.values, self.outputs)
        )
        assert splice is None or read == IN
        given: Any = mx.array(y) if splice is None else splice(mx.array(x))
        return float(1.0 + np.square(np.asarray(given) - y).sum() / np.square(y - y.mean(0)).sum())


def arrays(folder: Path, file: str = "params.safetensors") -> dict[str, NDArray[Any]]:
    loaded: Any = mx.load(str(folder / file))
    return {name: np.asarray(value) for name, value in loaded.items()}


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_known_map_is_found(architecture: Any, tmp_path: Path) -> None:
    source = Mapped()
    report = train(source, replace(QUICK, architecture=architecture), tmp_path, place=IN, place_out=OUT)
    made, final = arrays(tmp_path), report.final
    assert final is not None
    assert final.fvu < 0.2
    assert final.l0 == pytest.approx(3, abs=0.4)
    assert mean_max_cosine(made["w_dec"], source.to) > 0.95
    chance = np.random.default_rng(99).normal(size=(64, D_OUT))
    assert mean_max_cosine(chance, source.to) < 0.75
    assert final.loss_clean == pytest.approx(1)
    assert final.loss_spliced == pytest.approx(1 + final.fvu, abs=1e-3)  # the same tokens, and the same measure
    assert (report.site, report.site_out) == ("mlp_in", "mlp_out")


def test_a_linear_part_is_taken_by_the_skip_connection(tmp_path: Path) -> None:
    """With much of the output linear in the input, three latents a token are not enough without it."""
    config = replace(CONFIG, tokens=256 * 200)
    found = {}
    for skip in (False, True):
        report = train(Mapped(linear=1.0), replace(config, skip=skip), tmp_path / str(skip), place=IN, place_out=OUT)
        assert report.final is not None
        found[skip] = report.final.fvu
    assert found[True] < 0.5 * found[False]
    assert "affine_skip_connection" in arrays(tmp_path / "True")


def test_a_broken_run_gives_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    config = replace(CONFIG, tokens=256 * 40, skip=True, architecture="jumprelu")
    train(Mapped(), config, tmp_path / "whole", place=IN, place_out=OUT)
    for calls in (5, 30, 25):
        count = iter(range(1000))
        report = train(
            Mapped(),
            config,
            tmp_path / "broken",
            place=IN,
            place_out=OUT,
            should_stop=lambda c=count, n=calls: next(c) >= n,  # type: ignore[misc]
        )
        assert report.stopped
    train(Mapped(), config, tmp_path / "broken", place=IN, place_out=OUT)
    for file in ("params.safetensors", f"training/{FILE}", "circuit_tracer/layer_1.safetensors"):
        a, b = arrays(tmp_path / "whole", file), arrays(tmp_path / "broken", file)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(LensError, match="other settings: skip"):
        train(Mapped(), replace(config, skip=False), tmp_path / "broken", place=IN, place_out=OUT)


@pytest.mark.parametrize("skip", [False, True])
def test_every_layout_gives_the_same_transcoder(tmp_path: Path, skip: bool) -> None:
    config = replace(CONFIG, tokens=256 * 60, skip=skip)
    train(Mapped(linear=0.3), config, tmp_path, place=IN, place_out=OUT)
    w = {name: value.astype(np.float64) for name, value in arrays(tmp_path).items()}
    x = Mapped().values(3)
    pre = x @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    y = z @ w["w_dec"] + w["b_dec"] + (x @ w["affine_skip_connection"] if skip else 0)
    for place, architecture in (
        (tmp_path, "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"),
        (tmp_path / "sae_lens", "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"),
        (tmp_path / "circuit_tracer", "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"),
        (tmp_path / "circuit_tracer" / "layer_1.safetensors", None),
    ):
        sae = load_sae(place)
        assert sae.info.is_transcoder
        assert architecture in (None, sae.info.architecture)
        if place.name != "circuit_tracer":  # a folder of one layer names none
            assert (sae.info.layer, sae.info.site) == IN
            assert (sae.info.layer_out, sae.info.site_out) == OUT
        near = np.abs(pre - w["threshold"]).min(1) < 1e-3
        made = np.asarray(sae.reconstruct(mx.array(x)).output)
        np.testing.assert_allclose(made[~near], y[~near], rtol=1e-4, atol=1e-3)


def test_circuit_tracers_names_and_shapes(tmp_path: Path) -> None:
    """As its loader reads them: ``W_enc (n, d)``, ``W_dec (n, d)``, and ``y += x @ W_skip.T``."""
    rng = np.random.default_rng(0)
    shapes = {"w_enc": (6, 9), "w_dec": (9, 4), "b_enc": (9,), "b_dec": (4,), "threshold": (9,), "w_skip": (6, 4)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_circuit_tracer(tmp_path, {n: mx.array(v) for n, v in weights.items()}, layer=2, model_name='a "b"')
    found = arrays(tmp_path, "layer_2.safetensors")
    assert sorted(found) == ["W_dec", "W_enc", "W_skip", "activation_function.threshold", "b_dec", "b_enc"]
    assert np.array_equal(found["W_enc"], weights["w_enc"].T)
    assert np.array_equal(found["W_dec"], weights["w_dec"])
    assert np.array_equal(found["W_skip"], weights["w_skip"].T)
    text = (tmp_path / "config.yaml").read_text()
    assert 'model_kind: "transcoder_set"' in text
    assert 'feature_input_hook: "mlp.hook_in"' in text
    assert load_sae(tmp_path / "layer_2.safetensors").info.model_name == 'a "b"'


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_the_objective_is_the_formula(architecture: Any, skip: bool) -> None:
    rng = np.random.default_rng(5)
    n, d, d_out, width, k = 12, 6, 5, 20, 3
    shapes = {"w_enc": (d, width), "w_dec": (width, d_out), "b_enc": (width,), "b_out": (d_out,), "w_skip": (d, d_out)}
    p = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    if not skip:
        del p["w_skip"]
    p["log_threshold"] = rng.normal(size=width) * 0.1
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d_out))
    config = TrainConfig(
        width=width, k=k, kind="transcoder", skip=skip, architecture=architecture, aux_k=2, dead_after=10
    )
    idle = np.where(np.arange(width) % 4 == 0, 50, 0).astype(np.int32)
    pre = x @ p["w_enc"] + p["b_enc"]
    if architecture == "jumprelu":
        gate = pre > np.exp(p["log_threshold"])
    elif architecture == "topk":
        gate = pre >= np.sort(pre, axis=1)[:, -k][:, None]
    else:
        gate = pre >= np.sort(pre, axis=None)[-k * n]
    z = np.where(gate, np.maximum(pre, 0), 0)
    made = z @ p["w_dec"] + p["b_out"] + (x @ p["w_skip"] if skip else 0)
    dead = np.maximum(pre[:, idle > 10], 0)
    for row in dead:
        row[np.argsort(row)[:-2]] = 0
    wanted = np.square(made - y).mean() + np.square(y - made - dead @ p["w_dec"][idle > 10]).mean() / 32
    if architecture == "jumprelu":
        wanted += ((z > 0).sum(1).mean() / k - 1) ** 2
    found = losses(
        {name: mx.array(value.astype(np.float32)) for name, value in p.items()},
        mx.array(x.astype(np.float32)),
        mx.array(idle),
        mx.array(1.0),
        config,
        mx.array(y.astype(np.float32)),
    )
    assert float(found.total) == pytest.approx(wanted, rel=1e-4)
    assert float(found.error) == pytest.approx(np.square(made - y).mean(), rel=1e-4)


@pytest.mark.parametrize("normalize", ["centered", "norm", "none"])
def test_folding_changes_nothing(normalize: Any) -> None:
    rng = np.random.default_rng(6)
    rows = np.asarray(rng.normal(size=(400, 8 + 5)) * 3 + rng.normal(size=13) * 20, np.float32)
    config = TrainConfig(width=32, k=4, kind="transcoder", skip=True, normalize=normalize)
    norm, b_out = pair_normalizer(mx.array(rows), config, 8)
    x, y = norm.pair(mx.array(rows))
    p = initial_transcoder(config, b_out, x, y)
    p["w_skip"] = mx.array(rng.normal(size=(8, 5)).astype(np.float32))
    folded = fold(p, norm, mx.array(0.7))
    pre = np.asarray(preactivations(p, x), np.float64)
    z = np.where(pre > 0.7, np.maximum(pre, 0), 0)
    assert isinstance(norm.out, Normalizer)
    made = z @ np.asarray(p["w_dec"]) + np.asarray(p["b_out"]) + np.asarray(x) @ np.asarray(p["w_skip"])
    made = made * float(norm.out.scale) + np.asarray(norm.out.mean)
    near = (np.abs(pre - 0.7) < 1e-3).any(1)
    raw = mx.array(rows[:, :8])
    np.testing.assert_allclose(np.asarray(reconstruct(folded, raw))[~near], made[~near], rtol=1e-4, atol=2e-3)
    given = np.asarray(encode_folded(folded, raw))[~near] / float(norm.out.scale)
    np.testing.assert_allclose(given, z[~near], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(p["w_dec"]), axis=1), 1, rtol=1e-5)


def test_the_decoder_begins_where_the_linear_map_takes_the_encoder() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(3000, 6)).astype(np.float32)
    true = rng.normal(size=(6, 4))
    y = (x @ true).astype(np.float32)
    config = TrainConfig(width=10, k=2, kind="transcoder")
    p = initial_transcoder(config, mx.zeros((4,)), mx.array(x), mx.array(y))
    wanted = np.asarray(p["w_enc"]).T @ true
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(p["w_dec"]), wanted, atol=5e-3)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="kind to train is transcoder"):
        train(Mapped(), CONFIG, tmp_path, place=IN)
    with pytest.raises(LensError, match="kind to train is sae"):
        train(Mapped(), replace(CONFIG, kind="sae"), tmp_path, place=IN, place_out=OUT)
    with pytest.raises(LensError, match="no activations of layer 2, mlp_out"):
        train(Mapped(), CONFIG, tmp_path, place=IN, place_out=(2, "mlp_out"))
    with pytest.raises(LensError, match="belongs to a transcoder"):
        TrainConfig(width=8, k=2, skip=True)
    with pytest.raises(LensError, match="no kind 'clt'"):
        TrainConfig(width=8, k=2, kind="clt")  # type: ignore[arg-type]
