"""Attribution graphs: the direct effects between a prompt's active features, errors, embeddings and logits.

Ameisen et al. 2025 ("Circuit Tracing: Revealing Computational Graphs in Language Models"), with transcoders of single
layers as well (Dunefsky et al. 2024, 2406.11944). Rows are computed the most influential feature first, as far as they
are asked for, so that a prompt with more active features than fit gives the part of the graph that matters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens_tui import blas
from lens_tui.records import FloatArray, LensError
from lens_tui.records.attribution_graph import AttributionGraph, GraphNode, GraphSums, LogitTarget, with_influence
from lens_tui.records.graph_file import embedding_id, error_id, feature_id, logit_id
from lens_tui.records.patch_grid import Doubles
from lens_tui.records.sanitise import one_line

from ..forward import Core, one_text
from .frozen_model import freeze
from .graph_targets import (
    BIASES,
    Effects,
    Ends,
    Targets,
    all_targets,
    batch_size,
    direct_effects,
    feature_values,
    find_ends,
    sums,
    token_text,
)
from .replacement import Ints, Replacement, Sources, find_sources

MOST_ROWS = 4096
ROW_BYTES = 768 << 20
"""What all rows may take in memory; fewer are computed where they would take more."""
_PHASES = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Attribution:
    """A graph with what it was made of: enough to check its edges (:func:`~.edge_checks.check_nodes`)."""

    lens: Core
    graph: AttributionGraph
    sources: Sources
    ends: Ends


def attribution_graph(lens: Core, prompt: Any, replacement: Replacement, **options: Any) -> AttributionGraph:
    """The graph alone of :func:`attribute`, whose arguments and errors these are."""
    return attribute(lens, prompt, replacement, **options).graph


def attribute(
    lens: Core,
    prompt: Any,
    replacement: Replacement,
    *,
    targets: Sequence[LogitTarget] = (),
    most_logits: int = 10,
    mass: float = 0.95,
    most_features: int = MOST_ROWS,
    ignored: int | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """The graph of direct effects on the next token's logits and on the features behind them, not pruned.

    Args:
        lens: The model; what acts in blocks around the call is left out.
        prompt: A text, raw, or its token ids.
        replacement: The transcoders that stand in for the MLPs.
        targets: What is explained; by default the most probable next tokens.
        most_logits: So many of those, at most.
        mass: As few as have this probability together.
        most_features: So many features have a node, those with the most influence. Fewer where memory is bounded.
        ignored: At so many first tokens no feature counts: the MLPs there are error. By default the special tokens that
            the prompt begins with.
        progress: Called with (rows done, rows in all) after each batch; what it raises ends the computation.

    Returns:
        The graph, with the sums that prove it, and what it was made of.

    Raises:
        LensError: For a model or transcoders of which no such graph can be made, with the reason: among them one whose
            effects do not add up.
    """
    if most_features < 1 or most_logits < 1 or not 0.0 < mass <= 1.0:
        raise LensError("A graph needs at least one feature, one logit, and a probability above 0.")
    ids = one_text(lens, prompt)
    frozen = freeze(lens, ids)
    first = _special(lens, ids) if ignored is None else ignored
    sources = find_sources(frozen, replacement, first)
    ends = find_ends(lens, frozen, targets, most=most_logits, mass=mass)
    job = _Job(lens, sources, ends, all_targets(sources, ends), progress)
    rows = min(most_features, max(64, ROW_BYTES // (4 * sources.count)), sources.n_features)
    job.compute(np.arange(len(ends.tokens)) + sources.n_features, rows + len(ends.tokens))
    _choose(job, rows)
    return Attribution(lens, _graph(job, prompt if isinstance(prompt, str) else "", first), sources, ends)


def _special(lens: Core, ids: Sequence[int]) -> int:
    special = lens.tokens.special_ids()
    return next((at for at, token in enumerate(ids) if token not in special), len(ids))


@dataclass(eq=False)
class _Job:
    """What has been computed: for each row the number of its target, its effects and biases."""

    lens: Core
    sources: Sources
    ends: Ends
    targets: Targets
    progress: Progress | None

    def __post_init__(self) -> None:
        feature, constant = feature_values(self.sources)
        self.value = np.concatenate([feature, self.ends.value])
        self.constant = np.concatenate([constant, self.ends.constant])
        self.numbers: list[Ints] = []
        self.rows: list[FloatArray] = []
        self.bias: dict[str, list[Doubles]] = {name: [] for name in BIASES}

    def compute(self, chosen: Ints, total: int) -> None:
        """Rows of more targets, each proved by its sum."""
        done = sum(map(len, self.numbers))
        for effects in direct_effects(self.sources, self.targets, chosen, between=self.lens.registry.between):
            self._prove(effects)
            self.numbers.append(effects.numbers)
            self.rows.append(effects.rows)
            for name, values in effects.bias.items():
                self.bias[name].append(values)
            done += len(effects.numbers)
            if self.progress is not None:
                self.progress(done, total)

    def _prove(self, effects: Effects) -> None:
        value = self.value[effects.numbers]
        off = np.abs(sums(effects) + self.constant[effects.numbers] - value)
        size = np.maximum(np.abs(effects.rows).sum(axis=1, dtype=np.float64), 1.0)
        worst = int(np.argmax(off / size))
        if not off[worst] <= self.sources.frozen.close * size[worst]:
            raise LensError(
                f"The direct effects on {self.named(int(effects.numbers[worst]))} add up to"
                f" {value[worst] + off[worst]:.4g}, not to {value[worst]:.4g}: this model does more than that.",
                f"Products are rounded to TF32 here: take {blas.TF32} out of the environment."
                if os.environ.get(blas.TF32) == "1"
                else "No graph can be made of it.",
            )

    def named(self, number: int) -> str:
        """A target in words."""
        sources = self.sources
        if number >= sources.n_features:
            return one_line(self.ends.labels[number - sources.n_features], 60)
        at = sources.layer[number], sources.feature[number], sources.position[number]
        return f"feature {at[1]} of layer {at[0]} at token {at[2]}"


def _choose(job: _Job, rows: int) -> None:
    """Compute the rows of the features with the most influence on the logits, as far as it is known from the others."""
    sources, ends = job.sources, len(job.ends.tokens)
    if rows == sources.n_features:
        job.compute(np.arange(rows), rows + ends)
        return
    left = rows
    done = np.zeros(sources.n_features, bool)
    while left:
        some = min(left, max(batch_size(sources), -(-rows // _PHASES)))
        known = _influence(job)
        known[done] = -1.0
        best = np.argsort(-known, kind="stable")[:some]
        job.compute(best, rows + ends)
        done[best] = True
        left -= some


def _influence(job: _Job) -> Doubles:
    """The influence of every feature on the logits through the rows that there are, ``(features,)``."""
    sources = job.sources
    ends = np.concatenate(job.numbers)
    now = np.zeros(len(ends))
    last = ends >= sources.n_features
    now[last] = job.ends.weights[ends[last] - sources.n_features]
    total = np.zeros(sources.n_features)
    sizes = [np.abs(part).sum(axis=1) for part in job.rows]
    for _ in range(len(sources.written) + 1):
        passed, start = np.zeros(sources.n_features), 0
        for part, size in zip(job.rows, sizes, strict=True):
            shares = (now[start : start + len(part)] / np.maximum(size, 1e-10)).astype(np.float32)
            if shares.any():
                passed += shares @ np.abs(part[:, : sources.n_features])
            start += len(part)
        if not passed.any():
            break
        total += passed
        now = np.where(last, 0.0, passed[np.where(last, 0, ends)])
    return total


def _graph(job: _Job, prompt: str, ignored: int) -> AttributionGraph:
    """The record: nodes of the features that have rows, errors, embeddings and logits."""
    sources, ends, lens = job.sources, job.ends, job.lens
    numbers = np.concatenate(job.numbers)
    features = np.sort(numbers[numbers < sources.n_features])
    columns = np.concatenate([features, np.arange(sources.n_features, sources.count)])
    place = np.full(sources.count + len(ends.tokens), -1, np.int64)
    place[columns] = np.arange(len(columns))
    node_of = np.where(numbers < sources.n_features, place[np.minimum(numbers, sources.count - 1)], 0)
    last = numbers >= sources.n_features
    node_of[last] = len(columns) + numbers[last] - sources.n_features
    whole = _edges(job, columns, node_of)
    nodes = _nodes(lens, sources, ends, features)
    tokens = tuple(token_text(lens, token) for token in sources.frozen.ids)
    graph = AttributionGraph(
        lens.info.name, prompt or "".join(tokens), tokens, len(sources.written), tuple(nodes), *whole,
        scan=sources.replacement.name, transcoders=(sources.replacement.name,),
        sums=_sums(job, columns, node_of, len(nodes)), n_active=sources.n_features,
        settings={"ignored_tokens": ignored, "max_feature_nodes": len(features), "max_n_logits": len(ends.tokens)},
    )  # fmt: skip
    return with_influence(graph)


def _edges(job: _Job, columns: Ints, node_of: Ints) -> tuple[Any, Any, Any]:
    sources, targets, weights, start = [], [], [], 0
    for part in job.rows:
        kept = part[:, columns]
        row, column = np.nonzero(kept)
        sources.append(column.astype(np.int32))
        targets.append(node_of[start + row].astype(np.int32))
        weights.append(kept[row, column])
        start += len(part)
    return np.concatenate(sources), np.concatenate(targets), np.concatenate(weights)


def _sums(job: _Job, columns: Ints, node_of: Ints, count: int) -> GraphSums:
    numbers = np.concatenate(job.numbers)
    value, left_out, *bias = (np.full(count, np.nan) for _ in range(6))
    last = numbers >= job.sources.n_features
    value[node_of] = job.value[numbers]
    left_out[node_of] = np.concatenate(
        [part.sum(axis=1, dtype=np.float64) - part[:, columns].sum(axis=1, dtype=np.float64) for part in job.rows]
    )
    for name, into in zip(BIASES, bias, strict=False):
        into[node_of] = np.concatenate(job.bias[name])
    constant = job.constant[numbers]
    bias[2][node_of] = np.where(last, 0.0, constant)
    bias[3][node_of] = np.where(last, constant, 0.0)
    named = dict(zip((*BIASES, "encoder", "unembedding"), bias, strict=True))
    return GraphSums(value, named, left_out)


def _nodes(lens: Core, sources: Sources, ends: Ends, features: Ints) -> list[GraphNode]:
    n_layers, ids = len(sources.written), sources.frozen.ids
    nodes = []
    for number in features.tolist():
        layer, at, feature = (int(part[number]) for part in (sources.layer, sources.position, sources.feature))
        value = float(sources.activation[number])
        nodes.append(GraphNode(feature_id(layer, feature, at), "feature", layer, at, feature, activation=value))
    taken = {node.id for node in nodes}
    texts = [token_text(lens, token) for token in ids]
    for layer in range(n_layers):
        nodes += [
            GraphNode(error_id(layer, at, taken), "error", layer, at, label=f'Err: mlp "{text}"')
            for at, text in enumerate(texts)
        ]
    nodes += [
        GraphNode(embedding_id(token, at), "embedding", -1, at, token, f'Emb: "{texts[at]}"')
        for at, token in enumerate(ids)
    ]
    last = len(ids) - 1
    nodes += [
        GraphNode(logit_id(n_layers, token, last), "logit", n_layers, last, token, label, probability=float(weight))
        for token, label, weight in zip(ends.tokens, ends.labels, ends.weights, strict=True)
    ]
    return nodes
