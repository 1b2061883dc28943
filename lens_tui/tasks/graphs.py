"""Attribution graphs as people ask for them: a prompt, a set of transcoders by name, and labels in words.

A plan is answered by making the graph or pruning it anew; there is the command that gives the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui import __version__, demo
from lens_tui.records import LensError
from lens_tui.records import paths as folders
from lens_tui.records.attribution_graph import EDGES, AttributionGraph, LogitTarget, prune_graph, with_scores
from lens_tui.records.cause_plan import GraphFound, GraphPlan
from lens_tui.records.graph_file import read_graph
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line

from .knowledge import label_texts
from .run_command import KeepVector, quoted, vector_words

if TYPE_CHECKING:
    from lens_tui.lens.graphs.build_graph import Attribution
    from lens_tui.lens.model import LensModel


if TYPE_CHECKING:
    from lens_tui.lens.graphs.build_graph import Attribution
    from lens_tui.lens.model import LensModel
    from lens_tui.records.store import Store
    from lens_tui.sae.transcoder_sets import CrossLayerTranscoders, LayerTranscoders

    Transcoders = LayerTranscoders | CrossLayerTranscoders
else:
    Transcoders = Any

GENERATOR = f"mlx-lens-tui {__version__}"


def open_transcoders(name: str, progress: Callable[[int, int], None] | None = None) -> Transcoders:
    """The set that someone names: a folder, one trained here, one at the hub, or ``demo`` for the bundled one.

    Args:
        name: What is named; at the hub ``org/name/folder``, with ``hf://`` before it or without.
        progress: Called with (layers opened, layers in all).

    Raises:
        LensError: For what is no set.
    """
    from lens_tui.sae.from_hub import fetch_transcoders, is_hub_id
    from lens_tui.sae.transcoder_sets import load_transcoders

    own = folders.saes_folder() / name
    place = name.removeprefix("hf://")
    if name != place or (is_hub_id(name) and not Path(name).exists() and not own.is_dir()):
        if not is_hub_id(place):
            raise LensError(f"{one_line(name, 120)} is no place at the hub.", "Write hf://org/name/folder.")
        return load_transcoders(fetch_transcoders(place), name=place, progress=progress)
    inside = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts
    if inside and not expanded(name).exists() and own.is_dir():
        return load_transcoders(own, name=name, progress=progress)
    return load_transcoders(name, progress=progress)


def make_graph(
    lens: LensModel,
    prompt: str | Sequence[int],
    transcoders: Transcoders,
    targets: Sequence[LogitTarget] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
    **options: Any,
) -> Attribution:
    """The attribution graph of a prompt with labels of its features, and what it takes to check its edges.

    Args:
        lens: The model.
        prompt: A text, raw, or token ids.
        transcoders: What stands in for its MLPs.
        targets: What is explained; by default the most probable next tokens.
        progress: Called with (rows done, rows in all).
        store: The user's database with labels, where it is open already.
        **options: The others of :func:`lens_tui.lens.graphs.build_graph.attribute`.

    Raises:
        LensError: As of that function.
    """
    from lens_tui.lens.graphs.build_graph import attribute

    made = attribute(lens, prompt, transcoders, targets=targets, progress=progress, **options)
    graph = named_graph(made.graph, transcoders, store)
    return replace(made, graph=replace(graph, generator=GENERATOR, slug=slug_of(graph)))


def named_graph(graph: AttributionGraph, transcoders: Transcoders, store: Store | None = None) -> AttributionGraph:
    """The graph with the labels that are known of its features: yours first, then imported and bundled ones."""
    labels: dict[tuple[int, int], str] = {}
    for layer, sae in getattr(transcoders, "saes", {}).items():
        features = sorted({node.feature for node in graph.nodes if node.kind == "feature" and node.layer == layer})
        found = label_texts(sae.info, features, store)
        labels |= {(layer, feature): text for feature, text in found.items()}
    return graph.labelled(labels)


def with_promoted(
    lens: LensModel, graph: AttributionGraph, transcoders: Transcoders, most: int = 400, k: int = 3
) -> AttributionGraph:
    """The graph whose features without a label say which tokens their decoder rows promote most.

    Args:
        lens: The model.
        graph: Its graph, pruned: the vocabulary is gone through for every such feature.
        transcoders: Those of the graph.
        most: So many features, those with the most influence.
        k: Tokens of each.
    """
    import mlx.core as mx

    from lens_tui.lens.architecture.unembed import find_unembedding, top_tokens
    from lens_tui.lens.forward import unhooked

    bare = [node for node in graph.nodes if node.kind == "feature" and not node.label]
    bare.sort(key=lambda node: 1.0 if node.influence is None else node.influence)
    pairs = sorted(list(dict.fromkeys((node.layer, node.feature) for node in bare))[:most])
    if not pairs:
        return graph
    rows = []
    for layer in sorted({layer for layer, _ in pairs}):
        mine = np.array([feature for at, feature in pairs if at == layer])
        rows.append(transcoders.decoder(layer, lens.n_layers - 1 if transcoders.crosses else layer, mine))
    decoder = lens.registry.decoder
    with unhooked(lens):
        directions = mx.concatenate([part.astype(mx.float32) for part in rows])
        ids = np.array(top_tokens(find_unembedding(decoder), directions, k, hide=decoder.hide)[0])
    words = [" ".join(f"“{lens.tokens.decode([int(token)])}”" for token in some) for some in ids]
    return graph.labelled({pair: f"promotes {text}" for pair, text in zip(pairs, words, strict=True)})


def slug_of(graph: AttributionGraph) -> str:
    """A name for a graph's file and address, of the model and the prompt's first words."""
    words = re.findall(r"[a-z0-9]+", f"{Path(graph.model).name} {graph.prompt}".lower())
    return "-".join(words)[:60].strip("-") or "graph"


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
    whole = with_scores(made.graph)
    paths = {layer: sae.info.path for layer, sae in getattr(transcoders, "saes", {}).items()}
    found = GraphFound(plan, whole, whole, whole.scores, whole.sum_error, saes=paths)
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
    return GraphFound(plan, graph, graph, graph.scores, graph.sum_error, file=file)


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
        words += vector_words(plan.direction, model, saes or {}, keep)
    words += ["--nodes", f"{plan.nodes:g}", "--edges", f"{plan.edges:g}", "--features", str(plan.features), *chosen]
    return " ".join(map(quoted, [*words, "--", plan.prompt]))
