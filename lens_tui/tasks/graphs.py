"""Attribution graphs as people ask for them: a prompt, a set of transcoders by name, and labels in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui import __version__
from lens_tui.records import LensError
from lens_tui.records import paths as folders
from lens_tui.records.attribution_graph import AttributionGraph, LogitTarget
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line

from .knowledge import label_texts

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
