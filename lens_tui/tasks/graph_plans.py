"""Answer a plan of an attribution graph: make it, prune it anew, and the command that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.attribution_graph import AttributionGraph
from lens_tui.records.graph_file import read_graph
from lens_tui.records.graph_influence import EDGES, graph_scores, prune_graph
from lens_tui.records.graph_plan import GraphFound, GraphPlan
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line

from .graphs import Transcoders, make_graph, open_transcoders, with_promoted
from .run_command import KeepVector, quoted, vector_words

if TYPE_CHECKING:
    from lens_tui.lens.graphs.build_graph import Attribution
    from lens_tui.lens.model import LensModel

Progress = Callable[[int, int], None]


def transcoders_for(lens: LensModel, name: str, progress: Progress | None = None) -> Transcoders:
    """The set that is named, or the bundled one for the bundled model. Raises :class:`LensError`."""
    if not name and lens.info.path != str(demo.model_path()):
        raise LensError(f"No transcoders are named for {one_line(lens.info.name, 80)!r}.", "Name a set for this model.")
    return open_transcoders(name or demo.NAME, progress)


def answer_graph(
    lens: LensModel, plan: GraphPlan, transcoders: Transcoders, progress: Progress | None = None
) -> tuple[Attribution, GraphFound]:
    """Make the graph of a plan, and prune it as the plan says.

    Args:
        lens: The model.
        plan: What is asked.
        transcoders: What stands in for its MLPs.
        progress: Called with (rows done, rows in all).

    Raises:
        LensError: As :func:`lens_tui.attribution_graph`.
    """
    ignored = None if plan.ignored < 0 else plan.ignored
    made = make_graph(
        lens, plan.prompt, transcoders, plan.targets, progress=progress, most_features=plan.features, ignored=ignored
    )
    whole = made.graph
    error = float(np.nanmax(np.abs(whole.sum_errors())))
    paths = {layer: sae.info.path for layer, sae in getattr(transcoders, "saes", {}).items()}
    found = GraphFound(plan, whole, whole, graph_scores(whole), error, saes=paths)
    return made, pruned_anew(found, plan, lens, transcoders)


def pruned_anew(
    found: GraphFound, plan: GraphPlan, lens: LensModel | None = None, transcoders: Transcoders | None = None
) -> GraphFound:
    """The same graph pruned as a plan says; pinned and grouped nodes stay. With the model, features have their words.

    Raises :class:`LensError` for shares outside 0 to 1, and a graph with a circle.
    """
    whole = found.whole
    keep = frozenset(whole.pinned).union(*(group.nodes for group in whole.supernodes))
    pruned = whole if found.file and plan.nodes >= 1.0 else prune_graph(whole, plan.nodes, plan.edges, keep)
    if lens is not None and transcoders is not None:
        pruned = with_promoted(lens, pruned, transcoders)
    return replace(found, plan=plan, pruned=pruned)


def open_graph(file: str) -> GraphFound:
    """A graph of a file, all of it. Raises :class:`LensError`."""
    graph = read_graph(expanded(file))
    plan = GraphPlan(graph.prompt, nodes=1.0, edges=graph.edge_threshold or EDGES)
    return GraphFound(plan, graph, graph, file=file)


def same_graph(found: GraphFound, graph: AttributionGraph) -> bool:
    """Whether a graph is the one that was found, whatever is pinned in either."""
    return found.whole.nodes is graph.nodes


def graph_command(
    found: GraphFound,
    model: str,
    node: str = "",
    saes: Mapping[str, str] | None = None,
    keep: KeepVector | None = None,
) -> str:
    """The ``mlx-lens-tui graph`` that gives the same graph, with the edges of a node.

    Args:
        found: The graph.
        model: How the model is opened.
        node: The id of the node.
        saes: Paths of SAEs by id: a direction that is a feature of one is named so.
        keep: Writes a direction that has no other name to a file.
    """
    words: list[Any] = ["mlx-lens-tui", "graph"]
    chosen = ["--node", node] if node else []
    if found.file:
        return " ".join(map(quoted, [*words, "--read", found.file, *chosen]))
    plan = found.plan
    words += ["--model", model]
    words += ["--transcoders", plan.transcoders] if plan.transcoders else []
    words += [word for text in plan.written for word in ("--target", text)]
    words += ["--minus", plan.minus] if plan.minus else []
    words += ["--ignored", str(plan.ignored)] if plan.ignored >= 0 else []
    if plan.direction is not None:
        words += vector_words("--direction", plan.direction, model, saes or {}, keep)
    words += ["--nodes", f"{plan.nodes:g}", "--edges", f"{plan.edges:g}", "--features", str(plan.features), *chosen]
    return " ".join(map(quoted, [*words, "--", plan.prompt]))
