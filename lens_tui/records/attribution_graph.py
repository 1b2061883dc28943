"""An attribution graph as plain data: what each part of a prompt's forward pass adds directly to what comes behind it.

Nodes are transcoder features, what the transcoders leave over of each MLP (errors), embeddings and logits. An edge is a
direct effect: what the source adds to the target's value with attention patterns, norms' denominators and which
features are active held fixed (Ameisen et al. 2025, "Circuit Tracing"). Values are linear in their sources then, and
the effects on a target, with its biases, add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

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
    ``generator`` is the program that made it, with its version.
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
