"""Attribution graphs of the same small llama here and in circuit-tracer, in a Python of its own; and of the opening.

Before a time is taken every direct effect is compared, within 1e-4 of the largest. What circuit-tracer leaves out, the
MLPs' errors at the first token, is left out of that.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lens_tui import LensModel, attribution_graph, demo, load_transcoders
from lens_tui.records import AttributionGraph
from tests.folders import transcoder_folder

from .machine import Options
from .report import Row, absent, of_speeds
from .serving import Served, first_that_has
from .torch_peers import CONFIG, OFFLINE, same_within, torch_device, write_model
from .turns import medians, timed

WITH_GRAPHS, GRAPHS_HELP = (
    "version('circuit-tracer') and version('torch')",
    "not here: python3 -m venv graphs && graphs/bin/pip install torch circuit-tracer, then --peers",
)
TOKENS, WIDTH, LOGITS = 8, 128, 3


def rows(options: Options) -> Iterator[Row]:
    """Rows of a graph a second of both, if there is a Python that has the peer; and the bundled model's graph."""
    yield _opening()
    python = first_that_has(options.peers, WITH_GRAPHS)
    if python is None:
        yield absent("circuit-tracer: rows of an attribution graph", GRAPHS_HELP)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from _against(python, Path(folder), options)


def _opening() -> Row:
    """The graph of the demo's opening, model and transcoders loaded: processor time, whatever else runs."""
    lens, transcoders = LensModel("demo"), load_transcoders("demo")
    start = time.process_time()
    graph = attribution_graph(lens, demo.starter().prompt, transcoders)
    spent = time.process_time() - start
    what = f"graph of the demo's opening: {_count(graph):,} rows"
    return Row(what, f"{spent:.2f} s of processor time", "-", spent, None, "s")


def _count(graph: AttributionGraph) -> int:
    return sum(node.kind in ("feature", "logit") for node in graph.nodes)


def _against(python: str, folder: Path, options: Options) -> Iterator[Row]:
    lens = LensModel.from_model(write_model(folder), name="small llama")
    transcoder_folder(folder / "set", n_layers=lens.n_layers, width=WIDTH, d_model=lens.d_model)
    ids = [0, *np.random.default_rng(0).integers(2, 8000, TOKENS - 1).tolist()]
    (folder / "plan.json").write_text(
        json.dumps({"ids": ids, "logits": LOGITS, "config": CONFIG, "device": torch_device()})
    )
    transcoders = load_transcoders(folder / "set")

    def ours() -> AttributionGraph:
        return attribution_graph(
            lens, ids, transcoders, ignored=1, most_logits=LOGITS, mass=1.0, most_features=1_000_000
        )

    with Served(python, "benchmarks.torch_child", "graphs", str(folder), also=OFFLINE) as peer:
        name = f"circuit-tracer {peer.hello['circuit-tracer']}, torch {peer.hello['torch']}"
        graph = ours()
        same_within("direct effects", effects(graph), folder / "effects.npy")
        found = medians({"ours": timed(ours), name: peer.contender("graph")}, options.repeats(3))
        rates = [_count(graph) / found[each] for each in ("ours", name)]
        yield of_speeds(f"small llama, {TOKENS} tokens: rows of a graph", *rates, name, unit="rows/s")


def effects(graph: AttributionGraph) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The dense matrix of a graph, targets by sources, in circuit-tracer's order; nothing from the first errors."""
    matrix = np.zeros((len(graph.nodes), len(graph.nodes)), np.float32)
    matrix[graph.targets, graph.sources] = graph.weights
    dropped = [at for at, node in enumerate(graph.nodes) if node.kind == "error" and node.position == 0]
    matrix[:, dropped] = 0.0
    return matrix
