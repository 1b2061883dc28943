"""The bundled transcoders give the graph of the opening that the page speaks of."""

from __future__ import annotations

import numpy as np
import pytest

from lens_tui import LensModel, demo
from lens_tui.lens.graphs.edge_checks import check_nodes
from lens_tui.records.attribution_graph import graph_scores, prune_graph
from lens_tui.tasks.graphs import make_graph, open_transcoders


def test_the_openings_graph_adds_up_and_is_made_of_features() -> None:
    """Two seconds: it is the one test of the whole way on the bundled model."""
    made = make_graph(LensModel("demo"), demo.starter().prompt, open_transcoders("demo"))
    graph = made.graph
    assert graph.scan == demo.NAME
    assert graph.n_active == pytest.approx(2075, abs=10)
    assert np.nanmax(np.abs(graph.sum_errors())) < 1e-4
    scores = graph_scores(graph)
    assert scores.completeness > 0.9
    assert scores.replacement > 0.7
    small = prune_graph(graph)
    assert sum(node.kind == "feature" for node in small.nodes) == pytest.approx(333, abs=15)
    top = min((node for node in small.nodes if node.kind == "feature"), key=lambda node: node.influence or 1.0)
    (check,) = check_nodes(made, [top.id], k=3)
    np.testing.assert_allclose(check.frozen, check.predicted, atol=1e-4)
    np.testing.assert_allclose(check.free[0], check.predicted[0], rtol=0.25)
