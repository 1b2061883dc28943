"""Attribution graphs as JSON, as circuit-tracer and Neuronpedia write and read them; labels of nodes are ``clerp``.

What another tool needs and a graph here has no use for (``jsNodeId``, ``run_idx``) is made anew when one is written.
What is beyond their format is under ``metadata.info``, which they pass over.
"""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

from .attribution_graph import AttributionGraph, GraphNode, GraphScores, NodeKind, Supernode
from .disk import write_json
from .errors import LensError
from .read_files import AGAIN, read_json, short_path
from .sanitise import one_line

LIMIT = 64 << 20
"""Bytes of a graph's file, at most."""
MOST_NODES, MOST_LINKS, MOST_LAYERS, MOST_POSITIONS = 200_000, 1_000_000, 10_000, 1 << 20
_TEXT, _LABEL, _NAME = 1 << 20, 2000, 200
_URL = "https://github.com/mlx-lens-tui/mlx-lens-tui"
_TYPES: dict[str, NodeKind] = {
    "cross layer transcoder": "feature",
    "mlp reconstruction error": "error",
    "embedding": "embedding",
    "logit": "logit",
}
_NAMES: dict[NodeKind, str] = {kind: name for name, kind in _TYPES.items()}


def feature_id(layer: int, feature: int, position: int) -> str:
    """The id of a feature's node."""
    return f"{layer}_{feature}_{position}"


def error_id(layer: int, position: int, taken: Container[str] = ()) -> str:
    """The id of an MLP's error; it has one of its own where the usual one is that of a feature of layer 0."""
    usual = f"0_{layer}_{position}"
    return f"error_{usual}" if usual in taken else usual


def embedding_id(token: int, position: int) -> str:
    """The id of an embedding."""
    return f"E_{token}_{position}"


def logit_id(n_layers: int, token: int, position: int) -> str:
    """The id of a logit."""
    return f"{n_layers + 1}_{token}_{position}"


def paired(layer: int, feature: int) -> int:
    """Cantor's number of a layer and a feature, which stands for both of them in files."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpaired(number: int) -> tuple[int, int]:
    """The layer and the feature of which :func:`paired` makes a number."""
    along = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - along * (along + 1) // 2
    return along - feature, feature


def write_graph(graph: AttributionGraph, path: Path | str) -> None:
    """Write a graph as circuit-tracer and Neuronpedia read it. Raises :class:`LensError` if the disk refuses."""
    write_json(Path(path), graph_json(graph))


def graph_json(graph: AttributionGraph) -> dict[str, Any]:
    """A graph as the JSON object of its file. Raises :class:`LensError` for two nodes of one id."""
    metadata: dict[str, Any] = {
        "slug": graph.slug or "graph",
        "scan": graph.scan or graph.model,
        "transcoder_list": list(graph.transcoders),
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.prompt,
        "schema_version": 1,
        "info": {
            "generator": _generator(graph.generator),
            "model": graph.model,
            "n_layers": graph.n_layers,
            "n_active_features": graph.n_active,
            **_whole_graph(graph),
        },
        "generation_settings": dict(graph.settings),
    }
    if graph.node_threshold is not None:
        metadata["node_threshold"] = graph.node_threshold
        metadata["pruning_settings"] = {"node_threshold": graph.node_threshold, "edge_threshold": graph.edge_threshold}
    names = [node.id for node in graph.nodes]
    if len(set(names)) < len(names):
        raise LensError("Two nodes of this graph have one id.", "It cannot be written.")
    first = next((at for at, node in enumerate(graph.nodes) if node.kind == "logit"), -1)
    groups = [[group.name, *group.nodes] for group in graph.supernodes]
    return {
        "metadata": metadata,
        "qParams": {
            "pinnedIds": list(graph.pinned),
            "supernodes": groups,
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [_node_json(graph, node, at == first) for at, node in enumerate(graph.nodes)],
        "links": [
            {"source": names[source], "target": names[target], "weight": weight}
            for source, target, weight in zip(
                graph.sources.tolist(), graph.targets.tolist(), graph.weights.tolist(), strict=True
            )
        ],
    }


def _whole_graph(graph: AttributionGraph) -> dict[str, float]:
    """What is known of the whole graph, and of the part of it in the file could not be found out."""
    found = {} if graph.sum_error is None else {"sum_error": graph.sum_error}
    if graph.scores is not None:
        found |= {"replacement_score": graph.scores.replacement, "completeness_score": graph.scores.completeness}
    return found


def _scores(info: dict[str, Any]) -> GraphScores | None:
    found = [_share(info.get(f"{name}_score")) for name in ("replacement", "completeness")]
    return None if found[0] is None or found[1] is None else GraphScores(found[0], found[1])


def _generator(said: str) -> dict[str, str]:
    """A name and a version, one after the other, as other tools have them apart; names of others may have blanks."""
    name, _, version = said.rpartition(" ")
    if not name or not any(letter.isdigit() for letter in version):
        name, version = said, ""
    return {"name": name, "version": version} | ({"url": _URL} if name == "mlx-lens-tui" else {})


def _node_json(graph: AttributionGraph, node: GraphNode, first: bool) -> dict[str, Any]:
    layer, feature, script = str(node.layer), node.feature, f"{node.layer}_{node.feature}-0"
    if node.kind == "feature":
        feature = paired(node.layer, node.feature)
    elif node.kind == "error":
        script = f"{node.layer}_{node.position}-0"
    elif node.kind == "embedding":
        layer, feature, script = "E", node.position, f"E_{node.feature}-{node.position}"
    elif node.kind == "logit":
        layer, script = str(graph.n_layers + 1), f"L_{node.feature}-{node.position}"
    made: dict[str, Any] = {
        "node_id": node.id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": _NAMES.get(node.kind, "other"),
        "token_prob": node.probability or 0.0,
        "is_target_logit": first,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": script,
        "clerp": node.label,
    }
    numbers = {"influence": node.influence, "activation": node.activation}
    return made | {key: value for key, value in numbers.items() if value is not None}


def read_graph(path: Path | str) -> AttributionGraph:
    """Read a graph that this program, circuit-tracer or Neuronpedia wrote.

    Texts are as in the file: they pass ``records/sanitise.py`` where they are shown.

    Raises:
        LensError: For a file that is too large, damaged, or of another kind, and links between nodes there are not.
    """
    value = read_json(path, LIMIT)
    where = short_path(path)
    if not isinstance(value, dict) or not all(key in value for key in ("metadata", "nodes", "links")):
        raise LensError(f"{where} is not an attribution graph: it has no metadata, nodes and links.", AGAIN)
    return graph_from_json(value, where)


def graph_from_json(value: dict[str, Any], where: str) -> AttributionGraph:
    """A graph from the JSON object of its file; ``where`` names it in errors. Errors as of :func:`read_graph`."""
    import numpy as np

    metadata, query = (_object(value.get(key) or {}, key, where) for key in ("metadata", "qParams"))
    tokens = _texts(metadata.get("prompt_tokens"), "prompt_tokens", where)
    rows = _list(value["nodes"], "nodes", where, MOST_NODES)
    info = metadata.get("info") if isinstance(metadata.get("info"), dict) else {}
    assert isinstance(info, dict)
    n_layers = _layers(rows, info)
    nodes = tuple(_node(row, n_layers, len(tokens), f"Node {at} of {where}") for at, row in enumerate(rows))
    places = {node.id: at for at, node in enumerate(nodes)}
    if len(places) < len(nodes):
        twice = next(node.id for at, node in enumerate(nodes) if places[node.id] != at)
        raise LensError(f"{where} has two nodes with the id {one_line(twice, 40)!r}, so its links say nothing.", AGAIN)
    links = _list(value["links"], "links", where, MOST_LINKS)
    sources, targets, weights = _links(links, places, where)
    pruning = metadata.get("pruning_settings")
    pruning = pruning if isinstance(pruning, dict) else {}
    generator = info.get("generator")
    return AttributionGraph(
        model=_text(info.get("model") or metadata.get("scan") or "", _NAME),
        prompt=_text(metadata.get("prompt") or "", _TEXT),
        tokens=tokens, n_layers=n_layers, nodes=nodes,
        sources=np.array(sources, np.int32), targets=np.array(targets, np.int32), weights=np.array(weights, np.float32),
        scan=_text(metadata.get("scan") or "", _NAME), slug=_text(metadata.get("slug") or "", _NAME),
        transcoders=tuple(_text(each, _NAME) for each in _some(metadata.get("transcoder_list"), 1000)),
        node_threshold=_share(metadata.get("node_threshold", pruning.get("node_threshold"))),
        edge_threshold=_share(pruning.get("edge_threshold")),
        pinned=tuple(name for name in _some(query.get("pinnedIds"), MOST_NODES) if _known(name, places)),
        supernodes=_groups(query.get("supernodes"), places),
        n_active=_whole(info.get("n_active_features")) or 0,
        scores=_scores(info), sum_error=_number(info.get("sum_error")),
        generator=_said(generator) if isinstance(generator, dict) else "",
        settings=_settings(metadata.get("generation_settings")),
    )  # fmt: skip


def _said(generator: dict[str, Any]) -> str:
    return " ".join(_text(generator.get(key) or "", _NAME) for key in ("name", "version")).strip()


def _layers(rows: list[Any], info: dict[str, Any]) -> int:
    """The number of blocks: as the file says, else by its logits (which are two above the last), else its features."""
    said = _whole(info.get("n_layers"))
    if said is not None and said <= MOST_LAYERS:
        return said
    by_kind: dict[str, list[int]] = {}
    for row in rows:
        if isinstance(row, dict):
            layer = _whole(row.get("layer"))
            if layer is not None and layer <= MOST_LAYERS:
                by_kind.setdefault(str(row.get("feature_type")), []).append(layer)
    logits = by_kind.pop("logit", [])
    if logits:
        return max(max(logits) - 1, 0)
    return max((max(layers) + 1 for layers in by_kind.values()), default=0)


def _node(row: Any, n_layers: int, count: int, where: str) -> GraphNode:
    row = _object(row, "it", where)
    name, position = row.get("node_id"), _whole(row.get("ctx_idx"))
    if not isinstance(name, str) or not 0 < len(name) <= _NAME:
        raise LensError(f"{where} has no node_id.", AGAIN)
    if position is None or position >= max(count, 1):
        raise LensError(f"{where} is at no token of the prompt ({one_line(repr(row.get('ctx_idx')), 30)}).", AGAIN)
    kind: NodeKind = _TYPES.get(str(row.get("feature_type")), "other")
    layer, feature = _whole(row.get("layer")), _whole(row.get("feature"))
    if kind in ("feature", "error", "other") and not (layer is not None and layer <= MOST_LAYERS):
        if kind != "other":
            raise LensError(f"{where} is of no layer ({one_line(repr(row.get('layer')), 30)}).", AGAIN)
        layer = -1
    if kind == "feature":
        layer, feature = _feature(name, layer or 0, feature)
    elif kind in ("embedding", "logit"):
        layer = -1 if kind == "embedding" else n_layers
        feature = _middle(name) if kind == "embedding" else feature
    probability = _number(row.get("token_prob")) if kind == "logit" else None
    label = row.get("clerp")
    return GraphNode(
        name, kind, layer if layer is not None else -1, position,
        -1 if feature is None or kind == "error" else feature,
        _text(label, _LABEL) if isinstance(label, str) else "",
        activation=_number(row.get("activation")), probability=probability, influence=_number(row.get("influence")),
    )  # fmt: skip


def _feature(name: str, layer: int, number: int | None) -> tuple[int, int]:
    """The layer and number of a feature: of its Cantor number where that is of this layer, else of its id."""
    if number is not None:
        found = unpaired(number)
        if found[0] == layer:
            return found
    middle = _middle(name)
    return layer, middle if middle is not None else number if number is not None else -1


def _middle(name: str) -> int | None:
    parts = name.split("_")
    return _whole(parts[1]) if len(parts) == 3 else None


def _links(rows: list[Any], places: dict[str, int], where: str) -> tuple[list[int], list[int], list[float]]:
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for at, row in enumerate(rows):
        weight = _number(row.get("weight")) if isinstance(row, dict) else None
        if not isinstance(row, dict) or weight is None:
            raise LensError(f"Link {at} of {where} has no weight that is a number.", AGAIN)
        for key, ends in (("source", sources), ("target", targets)):
            end = row.get(key)
            if not isinstance(end, str) or end not in places:
                said = one_line(str(end), 40)
                raise LensError(f"Link {at} of {where} names a node that is not there: {said}.", AGAIN)
            ends.append(places[end])
        weights.append(weight)
    return sources, targets, weights


def _groups(value: Any, places: dict[str, int]) -> tuple[Supernode, ...]:
    found = []
    for group in _some(value, 10_000):
        if isinstance(group, list) and group and isinstance(group[0], str):
            names = tuple(name for name in group[1:] if _known(name, places))
            if names:
                found.append(Supernode(_text(group[0], _NAME), names))
    return tuple(found)


def _known(name: Any, places: dict[str, int]) -> bool:
    return isinstance(name, str) and name in places


def _settings(value: Any) -> dict[str, Any]:
    """Settings that are plain values, at most a hundred."""
    if not isinstance(value, dict):
        return {}
    plain = [(key, each) for key, each in value.items() if isinstance(each, str | int | float | bool | None)]
    kept = [(key, each) for key, each in plain if not isinstance(each, float) or math.isfinite(each)]
    return {_text(key, _NAME): _text(each, _LABEL) if isinstance(each, str) else each for key, each in kept[:100]}


def _object(value: Any, what: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LensError(f"{where} is not an attribution graph: {what} is no object.", AGAIN)
    return value


def _list(value: Any, what: str, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise LensError(f"{where} is not an attribution graph: {what} is no list.", AGAIN)
    if len(value) > most:
        raise LensError(f"{where} has {len(value):,} {what}; at most {most:,} are read.", "Prune the graph further.")
    return value


def _texts(value: Any, what: str, where: str) -> tuple[str, ...]:
    found = _list(value, what, where, MOST_POSITIONS)
    if not all(isinstance(each, str) for each in found):
        raise LensError(f"{where} is not an attribution graph: {what} are no texts.", AGAIN)
    return tuple(_text(each, _LABEL) for each in found)


def _some(value: Any, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _text(value: Any, limit: int) -> str:
    return str(value)[:limit]


def _whole(value: Any) -> int | None:
    """A whole number from 0 up, also where it is written as a text; ``None`` for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
        return int(value)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e30 or value != value:
        return None
    return float(value)


def _share(value: Any) -> float | None:
    found = _number(value)
    return found if found is not None and 0.0 <= found <= 1.0 else None
