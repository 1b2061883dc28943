"""The bundled transcoders are the ones that were measured: figures on five held-out texts, by NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lens_tui import LensModel, demo, load_sae
from lens_tui.records import LensError, SAEInfo
from lens_tui.sae.base import build
from lens_tui.sae.files import Definition, Weights, in_memory
from lens_tui.tasks.graphs import open_transcoders
from lens_tui.tasks.models import list_saes, named_sae
from lens_tui.tasks.transcoders import write_circuit_tracer_set
from tests.demo.test_shipped_figures import SAMPLE

Array = NDArray[np.float64]
LAYERS = range(8)
FIGURES = (
    (0.06333, 34.32),
    (0.04583, 34.27),
    (0.14026, 34.02),
    (0.19177, 37.96),
    (0.22484, 38.13),
    (0.23357, 37.73),
    (0.23116, 38.94),
    (0.21114, 38.40),
)
"""FVU and L0 of each layer on the sample, when the set was installed."""
ADDED = {"every": 0.16158, "mean": 7.58796}
"""Loss that is added with all MLPs replaced at once, and with all at their mean outputs (nats a token)."""


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return LensModel("demo")


@pytest.fixture(scope="module")
def texts(lens: LensModel) -> list[list[int]]:
    return [[0, *lens.tokenizer.encode(row["text"], add_special_tokens=False)] for row in SAMPLE]


@cache
def weights(layer: int) -> dict[str, Array]:
    loaded: Any = mx.load(str(demo.transcoder_paths()[layer] / "params.safetensors"))
    w = {key: np.array(value.astype(mx.float32)).astype(np.float64) for key, value in loaded.items()}
    return w | {"w_enc": w["w_enc"] * w["w_enc_scale"], "w_dec": w["w_dec"] * w["w_dec_scale"][:, None]}


def given(layer: int, x: Array) -> tuple[Array, Array]:
    """The output and activations of a transcoder for ``x (n, d)``."""
    w = weights(layer)
    pre = x @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    return z @ w["w_dec"] + w["b_dec"], z


def nll(lens: LensModel, ids: list[int]) -> float:
    """Summed negative log-likelihood of all tokens after the first, in nats."""
    logits = np.array(lens.forward(mx.array([ids]))[0, :-1].astype(mx.float32)).astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return float(-log_p[np.arange(len(ids) - 1), ids[1:]].sum())


def float64(h: mx.array) -> Array:
    return np.array(h.astype(mx.float32)).astype(np.float64)


@pytest.fixture(scope="module")
def clean(lens: LensModel, texts: list[list[int]]) -> tuple[float, dict[tuple[int, str], Array]]:
    """Loss a token, and what every MLP reads and gives after the first token of each text, all in one table."""
    rows: dict[tuple[int, str], list[Array]] = {}
    total = 0.0
    for ids in texts:
        with lens.capture(list(LAYERS), site=["mlp_in", "mlp_out"]) as held:
            total += nll(lens, ids)
        for layer in LAYERS:
            for site in ("mlp_in", "mlp_out"):
                rows.setdefault((layer, site), []).append(float64(held[layer, site][0, 1:]))
    joined = {place: np.concatenate(parts) for place, parts in rows.items()}
    return total / len(joined[0, "mlp_in"]), joined


@pytest.mark.parametrize("layer", LAYERS)
def test_a_transcoder_explains_what_it_did_when_it_was_made(
    clean: tuple[float, dict[tuple[int, str], Array]], layer: int
) -> None:
    x, y = clean[1][layer, "mlp_in"], clean[1][layer, "mlp_out"]
    guess, z = given(layer, x)
    fvu = ((y - guess) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert (fvu, (z > 0).sum(axis=1).mean()) == pytest.approx(FIGURES[layer], rel=0.01)
    sae = load_sae(demo.transcoder_paths()[layer])
    assert (sae.info.layer, sae.info.site, sae.info.site_out) == (layer, "mlp_in", "mlp_out")
    found = float64(sae.reconstruct(mx.array(x.astype(np.float32))).output)
    assert np.abs(found - guess).max() < 1e-3 * np.abs(guess).max()


def loss_with(lens: LensModel, texts: list[list[int]], means: Mapping[int, Array] | None) -> float:
    """Loss a token with every MLP's output after the first token that of its transcoder, or its mean."""
    held: dict[int, mx.array] = {}

    def keep(layer: int, _: Any, h: mx.array) -> None:
        held[layer] = h

    def put(layer: int, _: Any, h: mx.array) -> mx.array:
        rest = given(layer, float64(held[layer][0, 1:]))[0] if means is None else np.tile(means[layer], (h.shape[1], 1))
        return mx.concatenate([h[:, :1], mx.array(rest[: h.shape[1] - 1].astype(np.float32))[None]], axis=1)

    with ExitStack() as stack:
        for layer in LAYERS:
            stack.enter_context(lens.hook(layer, partial(keep, layer), site="mlp_in"))
            stack.enter_context(lens.hook(layer, partial(put, layer), site="mlp_out"))
        return sum(nll(lens, ids) for ids in texts) / sum(len(ids) - 1 for ids in texts)


def test_all_mlps_are_replaced_for_a_fraction_of_what_they_are_worth(
    lens: LensModel, texts: list[list[int]], clean: tuple[float, dict[tuple[int, str], Array]]
) -> None:
    means = {layer: clean[1][layer, "mlp_out"].mean(axis=0) for layer in LAYERS}
    assert loss_with(lens, texts, None) - clean[0] == pytest.approx(ADDED["every"], rel=0.02)
    assert loss_with(lens, texts, means) - clean[0] == pytest.approx(ADDED["mean"], rel=0.02)


def test_the_set_is_whole_and_found_by_its_name() -> None:
    paths = demo.transcoder_paths()
    assert [path.name for path in paths] == [f"layer_{layer}_transcoder_2k" for layer in LAYERS]
    assert {path.parent for path in paths} == {demo.transcoders_path()}
    assert set(paths) <= set(demo.sae_paths().values())
    assert named_sae("layer_3_transcoder_2k")[0] == str(paths[3])
    assert {str(path) for path in paths} <= {entry.path for entry in list_saes(demo.NAME)}
    for layer, path in enumerate(paths):
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
        assert facts["hf_hook_point_in"] == f"model.layers.{layer}.mlp.input"
        assert facts["dead_share"] == 0


def test_the_set_goes_to_circuit_tracer_and_comes_back(tmp_path: Path) -> None:
    saes = [load_sae(demo.transcoder_paths()[layer]) for layer in (0, 5)]
    folder = write_circuit_tracer_set(saes, tmp_path / "set")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "layer_0.safetensors",
        "layer_5.safetensors",
    ]
    x = np.random.default_rng(0).normal(size=(20, 384))
    for layer in (0, 5):
        stored = load_file(folder / f"layer_{layer}.safetensors")
        assert {array.dtype for array in stored.values()} == {np.dtype(np.float32)}
        pre = x @ stored["W_enc"].T + stored["b_enc"]
        z = np.where(pre > stored["activation_function.threshold"], np.maximum(pre, 0), 0)
        assert z @ stored["W_dec"] + stored["b_dec"] == pytest.approx(given(layer, x)[0], abs=1e-5)
        back = load_sae(folder / f"layer_{layer}.safetensors")
        assert (back.info.layer, back.info.site, back.info.site_out) == (layer, "mlp_in", "mlp_out")


def test_the_set_opens_as_one_for_graphs() -> None:
    found = open_transcoders(demo.NAME)
    assert found.name == "demo"
    assert tuple(found.layers) == tuple(LAYERS)
    assert (found.reads, found.writes) == ("mlp_in", "mlp_out")


def test_what_circuit_tracers_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    info = SAEInfo("", "top", "", "topk_transcoder", "mlp_in", 0, 0, 0, "", site_out="mlp_out", layer_out=0, k=2)
    weights = Weights(
        w_enc=in_memory("w_enc", np.eye(4)), w_dec=in_memory("w_dec", np.eye(4)), b_dec=in_memory("b_dec", np.zeros(4)),
        vectors={"b_enc": in_memory("b_enc", np.zeros(4))},
    )  # fmt: skip
    one = build(Definition(activation="topk", k=2), weights, info)
    with pytest.raises(LensError, match="more than ReLU"):
        write_circuit_tracer_set([one], tmp_path)
