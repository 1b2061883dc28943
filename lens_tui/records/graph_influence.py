"""How much of the logits goes through each node and edge of an attribution graph, and the graph without the rest.

Ameisen et al. 2025 ("Circuit Tracing", appendix on pruning). ``A`` has the sizes of the direct effects on each target,
divided by their sum; the influence of nodes on the logits, which weigh ``w``, is ``w (A + A² + ...)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .attribution_graph import AttributionGraph, Doubles, Places
from .errors import LensError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
else:
    Mask = Any

NODES, EDGES = 0.8, 0.98
"""The shares of influence that pruning keeps where nobody says otherwise, as other tools do."""


@dataclass(frozen=True, slots=True)
class GraphScores:
    """How much of the graph is features rather than errors.

    ``replacement``: of the influence on the logits that begins in embeddings or errors, the share that begins in
    embeddings. ``completeness``: over all nodes, weighted by their influence, the share of what acts on them directly
    that is no error. 1 is a graph without errors.
    """

    replacement: float
    completeness: float


def normalised(targets: Places, weights: Any, count: int) -> Doubles:
    """The size of each effect over the sum of sizes on its target, ``(edges,)``."""
    import numpy as np

    sizes = np.abs(np.asarray(weights, np.float64))
    total = np.bincount(targets, weights=sizes, minlength=count)
    found: Doubles = sizes / np.maximum(total, 1e-10)[targets]
    return found


def influences(sources: Places, targets: Places, shares: Doubles, start: Doubles) -> Doubles:
    """``start (A + A² + ...)``: what each node passes on of what its targets have, ``(nodes,)``.

    Args:
        sources: Places of the edges' sources.
        targets: Places of their targets.
        shares: Of the edges, as :func:`normalised` gives them.
        start: What each node has to begin with: the weights of the logits, else 0.

    Raises:
        LensError: For a graph with a circle, in which influence has no end.
    """
    import numpy as np

    now: Doubles = start
    total = np.zeros_like(start)
    for _ in range(len(start) + 1):
        now = np.bincount(sources, weights=shares * now[targets], minlength=len(start)).astype(np.float64)
        if not now.any():
            return total
        total = total + now
    raise LensError("This graph has nodes that act on each other in a circle.", "Influence is defined without.")


def logit_weights(graph: AttributionGraph) -> Doubles:
    """What each node counts as an end, ``(nodes,)``: a logit by its probability, others 0."""
    import numpy as np

    return np.array([(node.probability or 0.0) if node.kind == "logit" else 0.0 for node in graph.nodes], np.float64)


def node_influence(graph: AttributionGraph) -> Doubles:
    """The influence of each node on the logits, ``(nodes,)``; logits have none but through others."""
    shares = normalised(graph.targets, graph.weights, len(graph.nodes))
    return influences(graph.sources, graph.targets, shares, logit_weights(graph))


def cumulative(scores: Doubles) -> Doubles:
    """For each score the share of all of them that it and the larger ones have together."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    found = np.zeros(len(scores))
    total = scores.sum()
    if total > 0:
        found[order] = np.minimum(np.cumsum(scores[order]) / total, 1.0)
    return found


def least_kept(scores: Doubles, share: float) -> float:
    """The smallest score among the largest ones that together have a share of all."""
    import numpy as np

    if not len(scores) or not scores.sum() > 0:
        return 0.0
    ordered = np.sort(scores)[::-1]
    place = int(np.searchsorted(np.cumsum(ordered) / ordered.sum(), share))
    return float(ordered[min(place, len(ordered) - 1)])


def with_influence(graph: AttributionGraph) -> AttributionGraph:
    """The graph whose nodes say their (cumulative) ``influence``."""
    scores = cumulative(node_influence(graph))
    nodes = tuple(replace(node, influence=float(score)) for node, score in zip(graph.nodes, scores, strict=True))
    return replace(graph, nodes=nodes)


def prune_graph(
    graph: AttributionGraph, nodes: float = NODES, edges: float = EDGES, keep: frozenset[str] = frozenset()
) -> AttributionGraph:
    """The part of a graph that carries most of the influence on its logits.

    Nodes are kept, the most influential first, until they have a share of all influence; then edges likewise, by the
    influence of their target times their share of it, in the graph of the nodes that were kept. Features and errors
    that then act on nothing, and features that nothing acts on, go as well. Embeddings and logits stay.

    Args:
        graph: The whole graph.
        nodes: The share of influence, from 0 to 1, that nodes keep.
        edges: The share that edges keep.
        keep: Ids of nodes that stay, whatever their influence (pinned ones).

    Raises:
        LensError: For shares outside 0 to 1, and a graph with a circle.
    """
    import numpy as np

    for share in (nodes, edges):
        if not 0.0 <= share <= 1.0:
            raise LensError(f"A graph cannot be pruned at {share:g}.", "Give a share from 0 to 1.")
    weights = logit_weights(graph)
    scores = node_influence(graph)
    kinds = np.array([node.kind for node in graph.nodes])
    stays = (kinds == "embedding") | (kinds == "logit") | np.array([node.id in keep for node in graph.nodes], bool)
    kept = (scores >= least_kept(scores, nodes)) | stays
    inside = kept[graph.sources] & kept[graph.targets]
    sizes = np.where(inside, graph.weights, 0.0)
    shares = normalised(graph.targets, sizes, len(graph.nodes))
    through = influences(graph.sources, graph.targets, shares, weights) + weights
    edge_scores = shares * through[graph.targets]
    edge_kept = (edge_scores >= least_kept(edge_scores, edges)) & inside
    kept = _connected(graph, kept, edge_kept, stays, kinds == "feature")
    small = graph.cut(kept, edge_kept)
    cut = cumulative(scores)[kept]
    named = tuple(replace(node, influence=float(at)) for node, at in zip(small.nodes, cut, strict=True))
    return replace(small, nodes=named, node_threshold=nodes, edge_threshold=edges)


def _connected(graph: AttributionGraph, kept: Mask, edges: Mask, stays: Mask, features: Mask) -> Mask:
    """The nodes that are left when those without an end or a beginning go, one layer of them after another."""
    import numpy as np

    while True:
        alive = edges & kept[graph.sources] & kept[graph.targets]
        count = len(graph.nodes)
        has_target = np.bincount(graph.sources[alive], minlength=count) > 0
        has_source = np.bincount(graph.targets[alive], minlength=count) > 0
        left = kept & (stays | (has_target & (has_source | ~features)))
        if (left == kept).all():
            return left
        kept = left


def graph_scores(graph: AttributionGraph) -> GraphScores:
    """How much of an unpruned graph is features rather than errors."""
    import numpy as np

    weights, scores = logit_weights(graph), node_influence(graph)
    kinds = np.array([node.kind for node in graph.nodes])
    begun, lost = float(scores[kinds == "embedding"].sum()), float(scores[kinds == "error"].sum())
    shares = normalised(graph.targets, graph.weights, len(graph.nodes))
    wrong = np.where(kinds[graph.sources] == "error", shares, 0.0)
    errors = np.bincount(graph.targets, weights=wrong, minlength=len(graph.nodes))
    through = scores + weights
    whole = float(through.sum())
    complete = float(((1.0 - errors) * through).sum()) / whole if whole > 0 else 1.0
    return GraphScores(begun / (begun + lost) if begun + lost > 0 else 1.0, complete)
