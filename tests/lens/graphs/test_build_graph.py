"""Attribution graphs against the frozen model written out in NumPy: every edge, every sum, on five families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.graphs.build_graph import attribution_graph
from lens_tui.records import LensError
from lens_tui.records.attribution_graph import AttributionGraph, LogitTarget, node_influence, prune_graph
from tests.lens import tiny
from tests.lens.graphs.frozen_numpy import Held, RandomTranscoders, attended, given, held, propagated, read
from tests.lens.numpy_models import Array

IDS = (1, 17, 5, 80, 33, 2)
CASES: list[Any] = [
    pytest.param(tiny.llama, {}, id="llama"),
    pytest.param(tiny.llama, {"crosses": True, "reads": "resid_mid"}, id="llama-cross-layer"),
    pytest.param(tiny.llama, {"only": (1, 2)}, id="llama-two-layers"),
    pytest.param(tiny.llama, {"silent": (0, 2)}, id="llama-without-a-feature-in-two-layers"),
    pytest.param(tiny.llama, {"silent": (0,), "crosses": True}, id="llama-cross-layer-without-a-feature-in-the-first"),
    pytest.param(tiny.qwen2, {"reads": "mlp_normed"}, id="qwen2"),
    pytest.param(tiny.qwen3, {}, id="qwen3"),
    pytest.param(tiny.gemma2, {"writes": "mlp_added", "reads": "mlp_normed"}, id="gemma2"),
    pytest.param(tiny.gemma3, {}, id="gemma3"),
    pytest.param(tiny.gemma3, {"crosses": True, "writes": "mlp_added"}, id="gemma3-cross-layer"),
]


def stream_of(at: Held, made: RandomTranscoders, graph: AttributionGraph, node: int) -> dict[int, Array]:
    """What a source adds to the stream, by the layer behind which it does (-1: the embedding)."""
    source = graph.nodes[node]
    zero = np.zeros_like(at.embedded)
    if source.kind == "embedding":
        zero[source.position] = at.embedded[source.position]
        return {-1: zero}
    if source.kind == "error":
        return {
            source.layer: given(at, made, source.layer, errors_of(at, made, graph)[source.layer] * row(zero, source))
        }
    found = {}
    for to in range(source.layer, graph.n_layers if made.crosses else source.layer + 1):
        if to in made.layers:
            added = made.w_dec[source.layer, to, source.feature].astype(np.float64) * (source.activation or 0.0)
            found[to] = given(at, made, to, row(zero, source) * added)
    return found


def row(like: Array, source: Any) -> Array:
    mask = np.zeros((len(like), 1))
    mask[source.position] = 1.0
    return mask


def errors_of(at: Held, made: RandomTranscoders, graph: AttributionGraph) -> list[Array]:
    """What features, biases and skip connections leave over of each MLP, in units of what they give."""
    found = []
    counted = (np.arange(len(IDS)) >= 1)[:, None]
    for layer in range(graph.n_layers):
        wanted = at.mlp_out[layer]
        if at.gemma and made.writes == "mlp_added":
            wanted = wanted * at.scales[layer]["mlp_post"]
        if layer in made.layers:
            skipped = read(at, made, layer, at.middle[layer]) @ made.w_skip[layer]
            wanted = wanted - (made.b_dec[layer] + skipped) * counted
            for node in graph.nodes:
                if node.kind == "feature" and (node.layer <= layer if made.crosses else node.layer == layer):
                    wanted[node.position] -= made.w_dec[node.layer, layer, node.feature] * (node.activation or 0.0)
        found.append(wanted)
    return found


def values_of(at: Held, made: RandomTranscoders, graph: AttributionGraph, streams: dict[int, Array]) -> Array:
    """The direct effect of what is in the streams on every feature and logit, ``(nodes,)``; NaN for others."""
    last, middles = propagated(at, made, streams, graph.n_layers)
    head = at.weights.get("lm_head.weight", at.weights["model.embed_tokens.weight"])
    found = np.full(len(graph.nodes), np.nan)
    for number, node in enumerate(graph.nodes):
        if node.kind == "feature":
            seen = read(at, made, node.layer, middles[node.layer])[node.position]
            found[number] = seen @ made.w_enc[node.layer, node.feature]
        elif node.kind == "logit":
            logits = (last * at.final)[-1] @ head.T
            found[number] = logits[node.feature] - logits.mean()
    return found


@pytest.mark.parametrize(("make", "how"), CASES)
def test_every_edge_is_the_frozen_model_written_out(make: Callable[[], Any], how: dict[str, Any]) -> None:
    model, made = make(), RandomTranscoders(**how)
    graph = attribution_graph(LensModel.from_model(model), IDS, made, ignored=1, most_logits=3)
    at = held(model, IDS)
    assert graph.n_active > 60
    assert len({node.id for node in graph.nodes}) == len(graph.nodes)
    assert graph.token_ids == IDS
    chosen = [n for n, node in enumerate(graph.nodes) if node.kind != "logit"]
    matrix = np.zeros((len(graph.nodes), len(graph.nodes)))
    matrix[graph.targets, graph.sources] = graph.weights
    for number in chosen[::3]:
        expected = values_of(at, made, graph, stream_of(at, made, graph, number))
        targets = ~np.isnan(expected)
        np.testing.assert_allclose(matrix[targets, number], expected[targets], atol=2e-5)
    assert np.abs(matrix).max() > 0.1


@pytest.mark.parametrize(("make", "how"), CASES)
def test_effects_and_biases_add_up_to_the_model_s_own_numbers(make: Callable[[], Any], how: dict[str, Any]) -> None:
    model, made = make(), RandomTranscoders(**how)
    graph = attribution_graph(LensModel.from_model(model), IDS, made, ignored=1, most_logits=3)
    at = held(model, IDS)
    assert graph.sums is not None
    targets = np.array([node.kind in ("feature", "logit") for node in graph.nodes])
    assert np.abs(graph.sum_errors()[targets]).max() < 1e-4
    assert np.isnan(graph.sum_errors()[~targets]).all()
    for number in np.flatnonzero(targets):
        node = graph.nodes[number]
        if node.kind == "logit":
            logits = at.logits[-1]
            expected = logits[node.feature] - logits.mean()
        else:
            seen = read(at, made, node.layer, at.middle[node.layer])[node.position]
            expected = seen @ made.w_enc[node.layer, node.feature] + made.b_enc[node.layer, node.feature]
            assert node.activation == pytest.approx(expected, abs=1e-4)
        assert graph.sums.value[number] == pytest.approx(expected, abs=1e-4)
    biases = {name: values[targets] for name, values in graph.sums.bias.items()}
    assert (np.abs(biases["attention"]).max() > 1e-3) == (make is tiny.qwen2)
    assert np.abs(biases["decoder"]).max() > 1e-3


def test_probabilities_are_those_of_the_soft_capped_logits() -> None:
    """Effects are on logits before soft-capping, weights are of the model's own distribution."""
    model = tiny.gemma2()
    graph = attribution_graph(LensModel.from_model(model), IDS, RandomTranscoders(), most_logits=4, mass=1.0)
    logits = 3.0 * np.tanh(held(model, IDS).logits[-1] / 3.0)
    chances = np.exp(logits) / np.exp(logits).sum()
    ends = [node for node in graph.nodes if node.kind == "logit"]
    assert [node.feature for node in ends] == np.argsort(-chances)[:4].tolist()
    np.testing.assert_allclose([node.probability or 0 for node in ends], np.sort(chances)[::-1][:4], rtol=1e-4)
    few = attribution_graph(LensModel.from_model(model), IDS, RandomTranscoders(), mass=float(np.sort(chances)[-1]) / 2)
    assert len([node for node in few.nodes if node.kind == "logit"]) == 1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: tiny.llama(bits=8), id="llama-8bit"),
        pytest.param(lambda: tiny.gemma3(bits=4), id="gemma3-4bit"),
        pytest.param(lambda: tiny.qwen3(dtype=mx.bfloat16), id="qwen3-bf16"),
    ],
)
def test_sums_hold_through_quantised_weights_and_half_precision(make: Callable[[], Any]) -> None:
    graph = attribution_graph(LensModel.from_model(make()), IDS, RandomTranscoders(), ignored=1)
    assert np.nanmax(np.abs(graph.sum_errors())) < 1e-4


def test_a_difference_and_a_direction_are_targets() -> None:
    lens, made = LensModel.from_model(tiny.llama()), RandomTranscoders()
    direction = tiny.unit().astype(np.float32)
    wanted = [
        LogitTarget(5),
        LogitTarget(7),
        LogitTarget(5, minus=7, weight=0.5),
        LogitTarget(direction=direction, name="x"),
    ]
    graph = attribution_graph(lens, IDS, made, targets=wanted)
    ends = [at for at, node in enumerate(graph.nodes) if node.kind == "logit"]
    one, other, both, along = ends
    matrix = np.zeros((len(graph.nodes), len(graph.nodes)))
    matrix[graph.targets, graph.sources] = graph.weights
    np.testing.assert_allclose(matrix[one] - matrix[other], matrix[both], atol=1e-5)
    assert [graph.nodes[at].feature for at in ends] == [5, 7, 99, 100]
    assert [graph.nodes[at].probability for at in (both, along)] == [0.5, 1.0]
    at = held(tiny.llama(), IDS)
    assert graph.sums is not None
    stream = at.middle[-1] + at.mlp_out[-1]
    assert graph.sums.value[along] == pytest.approx((stream * at.final)[-1] @ direction, abs=1e-4)
    assert graph.nodes[along].label == "x"


def test_a_prompt_on_which_no_feature_is_active_has_a_graph_of_tokens_and_errors() -> None:
    for made in (RandomTranscoders(bias=-1e3), RandomTranscoders(bias=-1e3, crosses=True)):
        graph = attribution_graph(LensModel.from_model(tiny.llama()), IDS, made, ignored=1, most_logits=2)
        assert {node.kind for node in graph.nodes} == {"error", "embedding", "logit"}
        assert np.nanmax(np.abs(graph.sum_errors())) < 1e-4
        kept = prune_graph(graph)
        assert {node.kind for node in kept.nodes} >= {"embedding", "logit"}


def test_the_features_with_the_most_influence_get_the_rows() -> None:
    lens, made = LensModel.from_model(tiny.llama()), RandomTranscoders()
    whole = attribution_graph(lens, IDS, made)
    part = attribution_graph(lens, IDS, made, most_features=40)
    kinds = [node.kind for node in part.nodes]
    assert kinds.count("feature") == 40
    assert part.n_active == sum(node.kind == "feature" for node in whole.nodes)
    assert np.nanmax(np.abs(part.sum_errors())) < 1e-4
    assert part.sums is not None
    assert np.nanmax(np.abs(part.sums.left_out)) > 0.01
    features = [at for at, node in enumerate(whole.nodes) if node.kind == "feature"]
    order = sorted(features, key=lambda at: -node_influence(whole)[at])
    best = {whole.nodes[at].id for at in order[:20]}
    assert len(best & part.places.keys()) >= 17
    for source, target in list(zip(part.sources, part.targets, strict=True))[::97]:
        ids = part.nodes[source].id, part.nodes[target].id
        assert part.weight(source, target) == pytest.approx(
            whole.weight(*(whole.places[name] for name in ids)), abs=1e-5
        )


def test_a_long_prompt_is_computed_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 tokens: rows are as many as their bound allows, and no array is larger than it."""
    monkeypatch.setattr("lens_tui.lens.graphs.build_graph.ROW_BYTES", 2 << 20)
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, 256).tolist()
    lens = LensModel.from_model(tiny.qwen3())
    lens.forward(ids)
    mx.reset_peak_memory()
    graph = attribution_graph(lens, ids, RandomTranscoders(width=48, bias=-2.2), most_logits=2)
    features = sum(node.kind == "feature" for node in graph.nodes)
    assert graph.n_active > 1500
    assert 64 <= features <= max(64, (2 << 20) // (4 * graph.n_active)) < graph.n_active
    assert np.nanmax(np.abs(graph.sum_errors())) < 1e-4
    assert mx.get_peak_memory() < 400 << 20
    assert len(prune_graph(graph).nodes) < len(graph.nodes)


def test_what_cannot_be_made_is_refused_with_the_reason() -> None:
    made = RandomTranscoders()
    with pytest.raises(LensError, match="attention of layer 0"):
        attribution_graph(LensModel.from_model(tiny.gemma4()), IDS, made)
    with pytest.raises(LensError, match="no known number of heads"):
        attribution_graph(LensModel.from_model(tiny.lfm2()), IDS, made)
    lens = LensModel.from_model(tiny.llama(layers=3))
    with pytest.raises(LensError, match="transcoders of 0 to 3; the model has 3 layers"):
        attribution_graph(lens, IDS, made)
    with pytest.raises(LensError, match="width is 64"):
        attribution_graph(lens, IDS, RandomTranscoders(3), targets=[LogitTarget(direction=np.ones(3, np.float32))])


def test_a_transcoder_that_is_not_linear_is_refused() -> None:
    class Bent(RandomTranscoders):
        def active(self, layer: int, x: mx.array) -> Any:
            position, feature, value = super().active(layer, x)
            return position, feature, value**2

    with pytest.raises(LensError, match="not linear where it is active"):
        attribution_graph(LensModel.from_model(tiny.llama()), IDS, Bent())


def test_a_wrong_row_is_found_by_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a part of the model left out, no graph would come of it."""
    monkeypatch.setattr(
        "lens_tui.lens.graphs.frozen_model.FrozenLayer.attend_back", lambda self, cotangent: cotangent * 0.0
    )
    with pytest.raises(LensError, match=r"direct effects on .* add up to"):
        attribution_graph(LensModel.from_model(tiny.llama()), IDS, RandomTranscoders())


def test_attention_written_out_is_the_model_s() -> None:
    """The reference itself: its parts add up to its own stream."""
    at = held(tiny.gemma3(), IDS)
    x = at.embedded + attended(at, 0, at.embedded, bias=True)
    np.testing.assert_allclose(x, at.middle[0], atol=1e-9)
