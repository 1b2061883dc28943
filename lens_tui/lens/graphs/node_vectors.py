"""What a node of an attribution graph adds to the residual stream, as a direction to steer by."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.sanitise import one_line

from .build_graph import Attribution
from .edge_checks import streams_of


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
