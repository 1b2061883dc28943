"""Is it so? A node of an attribution graph is removed or scaled, and what happens is held beside what the graph says.

Three measurements: with all held that the graph holds, by a forward pass that has nothing in common with the backward
one the graph is made by; with attention patterns held and everything else of the model computed anew; and in the model
itself, where nothing is held. (Interventions as of Ameisen et al. 2025, section on validating graphs.) What a node adds
to the residual stream is also to be had as a direction to steer by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.attribution_graph import AttributionGraph, EdgeCheck, GraphNode
from lens_tui.records.patch_grid import Doubles
from lens_tui.records.sanitise import one_line

from ..architecture.taps import first_of
from ..architecture.unembed import find_unembedding
from ..causes.cells import Kept
from ..forward import Core, unhooked
from ..hooks.program import Hook, Key, adding
from ..hooks.registry import Plan, PlanEntry, Run
from .build_graph import Attribution
from .frozen_model import FrozenLayer, middles
from .replacement import Sources

_TOGETHER = 16


def check_nodes(
    made: Attribution,
    nodes: Sequence[str],
    *,
    targets: Sequence[str] = (),
    k: int = 5,
    factor: float = 0.0,
) -> tuple[EdgeCheck, ...]:
    """Change nodes, one at a time, and measure what that does to those that they act on.

    Args:
        made: The graph with what it was made of.
        nodes: Ids of features, errors or embeddings.
        targets: Ids of features or logits to look at; by default the ``k`` that each acts on most, and the first logit.
        k: How many.
        factor: What each node's contribution is multiplied by: 0 removes it, 2 doubles it.

    Raises:
        LensError: For ids that there are not, and those of logits, which add nothing.
    """
    graph = made.graph
    if not np.isfinite(factor):
        raise LensError(f"A node cannot be multiplied by {factor!r}.", "Give a number, such as 0.")
    chosen = [_place(graph, name) for name in nodes]
    wrong = next((at for at in chosen if graph.nodes[at].kind not in ("feature", "error", "embedding")), None)
    if wrong is not None:
        raise LensError(f"{graph.nodes[wrong].id} adds nothing that could be changed.", "Give a feature or an error.")
    found: list[EdgeCheck] = []
    for start in range(0, len(chosen), _TOGETHER):
        found += _checked(made, chosen[start : start + _TOGETHER], targets, k, factor)
    return tuple(found)


def _place(graph: AttributionGraph, name: str) -> int:
    if name not in graph.places:
        raise LensError(f"There is no node {one_line(name, 60)!r} in this graph.", "Give an id of the graph.")
    return graph.places[name]


def _checked(
    made: Attribution, chosen: Sequence[int], targets: Sequence[str], k: int, factor: float
) -> list[EdgeCheck]:
    graph = made.graph
    first = next(at for at, node in enumerate(graph.nodes) if node.kind == "logit")
    ends = []
    for at in chosen:
        known = [_place(graph, name) for name in targets] or [end for end, _ in graph.out_of(at, k)]
        ends.append(list(dict.fromkeys([*known, *([] if targets else [first])])))
    wanted = sorted({end for some in ends for end in some})
    if any(graph.nodes[end].kind not in ("feature", "logit") for end in wanted):
        raise LensError("An effect is measured on features and logits.", "Give their ids.")
    streams = streams_of(made.sources, [graph.nodes[at] for at in chosen], factor - 1.0)
    nodes = [graph.nodes[end] for end in wanted]
    measured = [run(made, streams, nodes) for run in (_frozen, _held, _free)]
    rows = []
    for row, (at, some) in enumerate(zip(chosen, ends, strict=True)):
        total = _total(graph, at, factor - 1.0)
        columns = [wanted.index(end) for end in some]
        parts = [tuple(float(values[row, column]) for column in columns) for values in measured]
        rows.append(
            EdgeCheck(
                graph.nodes[at].id, factor, tuple(graph.nodes[end].id for end in some),
                tuple(graph.weight(at, end) * (factor - 1.0) for end in some),
                parts[0], tuple(float(total[end]) for end in some), parts[1], parts[2],
            )
        )  # fmt: skip
    return rows


def _total(graph: AttributionGraph, source: int, change: float) -> Doubles:
    """The change of each node's value by all paths from a source, ``(nodes,)``: active features stay so, linearly."""
    active = np.array([node.activation or 0.0 if node.kind == "feature" else 0.0 for node in graph.nodes])
    share = np.zeros(len(graph.nodes))
    share[source] = change
    moved = np.zeros(len(graph.nodes))
    for _ in range(graph.n_layers + 2):
        moved = np.bincount(
            graph.targets, weights=graph.weights * share[graph.sources], minlength=len(graph.nodes)
        ).astype(np.float64)
        share = np.where(active > 0, moved / np.where(active > 0, active, 1.0), 0.0)
        share[source] = change
    return moved


def streams_of(sources: Sources, nodes: Sequence[GraphNode], change: float) -> dict[int, mx.array]:
    """What is added to the stream behind each layer (-1: the embedding), ``(nodes, tokens, d_model)``."""
    frozen, replacement = sources.frozen, sources.replacement
    shape = (len(nodes), sources.n_tokens, int(frozen.embedded.shape[-1]))
    found: dict[int, mx.array] = {}

    def put(layer: int, row: int, at: int, vector: mx.array) -> None:
        placed = mx.zeros((1, *shape[1:])).at[0, at].add(vector)
        if layer >= 0 and (norm := frozen.layers[layer].writer(replacement.writes)) is not None:
            placed = norm.linear(placed)
        whole = found.get(layer, mx.zeros(shape))
        found[layer] = whole.at[row].add(change * placed[0])

    for row, node in enumerate(nodes):
        if node.kind == "embedding":
            put(-1, row, node.position, frozen.embedded[node.position])
        elif node.kind == "error":
            put(node.layer, row, node.position, sources.written[node.layer].error[node.position])
        else:
            last = len(frozen.layers) if replacement.crosses else node.layer + 1
            for to in range(node.layer, last):
                unit = replacement.decoder(node.layer, to, np.array([node.feature])).astype(mx.float32)[0]
                put(to, row, node.position, (node.activation or 0.0) * unit)
    return found


def _frozen(made: Attribution, streams: dict[int, mx.array], nodes: Sequence[GraphNode]) -> Doubles:
    """The change of values ``(rows, nodes)`` where all is held that the graph holds."""
    sources = made.sources
    frozen, replacement = sources.frozen, sources.replacement
    some = next(iter(streams.values()))
    x = streams.get(-1, mx.zeros_like(some))
    read: dict[int, mx.array] = {}
    for at, layer in enumerate(frozen.layers):
        x = x + layer.attend(x) - layer.attention_bias
        reader, writer = layer.reader(replacement.reads), layer.writer(replacement.writes)
        read[at] = x if reader is None else reader.linear(x)
        written = sources.written[at]
        if written.skip is not None and written.counted is not None:
            passed = (read[at] @ written.skip) * written.counted
            x = x + (passed if writer is None else writer.linear(passed))
        x = x + streams.get(at, mx.zeros_like(some))
        mx.eval(x)
    return _values(made, nodes, read, x, made.ends.vectors)


def _held(made: Attribution, streams: dict[int, mx.array], nodes: Sequence[GraphNode]) -> Doubles:
    """The same with attention patterns held and everything else of the model computed anew."""
    lens, sources = made.lens, made.sources
    frozen = sources.frozen
    some = next(iter(streams.values()))
    rows = int(some.shape[0]) + 1
    x = _with_plain(streams.get(-1, mx.zeros_like(some))) + frozen.embedded
    seen: dict[int, mx.array] = {}
    with unhooked(lens):
        for at, layer in enumerate(frozen.layers):
            x = x + _attended(lens, at, layer, x)
            seen[at] = x
            x = x + _mlp(lens, at, x)
            if at in streams:
                x = x + _with_plain(streams[at])
            mx.eval(x)
        assert x.shape[0] == rows
        return _computed(made, nodes, seen, x)


def _attended(lens: Core, at: int, layer: FrozenLayer, x: mx.array) -> mx.array:
    """What the attention adds with its patterns held and its norms computed."""
    sites = lens.registry.sites
    entry: Any = sites.entries(at).attention
    given = layer.attention(x if layer.attention_norm is None else entry(x).astype(mx.float32))
    if layer.attention_post is None:
        return given
    post: Any = sites.point(at, "attn_out_normed").module
    found: mx.array = post(given).astype(mx.float32)
    return found


def _mlp(lens: Core, at: int, x: mx.array) -> mx.array:
    """What the model's own MLP adds."""
    sites = lens.registry.sites
    entry: Any = sites.entries(at).mlp
    mlp: Any = sites.point(at, "mlp_in").module
    read = (x if entry is mlp else entry(x)).astype(lens.registry.decoder.dtype)
    given = first_of(mlp(read)).astype(mx.float32)
    if "mlp_out_normed" in lens.sites(at):
        post: Any = sites.point(at, "mlp_out_normed").module
        given = post(given).astype(mx.float32)
    found: mx.array = given
    return found


def _free(made: Attribution, streams: dict[int, mx.array], nodes: Sequence[GraphNode]) -> Doubles:
    """The same in the model itself."""
    lens, registry = made.lens, made.lens.registry
    hooks = [
        Hook("check", *((0, "resid_pre") if at < 0 else (at, "resid_post")), adding(_with_plain(change)))
        for at, change in sorted(streams.items())
    ]
    rows, last = next(iter(streams.values())).shape[0] + 1, (lens.n_layers - 1, "resid_post")
    kept = Kept(registry, [last])
    ids = mx.broadcast_to(mx.array([list(made.sources.frozen.ids)], dtype=mx.int32), (rows, made.sources.n_tokens))
    found: dict[Key, mx.array] = {}
    registry.between()
    with middles(lens, found):
        run = Run(registry, Plan(([PlanEntry(registry, hook) for hook in hooks],), (kept,)), ids.shape[1])
        registry.forward(run, ids)
    mx.eval(list(found.values()), kept.tensors[last])
    seen = {at: found[at, "middle"].astype(mx.float32) for at in range(lens.n_layers)}
    with unhooked(lens):
        return _computed(made, nodes, seen, kept.tensors[last].astype(mx.float32))


def _with_plain(change: mx.array) -> mx.array:
    """A first row that nothing is added to: what the others are compared with."""
    return mx.concatenate([mx.zeros((1, *change.shape[1:])), change])


def _computed(made: Attribution, nodes: Sequence[GraphNode], seen: dict[int, mx.array], last: mx.array) -> Doubles:
    """Changes ``(rows, nodes)`` from the stream in the middle of each layer and at the end, norms computed."""
    lens, sources = made.lens, made.sources
    read: dict[int, mx.array] = {}
    for at in {node.layer for node in nodes if node.kind == "feature"}:
        reader = sources.frozen.layers[at].reader(sources.replacement.reads)
        entry: Any = lens.registry.sites.entries(at).mlp
        read[at] = seen[at] if reader is None else entry(seen[at]).astype(mx.float32)
        if sources.replacement.reads == "mlp_normed" and reader is not None:
            gain = sources.frozen.layers[at].mlp_norm
            assert gain is not None
            read[at] = read[at] / mx.where(gain.gain == 0, 1.0, gain.gain)
    norm: Any = find_unembedding(lens.registry.decoder).norm
    values = _values(made, nodes, read, norm(last).astype(mx.float32), made.ends.rows)
    return values[1:] - values[:1]


def _values(
    made: Attribution, nodes: Sequence[GraphNode], read: dict[int, mx.array], last: mx.array, rows: mx.array
) -> Doubles:
    """For each row what features' encoders and the ends make of tensors ``(rows, tokens, width)``, without biases."""
    graph, replacement = made.graph, made.sources.replacement
    ends = [node.id for node in graph.nodes if node.kind == "logit"]
    columns = []
    for node in nodes:
        if node.kind == "feature":
            row = replacement.encoder(node.layer, np.array([node.feature]))[0].astype(mx.float32)[0]
            columns.append(read[node.layer][:, node.position] @ row)
        else:
            columns.append(last[:, -1] @ rows[ends.index(node.id)])
    found: Doubles = np.array(mx.stack(columns, axis=1), np.float64)
    return found


def node_vector(made: Attribution, node: str, name: str = "") -> SteeringVector:
    """What a node adds to the stream on the graph's prompt; of a logit the direction that raises it.

    Args:
        made: The graph with what it was made of.
        node: The node's id.
        name: The vector's name; by default the node's label.

    Returns:
        A unit direction behind the layer that the node writes to (before the first one, of an embedding). ``norm`` is
        the length of what it adds at its token. A cross-layer feature gives what it adds to the layer it adds most to.

    Raises:
        LensError: For an id that is not in the graph, and a node that adds nothing.
    """
    graph = made.graph
    if node not in graph.places:
        raise LensError(f"There is no node {one_line(node, 60)!r} in this graph.", "Give an id of the graph.")
    chosen = graph.nodes[graph.places[node]]
    layer, site = graph.n_layers - 1, "resid_post"
    if chosen.kind == "logit":
        ends = [each.id for each in graph.nodes if each.kind == "logit"]
        vector = made.ends.vectors[ends.index(node)]
    else:
        added = {at: part[0, chosen.position] for at, part in streams_of(made.sources, [chosen], 1.0).items()}
        layer = max(added, key=lambda at: float(mx.linalg.norm(added[at])))
        vector = added[layer]
        if layer < 0:
            layer, site = 0, "resid_pre"
    direction = np.array(vector.astype(mx.float32))
    if not np.any(direction):
        raise LensError(f"{one_line(chosen.label or node, 60)} adds nothing to the stream.", "Choose another node.")
    facts: dict[str, Any] = {"graph": graph.prompt, "node": node, "label": chosen.label}
    called = name or one_line(chosen.label or node, 60)
    return SteeringVector.of(called, direction, layer, model=graph.model, site=site, origin=Origin("given", facts))
