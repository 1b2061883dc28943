"""An attribution graph as plain data: what each part of a prompt's forward pass adds directly to what comes behind it.

Nodes are transcoder features, what the transcoders leave over of each MLP (errors), embeddings and logits. An edge is a
direct effect: what the source adds to the target's value with attention patterns, norms' denominators and which
features are active held fixed (Ameisen et al. 2025, "Circuit Tracing"). Values are linear in their sources then, and
the effects on a target, with its biases, add up to it.

How much of the logits goes through each node and edge, and the graph without the rest, is as in that paper's appendix
on pruning. ``A`` has the sizes of the direct effects on each target, divided by their sum; the influence of nodes on
the logits, which weigh ``w``, is ``w (A + A² + ...)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .errors import LensError
from .steering_vector import FloatArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Places = NDArray[np.int32]
    Doubles = NDArray[np.float64]
else:
    Places = Doubles = Any

NodeKind = Literal["feature", "error", "embedding", "logit", "other"]
Reads = Literal["mlp_in", "mlp_normed", "resid_mid"]
"""What transcoders read: the MLP's input, the same without its norm's gain, or the stream before that norm."""
Writes = Literal["mlp_out", "mlp_added"]
"""What they give: the MLP's output, or what is added to the stream, which some models norm first."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node. ``id`` is that of the graph's file.

    ``layer`` is the block that a feature reads or an error is of, -1 for an embedding, the number of blocks for a
    logit. ``feature`` is the feature's number in its transcoder, the vocabulary's id of an embedding or a logit (beyond
    the vocabulary for a logit difference or a direction), -1 for an error. ``position`` is the token's place.
    ``activation`` is a feature's, ``probability`` that of a logit's token (or the target's weight among several).
    ``influence`` is the share of all influence on the logits that this node and those with more of it have: the nodes
    at or below 0.8 are those that pruning at 0.8 keeps. ``label`` says in words what the node is; ``kind`` ``other`` is
    what another tool's graph has beyond these.
    """

    id: str
    kind: NodeKind
    layer: int
    position: int
    feature: int = -1
    label: str = ""
    activation: float | None = None
    probability: float | None = None
    influence: float | None = None


@dataclass(frozen=True, slots=True)
class LogitTarget:
    """What a graph is to explain: a token's logit, by its text or id; that less another one's (``minus``); a direction.

    ``direction`` ``(d_model,)`` is multiplied with what the final norm gives. ``weight`` is what the target counts for
    among several (by default a token's probability, else 1), ``name`` its label.
    """

    token: int | str | None = None
    minus: int | str | None = None
    direction: FloatArray | None = field(default=None, hash=False, compare=False)
    name: str = ""
    weight: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GraphSums:
    """What each node's value is made of, for those that were targets; NaN for the others; ``(nodes,)`` each.

    ``value`` is a feature's pre-activation, or a logit before soft-capping (less the mean over the vocabulary, which
    changes no probability). ``bias`` names what comes from no node: ``attention`` (biases of the attentions and norms),
    ``decoder`` (the transcoders' ``b_dec``), ``encoder`` (the target's own ``b_enc``), ``unembedding``. ``left_out`` is
    what active features that have no node add. Edges, ``bias`` and ``left_out`` add up to ``value``.
    """

    value: Doubles
    bias: Mapping[str, Doubles]
    left_out: Doubles

    def of(self, kept: Any) -> GraphSums:
        """Those of some nodes, by a mask or places."""
        bias = {name: values[kept] for name, values in self.bias.items()}
        return GraphSums(self.value[kept], bias, self.left_out[kept])


@dataclass(frozen=True, slots=True)
class Supernode:
    """Nodes that a person has put together, by id, with a name for them."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """The graph of one prompt: nodes, and edges as three arrays ``(edges,)``.

    ``sources`` and ``targets`` are places in ``nodes``, ``weights`` the direct effects. ``tokens`` are the prompt's, as
    text. ``scan`` is what other tools call the model with its transcoders, ``n_layers`` the number of blocks.
    ``node_threshold`` and ``edge_threshold`` say how it was pruned, ``None`` where it was not. ``sums`` are of a graph
    made here and not pruned. ``n_active`` counts the active features of the prompt, also those that have no node.
    ``scores`` and ``sum_error`` (the largest size of ``sum_errors``) are of the whole graph, also where this is what
    pruning has left of it; ``None`` where none were noted. ``generator`` is the program that made it, and its version.
    """

    model: str
    prompt: str
    tokens: tuple[str, ...]
    n_layers: int
    nodes: tuple[GraphNode, ...]
    sources: Places
    targets: Places
    weights: FloatArray
    scan: str = ""
    slug: str = ""
    transcoders: tuple[str, ...] = ()
    node_threshold: float | None = None
    edge_threshold: float | None = None
    pinned: tuple[str, ...] = ()
    supernodes: tuple[Supernode, ...] = ()
    sums: GraphSums | None = None
    n_active: int = 0
    scores: GraphScores | None = None
    sum_error: float | None = None
    generator: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return len(self.weights)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's token ids, as its embeddings say them."""
        found = sorted((node.position, node.feature) for node in self.nodes if node.kind == "embedding")
        return tuple(token for _, token in found)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each node by its id."""
        return {node.id: at for at, node in enumerate(self.nodes)}

    @cached_property
    def _by_target(self) -> tuple[Places, Places]:
        return _grouped(self.targets, len(self.nodes))

    @cached_property
    def _by_source(self) -> tuple[Places, Places]:
        return _grouped(self.sources, len(self.nodes))

    def into(self, node: int, k: int | None = None) -> list[tuple[int, float]]:
        """The nodes that act on one, with their direct effects, the largest size first; at most ``k``."""
        return self._strongest(self._by_target, node, self.sources, k)

    def out_of(self, node: int, k: int | None = None) -> list[tuple[int, float]]:
        """The nodes that one acts on, with its direct effects, the largest size first; at most ``k``."""
        return self._strongest(self._by_source, node, self.targets, k)

    def _strongest(
        self, grouped: tuple[Places, Places], node: int, ends: Places, k: int | None
    ) -> list[tuple[int, float]]:
        order, starts = grouped
        edges = order[starts[node] : starts[node + 1]]
        edges = edges[(-abs(self.weights[edges])).argsort(kind="stable")][:k]
        return [(int(ends[at]), float(self.weights[at])) for at in edges]

    def weight(self, source: int, target: int) -> float:
        """The direct effect of a node on another; 0 where there is no edge."""
        found = self.weights[(self.sources == source) & (self.targets == target)]
        return float(found.sum())

    def sum_errors(self) -> Doubles:
        """How far effects and biases are from each target's value, ``(nodes,)``; NaN for those that were no target.

        Of a graph without ``sums`` all are NaN.
        """
        import numpy as np

        if self.sums is None:
            return np.full(len(self.nodes), np.nan)
        effects = np.bincount(self.targets, weights=self.weights, minlength=len(self.nodes))
        found: Doubles = effects + self.sums.left_out + sum(self.sums.bias.values()) - self.sums.value
        return found

    def labelled(self, labels: Mapping[tuple[int, int], str]) -> AttributionGraph:
        """The same with labels of features, by layer and number; those that have none stay as they are."""
        nodes = tuple(
            replace(node, label=labels.get((node.layer, node.feature), node.label)) if node.kind == "feature" else node
            for node in self.nodes
        )
        return replace(self, nodes=nodes)

    def cut(self, nodes: Any, edges: Any) -> AttributionGraph:
        """The graph of the nodes and edges that two masks keep; an edge goes with either of its nodes."""
        import numpy as np

        nodes, edges = np.asarray(nodes, bool), np.asarray(edges, bool)
        edges = edges & nodes[self.sources] & nodes[self.targets]
        place = np.cumsum(nodes, dtype=np.int32) - 1
        kept = tuple(node for node, keep in zip(self.nodes, nodes, strict=True) if keep)
        return replace(
            self, nodes=kept, weights=self.weights[edges], sources=place[self.sources[edges]],
            targets=place[self.targets[edges]], sums=None,
            pinned=tuple(name for name in self.pinned if nodes[self.places[name]]),
            supernodes=_within(self.supernodes, {node.id for node in kept}),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EdgeCheck:
    """What a source's change really does to targets, beside what the graph says it does.

    ``source`` is a node, ``factor`` what its contribution was multiplied by (0 removes it). For each of ``targets``
    ``predicted`` is the graph's direct effect times ``factor - 1``, and ``frozen`` the change of the target's value
    where attention patterns, norms' denominators and all MLPs behind the source are held as they were: the same up to
    rounding. ``total`` is what the graph predicts of direct and indirect effects together, as long as patterns,
    denominators and the set of active features stay; ``held`` the measured change where only the patterns do, and
    ``free`` that of the model itself, where nothing is held.
    """

    source: str
    factor: float
    targets: tuple[str, ...]
    predicted: tuple[float, ...]
    frozen: tuple[float, ...]
    total: tuple[float, ...]
    held: tuple[float, ...]
    free: tuple[float, ...]


def _grouped(ends: Places, count: int) -> tuple[Places, Places]:
    """Edges in order of one of their ends, and where those of each node begin."""
    import numpy as np

    order = np.argsort(ends, kind="stable").astype(np.int32)
    starts: Places = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=count))]).astype(np.int32)
    return order, starts


def _within(groups: Sequence[Supernode], ids: set[str]) -> tuple[Supernode, ...]:
    """The groups with the nodes that are there; one without any is gone."""
    kept = [Supernode(group.name, tuple(name for name in group.nodes if name in ids)) for group in groups]
    return tuple(group for group in kept if group.nodes)


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


def with_scores(graph: AttributionGraph) -> AttributionGraph:
    """A whole graph that was made here with its ``scores`` and ``sum_error`` noted, which pruning and files keep.

    Raises :class:`LensError` for a graph with a circle.
    """
    import numpy as np

    return replace(graph, scores=graph_scores(graph), sum_error=float(np.nanmax(np.abs(graph.sum_errors()))))
