"""Probes of a model's activations: held against plain captures, saved, steered with and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, load_probe, save_probe, train_probes
from lens_tui.lens.probes.probe_fits import stratified
from lens_tui.records import Gate, LensError
from tests.lens import tiny
from tests.lens.hooks.test_gates import gated

RNG = np.random.default_rng(0)
LABELS = [at % 2 for at in range(40)]
TEXTS = [[*RNG.integers(3, 90, 3 + at % 2).tolist(), 17 if label else 5] for at, label in enumerate(LABELS)]
MAKERS = {"llama": tiny.llama, "gemma3": tiny.gemma3, "bf16": lambda: tiny.llama(dtype=mx.bfloat16)}


def captured(lens: LensModel, ids: list[int], layer: int, site: str = "resid_post") -> Any:
    return every(lens, [ids], layer, site)[0]


def every(lens: LensModel, texts: list[list[int]], layer: int, site: str = "resid_post") -> list[Any]:
    """The activations of each text, (tokens, width): those of one length in a forward of their own."""
    found: dict[tuple[int, ...], Any] = {}
    for length in {len(ids) for ids in texts}:
        some = [ids for ids in texts if len(ids) == length]
        with lens.capture(layer, site) as held:
            lens.forward(mx.array(some))
        values = np.array(held[layer].astype(mx.float32), dtype=np.float64)
        found |= {tuple(ids): row for ids, row in zip(some, values, strict=True)}
    return [found[tuple(ids)] for ids in texts]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("over", ["last", "mean"])
def test_a_mean_difference_probe_is_numpys_in_every_fold(name: str, over: Any) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    report = train_probes(lens, "p", TEXTS, LABELS, kind="mean_difference", over=over, permutations=20, seed=3)
    assert [probe.layer for probe in report.probes] == [0, 1, 2, 3]
    probe, y = report.at(2), np.array(LABELS)
    x = np.stack(
        [captured(lens, ids, 2)[-1] if over == "last" else captured(lens, ids, 2)[1:].mean(axis=0) for ids in TEXTS]
    )
    atol = 0.02 if name == "bf16" else 2e-4
    direction = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    np.testing.assert_allclose(probe.vector.direction * probe.vector.norm, direction, atol=atol)
    np.testing.assert_allclose(probe.scores(x), (x - (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2) @ direction, atol=0.1)
    folds = stratified(y * 1.0, np.arange(40), 5, 3, classes=True)
    for fold, found in enumerate(probe.held_out.folds):
        held = folds == fold
        w = x[~held & (y == 1)].mean(axis=0) - x[~held & (y == 0)].mean(axis=0)
        pairs = (x[held & (y == 1)] @ w)[:, None] > (x[held & (y == 0)] @ w)[None]
        assert found == pytest.approx(pairs.mean(), abs=0.01)
    assert probe.held_out.value == pytest.approx(np.mean(probe.held_out.folds))
    assert report.best.held_out.value == max(one.held_out.value for one in report.probes)


@pytest.mark.parametrize("kind", ["mean_difference", "logistic"])
def test_what_is_there_is_found_and_what_is_not_is_not(kind: Any) -> None:
    lens = LensModel.from_model(tiny.llama())
    found = train_probes(lens, "p", TEXTS, LABELS, kind=kind, layers=0, site="resid_pre", permutations=60).best.held_out
    assert (found.n, found.n_groups, found.permutations, found.metric) == (40, 40, 60, "auc")
    assert found.value > 0.95
    assert found.p == pytest.approx(1 / 61)
    assert found.null_mean == pytest.approx(0.5, abs=0.08)
    assert found.null_high is not None
    assert 0.5 < found.null_high < 0.85
    again = train_probes(lens, "p", TEXTS, LABELS, kind=kind, layers=0, site="resid_pre", permutations=60).best.held_out
    assert again == found
    shuffled = np.random.default_rng(8).permutation(LABELS)
    wrong = train_probes(lens, "p", TEXTS, shuffled, kind=kind, layers=1, permutations=60)
    assert wrong.best.held_out.p is not None
    assert wrong.best.held_out.p > 0.05


def test_numbers_are_read_by_a_linear_probe() -> None:
    lens = LensModel.from_model(tiny.llama())
    x = np.stack([h[-1] for h in every(lens, TEXTS, 1)])
    direction = np.random.default_rng(9).normal(size=64)
    found = train_probes(lens, "p", TEXTS, x @ direction, kind="ridge", layers=1, permutations=30, l2=1e-3).best
    assert found.held_out.metric == "r2"
    assert found.held_out.value > 0.0
    assert found.held_out.null_high is not None
    assert found.held_out.null_high < found.held_out.value
    noise = train_probes(lens, "p", TEXTS, RNG.normal(size=40), kind="ridge", layers=1, permutations=30).best.held_out
    assert noise.value < 0.3


def test_every_token_of_a_text_is_an_example_and_held_out_with_it() -> None:
    lens = LensModel.from_model(tiny.llama())
    labels = [[float(token > 45) for token in ids] for ids in TEXTS]
    found = train_probes(lens, "p", TEXTS, labels, layers=0, site="resid_pre", over="every", permutations=10).best
    assert found.held_out.n == sum(len(ids) - 1 for ids in TEXTS)  # the first is an attention sink
    assert found.held_out.n_groups == 40
    scores = np.concatenate([found.scores(h) for h in every(lens, TEXTS, 0, "resid_pre")])
    assert ((scores > 0) == np.concatenate(labels).astype(bool)).mean() > 0.7
    with pytest.raises(LensError, match="over='every'"):
        train_probes(lens, "p", TEXTS, labels, layers=0)
    with pytest.raises(LensError, match="has 3 labels"):
        train_probes(lens, "p", TEXTS[1:3], [[0, 1, 1], [1, 0, 0]], layers=0, over="every")


def test_a_saved_probe_is_a_vector_a_monitor_and_a_gate(tmp_path: Path) -> None:
    lens = LensModel.from_model(tiny.llama(), name="tiny")
    probe = train_probes(lens, "seventeen", TEXTS, LABELS, layers=1, permutations=10, l2=1e-4).best
    file = save_probe(probe, tmp_path / "p.safetensors")
    again = load_probe(file)
    np.testing.assert_array_equal(again.vector.direction, probe.vector.direction)
    assert (again.bias, again.held_out, again.vector.norm) == (probe.bias, probe.held_out, probe.vector.norm)
    facts = again.vector.origin.facts
    assert (facts["probe"], facts["over"], facts["n_texts"], facts["folds"]) == ("logistic", "last", 40, 5)
    assert len(facts["sha256"]) == 64
    assert (again.vector.model, again.layer) == ("tiny", 1)
    ids = TEXTS[0]
    right = [float(probe.scores(h)[-1]) > 0 for h in every(lens, TEXTS, 1)]
    assert right == [label == 1 for label in LABELS]
    open_at = probe.scores(captured(lens, ids, 1)) > 0
    with lens.capture(2) as before:
        lens.forward([ids])
    with lens.intervene(gated(gate=Gate(again.monitor))), lens.capture(2) as after:
        lens.forward([ids])
    np.testing.assert_array_equal(np.abs(np.array(after[2] - before[2]))[0].max(axis=-1) > 0, open_at)
    with pytest.raises(LensError, match="cannot hold a probe's bias"):
        save_probe(probe, tmp_path / "p.npy")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "deep"}, "no kind 'deep'"),
        ({"over": "middle"}, "cannot read 'middle'"),
        ({"groups": [1]}, "1 groups"),
        ({"layers": 9}, "layer 9"),
    ],
    ids=["kind", "over", "groups", "layer"],
)
def test_what_cannot_be_is_said(lens: LensModel, options: Any, words: str) -> None:
    with pytest.raises(LensError, match=words):
        train_probes(lens, "p", TEXTS, LABELS, **options)
