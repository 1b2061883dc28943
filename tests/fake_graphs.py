"""Attribution graphs for tests of the screen: the same question in, the same graph out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.attribution_graph import (
    AttributionGraph,
    EdgeCheck,
    GraphNode,
    graph_scores,
    prune_graph,
    with_influence,
)
from lens_tui.records.cause_plan import GraphFound, GraphPlan
from lens_tui.records.graph_file import embedding_id, error_id, feature_id, logit_id, read_graph, write_graph
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.fake_words import noise, split, token_id

LAYERS, PATH = 8, "/saes/layer_4"
GraphJob = jobs.KeepGraph | jobs.MakeGraph | jobs.PruneGraph | jobs.ReadGraph | jobs.WriteGraph | jobs.CheckNode
LABELS = ("says where", "begins a tale", "promotes “ door” “ room”", "", "an old person")


def fake_graph(number: int, job: GraphJob) -> list[ev.Event]:
    """The events of a job."""
    match job:
        case jobs.KeepGraph():
            return []
        case jobs.MakeGraph(plan, kept):
            if not plan.prompt:
                raise LensError("There is no prompt.", "Write one.")
            whole = whole_graph(plan)
            saes = dict.fromkeys(range(LAYERS), PATH)
            found = GraphFound(plan, whole, whole, graph_scores(whole), 2e-6, saes=saes, kept=kept)
            return [ev.Progress(number, "rows"), ev.GraphMade(number, _pruned(found, plan))]
        case jobs.PruneGraph(found, plan):
            return [ev.GraphMade(number, _pruned(found, plan))]
        case jobs.ReadGraph(path):
            graph = read_graph(path)
            return [ev.GraphMade(number, GraphFound(GraphPlan(graph.prompt, nodes=1.0), graph, graph, file=path))]
        case jobs.WriteGraph(graph, path):
            write_graph(graph, path)
            return [ev.GraphWritten(number, path)]
        case jobs.CheckNode(found, node, targets, factor):
            if found.file:
                raise LensError("This graph was read from a file.", "Make it here.")
            return [ev.NodeChecked(number, found, _check(found.whole, node, targets, factor))]


def _pruned(found: GraphFound, plan: GraphPlan) -> GraphFound:
    keep = frozenset(found.whole.pinned)
    return replace(found, plan=plan, pruned=prune_graph(found.whole, plan.nodes, plan.edges, keep))


def whole_graph(plan: GraphPlan) -> AttributionGraph:
    """A graph of the prompt's words: every node acts on some that come behind it."""
    return _graph(plan.prompt)


@cache
def _graph(prompt: str) -> AttributionGraph:
    tokens = ("<s>", *split(prompt))
    last = len(tokens) - 1
    nodes = [
        GraphNode(embedding_id(token_id(text), at), "embedding", -1, at, token_id(text), f'Emb: "{text}"')
        for at, text in enumerate(tokens)
    ]
    for layer in range(LAYERS):
        for at in range(1, len(tokens)):
            for some in range(int(6 * noise(prompt, layer, at)) + (at == last)):
                feature = int(2048 * noise("feature", prompt, layer, at, some))
                label = LABELS[feature % len(LABELS)]
                value = round(1 + 9 * noise("activation", feature), 3)
                name = feature_id(layer, feature, at)
                nodes.append(GraphNode(name, "feature", layer, at, feature, label, activation=value))
            nodes.append(GraphNode(error_id(layer, at, {node.id for node in nodes}), "error", layer, at))
    nodes += [
        GraphNode(
            logit_id(LAYERS, token_id(text), last), "logit", LAYERS, last, token_id(text),
            f'Output "{text}" (p={chance})', probability=chance,
        )
        for text, chance in ((" went", 0.31), (" saw", 0.12), (" the", 0.05))
    ]  # fmt: skip
    nodes = list({node.id: node for node in nodes}.values())
    sources, targets, weights = [], [], []
    for end, target in enumerate(nodes):
        if target.kind not in ("feature", "logit"):
            continue
        for start, source in enumerate(nodes):
            if source.kind == "logit" or source.layer >= target.layer or source.position > target.position:
                continue
            draw = noise("edge", source.id, target.id)
            if draw < 0.35:
                sources.append(start)
                targets.append(end)
                far = 0.2 if source.kind == "error" else 1.0
                weights.append(far * (4 * draw - 0.5) * (3.0 if source.position == target.position else 0.6))
    return with_influence(
        AttributionGraph(
            "demo", prompt, tokens, LAYERS, tuple(nodes), np.array(sources, np.int32),
            np.array(targets, np.int32), np.array(weights, np.float32), scan="fake", slug="fake",
            n_active=sum(node.kind == "feature" for node in nodes),
        )
    )  # fmt: skip


def _check(graph: AttributionGraph, node: str, targets: tuple[str, ...], factor: float) -> EdgeCheck:
    direct = [graph.weight(graph.places[node], graph.places[name]) * (factor - 1.0) for name in targets]
    parts = [tuple(scale * each for each in direct) for scale in (1.0, 1.0, 1.5, 1.4, 0.9)]
    return EdgeCheck(node, factor, targets, *parts)
