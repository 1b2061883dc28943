"""Attribution graphs as records: influence and pruning against dense algebra, and the JSON of other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.attribution_graph import (
    AttributionGraph,
    GraphNode,
    GraphSums,
    Supernode,
    cumulative,
    graph_scores,
    least_kept,
    node_influence,
    prune_graph,
    with_influence,
)
from lens_tui.records.graph_file import error_id, graph_json, paired, read_graph, unpaired, write_graph

LAYERS, TOKENS = 3, 4


def small_graph(seed: int = 0) -> AttributionGraph:
    """Five features, twelve errors, four embeddings and two logits with random effects, some of them none."""
    rng = np.random.default_rng(seed)
    nodes = [
        GraphNode(f"{layer}_{feature}_{at}", "feature", layer, at, feature, "a label", 1.5)
        for layer, feature, at in ((0, 7, 1), (0, 9, 2), (1, 4, 2), (2, 40, 3), (2, 41, 3))
    ]
    nodes += [
        GraphNode(f"0_{layer}_{at}", "error", layer, at, label="error")
        for layer in range(LAYERS)
        for at in range(TOKENS)
    ]
    nodes += [GraphNode(f"E_{at + 50}_{at}", "embedding", -1, at, at + 50) for at in range(TOKENS)]
    nodes += [
        GraphNode(f"{LAYERS + 1}_{token}_3", "logit", LAYERS, TOKENS - 1, token, probability=share)
        for token, share in ((60, 0.5), (61, 0.2))
    ]
    pairs = []
    for target, node in enumerate(nodes):
        if node.kind in ("feature", "logit"):
            for source, other in enumerate(nodes):
                if other.kind != "logit" and other.layer < node.layer and other.position <= node.position:
                    pairs.append((source, target))
    weights = rng.normal(size=len(pairs)).astype(np.float32)
    sources, targets = np.array(pairs, np.int32).T
    return AttributionGraph(
        "tiny", "a b c d", ("a", " b", " c", " d"), LAYERS, tuple(nodes), sources, targets, weights, scan="tiny-set",
        pinned=("1_4_2",), supernodes=(Supernode("two", ("0_7_1", "0_9_2")),), n_active=9,
        slug="small", generator="mlx-lens-tui 0.2.0",
    )  # fmt: skip


def dense(graph: AttributionGraph) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows are targets, columns sources."""
    matrix = np.zeros((len(graph.nodes), len(graph.nodes)))
    matrix[graph.targets, graph.sources] = graph.weights
    return matrix


def test_influence_is_the_inverse_written_out() -> None:
    graph = small_graph()
    sizes = abs(dense(graph))
    shares = sizes / np.maximum(sizes.sum(axis=1, keepdims=True), 1e-10)
    weights = np.array([node.probability or 0.0 for node in graph.nodes])
    expected = weights @ np.linalg.inv(np.eye(len(weights)) - shares) - weights
    np.testing.assert_allclose(node_influence(graph), expected, atol=1e-12)


def test_pruning_is_the_definition_written_out() -> None:
    for seed in range(5):
        graph = small_graph(seed)
        matrix = dense(graph)
        count = len(graph.nodes)
        kinds = np.array([node.kind for node in graph.nodes])
        weights = np.array([node.probability or 0.0 for node in graph.nodes])

        def influence(of: Any, weights: Any = weights, count: int = count) -> tuple[Any, Any]:
            shares = abs(of) / np.maximum(abs(of).sum(axis=1, keepdims=True), 1e-10)
            return shares, weights @ np.linalg.inv(np.eye(count) - shares) - weights

        def floor(scores: Any, share: float) -> float:
            ordered = np.sort(scores)[::-1]
            total = np.cumsum(ordered) / ordered.sum()
            return float(ordered[min(int((total < share).sum()), len(ordered) - 1)])

        scores = influence(matrix)[1]
        stays = (kinds == "embedding") | (kinds == "logit")
        kept = (scores >= floor(scores, 0.6)) | stays
        matrix[~kept], matrix[:, ~kept] = 0, 0
        shares, through = influence(matrix)
        edge_scores = shares * (through + weights)[:, None]
        edges = edge_scores >= floor(edge_scores.ravel(), 0.9)
        while True:
            edges[~kept], edges[:, ~kept] = False, False
            left = kept & (stays | (edges.any(axis=0) & (edges.any(axis=1) | (kinds != "feature"))))
            if (left == kept).all():
                break
            kept = left
        small = prune_graph(graph, 0.6, 0.9)
        assert [node.id for node in small.nodes] == [
            node.id for node, keep in zip(graph.nodes, kept, strict=True) if keep
        ]
        found = {(small.nodes[a].id, small.nodes[b].id) for a, b in zip(small.sources, small.targets, strict=True)}
        assert found == {(graph.nodes[a].id, graph.nodes[b].id) for b, a in np.argwhere(edges)}
        assert 0 < len(found) < graph.n_edges


def test_pruning_keeps_what_is_asked_for_and_says_how() -> None:
    graph = small_graph()
    hard = prune_graph(graph, 0.1, 0.5)
    assert "1_4_2" not in hard.places
    assert hard.pinned == ()
    held = prune_graph(graph, 0.1, 0.5, keep=frozenset({"1_4_2"}))
    assert "1_4_2" in held.places
    assert (held.node_threshold, held.edge_threshold, held.pinned) == (0.1, 0.5, ("1_4_2",))
    with pytest.raises(LensError, match=r"pruned at 1\.5"):
        prune_graph(graph, 1.5)


def test_cumulative_and_floor() -> None:
    scores = np.array([1.0, 5.0, 4.0])
    np.testing.assert_allclose(cumulative(scores), [1.0, 0.5, 0.9])
    assert least_kept(scores, 0.8) == 4.0
    assert least_kept(scores, 1.0) == 1.0
    named = with_influence(small_graph())
    assert min(node.influence or 0 for node in named.nodes if node.kind != "logit") > 0


def test_scores_are_the_definition_written_out() -> None:
    graph = small_graph()
    kinds = np.array([node.kind for node in graph.nodes])
    sizes = abs(dense(graph))
    shares = sizes / np.maximum(sizes.sum(axis=1, keepdims=True), 1e-10)
    weights = np.array([node.probability or 0.0 for node in graph.nodes])
    whole = weights @ np.linalg.inv(np.eye(len(weights)) - shares)
    scores = whole - weights
    tokens, errors = scores[kinds == "embedding"].sum(), scores[kinds == "error"].sum()
    found = graph_scores(graph)
    assert found.replacement == pytest.approx(tokens / (tokens + errors))
    assert found.completeness == pytest.approx(
        (whole * (1 - shares[:, kinds == "error"].sum(axis=1))).sum() / whole.sum()
    )


def test_sums_edges_and_neighbours() -> None:
    graph = small_graph()
    totals = dense(graph).sum(axis=1)
    targets = np.array([node.kind in ("feature", "logit") for node in graph.nodes])
    value = np.where(targets, totals + 0.75, np.nan)
    bias = np.where(targets, 0.5, np.nan)
    told = replace(graph, sums=GraphSums(value, {"encoder": bias}, np.where(targets, 0.25, np.nan)))
    errors = told.sum_errors()
    assert np.isnan(errors[~targets]).all()
    np.testing.assert_allclose(errors[targets], 0, atol=1e-6)
    last = len(graph.nodes) - 1
    strongest = graph.into(last, 2)
    row = dense(graph)[last]
    assert [at for at, _ in strongest] == np.argsort(-abs(row))[:2].tolist()
    source, weight = strongest[0]
    assert (last, weight) in graph.out_of(source)
    assert graph.weight(source, last) == pytest.approx(weight)
    assert graph.weight(last, source) == 0.0


def test_a_graph_comes_back_from_its_file(tmp_path: Path) -> None:
    graph = prune_graph(small_graph(), 0.9, 0.95, keep=frozenset({"1_4_2", "0_7_1"}))
    write_graph(graph, tmp_path / "g.json")
    back = read_graph(tmp_path / "g.json")
    assert back.nodes == graph.nodes
    for name in ("sources", "targets", "weights"):
        np.testing.assert_array_equal(getattr(back, name), getattr(graph, name))
    plain = ("model", "prompt", "tokens", "n_layers", "scan", "slug", "pinned", "supernodes", "n_active")
    assert [getattr(back, name) for name in plain] == [getattr(graph, name) for name in plain]
    assert (back.node_threshold, back.edge_threshold, back.generator) == (0.9, 0.95, "mlx-lens-tui 0.2.0")


def test_the_file_is_what_other_tools_read() -> None:
    made = graph_json(small_graph())
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= made["metadata"].keys()
    assert made["qParams"]["supernodes"] == [["two", "0_7_1", "0_9_2"]]
    by_id = {node["node_id"]: node for node in made["nodes"]}
    needed = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
    assert all(needed <= node.keys() for node in made["nodes"])
    feature, error, token, logit = (by_id[name] for name in ("2_40_3", "0_2_1", "E_52_2", "4_60_3"))
    assert (feature["feature"], feature["layer"], feature["jsNodeId"]) == (42 * 43 // 2 + 40, "2", "2_40-0")
    assert (error["feature"], error["layer"], error["feature_type"]) == (-1, "2", "mlp reconstruction error")
    assert (token["feature"], token["layer"], token["jsNodeId"]) == (2, "E", "E_52-2")
    assert (logit["layer"], logit["jsNodeId"], logit["token_prob"]) == ("4", "L_60-3", 0.5)
    assert [node["node_id"] for node in made["nodes"] if node["is_target_logit"]] == ["4_60_3"]
    json.dumps(made, allow_nan=False)


def test_an_error_never_takes_the_id_of_a_feature() -> None:
    assert error_id(2, 1, {"0_2_2"}) == "0_2_1"
    assert error_id(2, 1, {"0_2_1"}) == "error_0_2_1"
    graph = small_graph()
    twice = replace(graph, nodes=(replace(graph.nodes[0], id="0_2_1"), *graph.nodes[1:]))
    with pytest.raises(LensError, match="Two nodes of this graph have one id"):
        graph_json(twice)


def test_cantor_numbers_go_both_ways() -> None:
    for layer, feature in ((0, 0), (5, 0), (0, 5), (25, 16383), (61, 262143)):
        assert unpaired(paired(layer, feature)) == (layer, feature)


def foreign() -> dict[str, Any]:
    """A graph as another tool writes it: no pruning settings, layers as numbers, a kind that is not known here."""
    node = {"ctx_idx": 0, "clerp": "", "jsNodeId": "x", "run_idx": 0}
    return {
        "metadata": {"slug": "s", "scan": "gemma-2-2b", "prompt_tokens": ["<bos>", "\x1b[2Jhi"], "prompt": "hi"},
        "qParams": {"pinnedIds": ["3_12_1", "gone"], "supernodes": [["s", "3_12_1"], [], ["t", "gone"]]},
        "nodes": [
            {**node, "node_id": "E_2_0", "feature": 0, "layer": "E", "feature_type": "embedding"},
            {**node, "node_id": "3_12_1", "feature": paired(3, 12), "layer": 3, "ctx_idx": 1,
             "feature_type": "cross layer transcoder", "clerp": "a\x1b[31m", "activation": 2.5, "influence": 0.4},
            {**node, "node_id": "2_9_1", "feature": None, "layer": "2", "ctx_idx": 1, "feature_type": "lorsa"},
            {**node, "node_id": "27_5_1", "feature": 5, "layer": "27", "ctx_idx": 1, "feature_type": "logit",
             "token_prob": 0.25},
        ],
        "links": [
            {"source": "E_2_0", "target": "3_12_1", "weight": 1},
            {"source": "3_12_1", "target": "27_5_1", "weight": -2.0},
        ],
    }  # fmt: skip


def put(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "g.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_graph_made_elsewhere_is_read(tmp_path: Path) -> None:
    graph = read_graph(put(tmp_path, foreign()))
    assert (graph.n_layers, graph.scan, graph.model) == (26, "gemma-2-2b", "gemma-2-2b")
    token, feature, other, logit = graph.nodes
    assert (token.kind, token.layer, token.feature) == ("embedding", -1, 2)
    assert (feature.layer, feature.feature, feature.activation, feature.influence) == (3, 12, 2.5, 0.4)
    assert other.kind == "other"
    assert (logit.layer, logit.probability) == (26, 0.25)
    assert graph.pinned == ("3_12_1",)
    assert graph.supernodes == (Supernode("s", ("3_12_1",)),)
    assert graph.weights.tolist() == [1.0, -2.0]
    np.testing.assert_allclose(node_influence(graph), [0.25, 0.25, 0, 0])


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (("nodes",), {}, "nodes is no list"),
        (("nodes", 1), 3, "Node 1 of .* no object"),
        (("nodes", 1, "node_id"), "E_2_0", "two nodes with the id 'E_2_0'"),
        (("nodes", 1, "node_id"), "", "has no node_id"),
        (("nodes", 1, "ctx_idx"), 2, "at no token of the prompt"),
        (("nodes", 1, "layer"), "x", "of no layer"),
        (("links", 0, "source"), "nobody", "names a node that is not there: nobody"),
        (("links", 0, "source"), ["E_2_0"], "names a node that is not there"),
        (("links", 0, "weight"), "1", "no weight that is a number"),
        (("metadata",), [1], "metadata is no object"),
        (("metadata", "prompt_tokens"), [1], "prompt_tokens are no texts"),
    ],
    ids=lambda value: None,
)
def test_what_is_wrong_with_a_graph_is_one_sentence(tmp_path: Path, at: Any, value: Any, says: str) -> None:
    whole = foreign()
    inner: Any = whole
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    with pytest.raises(LensError, match=says) as error:
        read_graph(put(tmp_path, whole))
    assert "\x1b" not in str(error.value)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{}", "{", '{"metadata": {}, "nodes": []}'):
        with pytest.raises(LensError):
            read_graph(put(tmp_path, text))
    circle = foreign()
    circle["links"].append({"source": "3_12_1", "target": "E_2_0", "weight": 1.0})
    with pytest.raises(LensError, match="in a circle"):
        node_influence(read_graph(put(tmp_path, circle)))


@pytest.mark.parametrize(
    ("said", "name", "version"),
    [
        ("circuit-tracer by Hanna & Piotrowski 3f0965b6", "circuit-tracer by Hanna & Piotrowski", "3f0965b6"),
        ("mlx-lens-tui 0.2.0", "mlx-lens-tui", "0.2.0"),
        ("circuit-tracer by Hanna", "circuit-tracer by Hanna", ""),
        ("tracer", "tracer", ""),
        ("", "", ""),
    ],
)
def test_who_made_a_graph_is_written_as_it_was_read(tmp_path: Path, said: str, name: str, version: str) -> None:
    write_graph(replace(small_graph(), generator=said), tmp_path / "g.json")
    made = json.loads((tmp_path / "g.json").read_text())["metadata"]["info"]["generator"]
    assert (made["name"], made["version"], "url" in made) == (name, version, name == "mlx-lens-tui")
    assert read_graph(tmp_path / "g.json").generator == said
