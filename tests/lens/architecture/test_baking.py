"""Steering as weights: what is baked gives what live steering gives, in plain mlx-lm, on several architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import Add, ProjectOut
from lens_tui.lens.architecture.baking import bake_into, plan_bake
from lens_tui.lens.architecture.weights import matrix
from lens_tui.lens.model import LensModel
from lens_tui.records import ClampFeature, Intervention, LensError, NormMatch
from lens_tui.records.gates import Gate, monitor_of

from .. import architectures, tiny

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": tiny.VOCAB,
}


def qwen3(**how: Any) -> Any:
    """As the bundled model: no biases, norms of queries and keys, a tied head."""
    more = {"tie_word_embeddings": True, "rope_theta": 1e4, "max_position_embeddings": 128}
    return tiny.finished(
        tiny.settle(tiny._model("qwen3", **SMALL, **more), 2), how.get("dtype", mx.float32), how.get("bits", 0)
    )


def gemma() -> Any:
    return tiny.settle(tiny._model("gemma", **SMALL), 2)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "qwen3": qwen3,
    "gemma": gemma,
    "gpt2": lambda: architectures.make("gpt2"),
}
IDS = mx.array([tiny.IDS])


def log_probs(logits: Any) -> Any:
    x = np.array(logits.astype(mx.float32), np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def vector(lens: LensModel, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=lens.d_model)


def apart(model: Any, kind: str, *records: Intervention) -> tuple[float, float, list[str]]:
    """How far baked weights, run by mlx-lm's own class, are from live steering; and how far that moved the model."""
    lens = LensModel.from_model(model)
    plan = plan_bake(lens, records)
    plain = log_probs(model(IDS))
    with lens.intervene(*plan.live):
        live = log_probs(lens.forward(IDS))
    done = bake_into(lens, plan, {"model_type": kind})
    baked = log_probs(model(IDS))
    return float(np.abs(baked - live).max()), float(np.abs(live - plain).max()), done.where


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("layer", "site"), [(1, "resid_post"), (2, "resid_pre"), (0, "resid_pre"), (1, "mlp_out")])
def test_what_is_added_is_a_part_of_the_weights(kind: str, layer: int, site: str) -> None:
    model = MODELS[kind]()
    lens = LensModel.from_model(model)
    delta, moved, where = apart(model, kind, Add(id="a", layer=layer, site=site, vector=vector(lens), scale=0.7))
    assert delta < 1e-4
    assert moved > 0.1
    assert len(where) >= 1


def test_several_vectors_share_the_neurons_of_their_blocks() -> None:
    model = qwen3()
    lens = LensModel.from_model(model)
    records = [Add(id=f"a{at}", layer=at, vector=vector(lens, at), scale=0.5) for at in (0, 2)]
    delta, moved, _ = apart(model, "qwen3", *records, Add(id="b", layer=2, vector=vector(lens, 9), scale=-0.4))
    assert delta < 1e-4
    assert moved > 0.1
    assert {layer.mlp.gate_proj.weight.shape[0] for layer in model.layers} == {128 + 2 * 64}


def test_an_attention_gets_a_bias_where_the_architecture_has_one() -> None:
    lens = LensModel.from_model(tiny.llama())
    record = Add(id="a", layer=1, site="attn_out", vector=vector(lens), scale=0.7)
    delta, moved, where = apart(lens.model, "llama", record)
    assert delta < 1e-4
    assert moved > 0.1
    assert "attention_bias" in where[0]
    with pytest.raises(LensError, match="no bias"):
        apart(qwen3(), "qwen3", record)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_projection_is_taken_out_of_all_that_writes(kind: str) -> None:
    model = MODELS[kind]()
    lens = LensModel.from_model(model)
    one, two = vector(lens, 1), vector(lens, 2)
    records = [ProjectOut(id="p", layer=1, vector=one), ProjectOut(id="q", layer=2, vector=two)]
    delta, moved, _ = apart(model, kind, *records, Add(id="a", layer=1, vector=vector(lens, 3), scale=0.5))
    assert delta < 1e-4
    assert moved > 0.1


def test_nothing_of_a_direction_that_is_taken_out_is_left_in_the_stream() -> None:
    lens = LensModel.from_model(tiny.llama())
    direction: Any = vector(lens) / np.linalg.norm(vector(lens))
    bake_into(lens, plan_bake(lens, [ProjectOut(id="p", layer=1, vector=direction)]), {"model_type": "llama"})
    again = LensModel.from_model(lens.model)
    for layer in range(again.n_layers):
        stream = np.array(again.residuals(list(tiny.IDS), layer))
        assert np.abs(stream @ direction).max() < 1e-5 * np.abs(stream).max()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, 0), (mx.float32, 8)])
def test_models_in_bfloat16_and_packed_ones_stay_what_they_are(kind: str, dtype: mx.Dtype, bits: int) -> None:
    model = (tiny.llama if kind == "llama" else qwen3)(dtype=dtype, bits=bits)
    before = [np.array(matrix(layer.mlp.down_proj))[:, :128] for layer in model.layers]
    lens = LensModel.from_model(model)
    delta, moved, _ = apart(model, kind, Add(id="a", layer=1, vector=vector(lens), scale=0.7))
    assert delta < 0.3  # nats: the model's own rounding of logits as large as these
    assert moved > 4 * delta
    assert type(model.layers[0].mlp.down_proj).__name__ == ("QuantizedLinear" if bits else "Linear")
    for was, layer in zip(before, model.layers, strict=True):
        np.testing.assert_array_equal(np.array(matrix(layer.mlp.down_proj))[:, :128], was)


def test_a_projection_out_of_packed_weights_is_within_their_rounding() -> None:
    model = tiny.llama(bits=8)
    lens = LensModel.from_model(model)
    delta, moved, _ = apart(model, "llama", ProjectOut(id="p", layer=1, vector=vector(lens)))
    assert delta < 0.35
    assert moved > 3 * delta


def test_what_is_no_weight_is_refused_with_the_reason() -> None:
    lens = LensModel.from_model(tiny.llama())
    direction = vector(lens)
    add = Add(id="a", layer=1, vector=direction, scale=1.0)
    gate = Gate(monitor_of(add.vector), 0.5)
    refused: list[tuple[Intervention, str]] = [
        (NormMatch(id="n", layer=1, vector=direction, scale=0.1), "norm_match adds depends on what the stream holds"),
        (ClampFeature(id="c", layer=1, sae="s", feature=1, value=2.0), "clamp_feature adds depends"),
        (Add(id="g", layer=1, vector=direction, scale=1.0, positions="generated"), "weights act on every token"),  # type: ignore[arg-type]
        (Add(id="h", layer=1, vector=direction, scale=1.0, gate=gate), "behind a gate"),
        (Add(id="k", layer=1, site="attn_out_normed", vector=direction, scale=1.0), "no bias of a block gives"),
    ]
    for record, says in refused:
        with pytest.raises(LensError, match=says):
            plan_bake(lens, [record])
    with pytest.raises(LensError, match="nothing to bake"):
        plan_bake(lens, [])


def test_architectures_without_a_weight_for_it_are_refused_and_stay_as_they_were() -> None:
    for model, kind, record, says in (
        (tiny.gemma3(), "gemma3_text", Add, "norms what its MLP gives"),
        (gemma(), "gemma", ProjectOut, "unembedding is its embedding"),
        (architectures.make("gpt2"), "gpt2", ProjectOut, "unembedding is its embedding"),
    ):
        lens = LensModel.from_model(model)
        before = np.array(lens.forward(IDS))
        made: Any = record
        more = {"scale": 0.5} if record is Add else {}
        with pytest.raises(LensError, match=says):
            bake_into(lens, plan_bake(lens, [made(id="a", layer=1, vector=vector(lens), **more)]), {"model_type": kind})
        np.testing.assert_array_equal(np.array(lens.forward(IDS)), before)
