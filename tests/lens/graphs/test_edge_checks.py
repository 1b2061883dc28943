"""What removing a node does: predicted, and measured three ways, each against a forward in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.graphs.build_graph import attribute
from lens_tui.lens.graphs.edge_checks import check_nodes
from lens_tui.records import LensError
from lens_tui.records.attribution_graph import LogitTarget
from tests.lens import tiny
from tests.lens.graphs.frozen_numpy import Held, RandomTranscoders, held, read
from tests.lens.graphs.test_build_graph import CASES, IDS, stream_of
from tests.lens.numpy_models import Array


def seen(at: Held, fixed: Held, made: RandomTranscoders, node: Any) -> float:
    """A feature's pre-activation without its bias, or a logit less the mean of all, in a run with its own norms."""
    if node.kind == "logit":
        return float(at.logits[-1, node.feature] - at.logits[-1].mean())
    return float(
        read(at, made, node.layer, at.middle[node.layer])[node.position] @ made.w_enc[node.layer, node.feature]
    )


@pytest.mark.parametrize(("make", "how"), CASES)
def test_every_measurement_is_a_forward_written_out(make: Callable[[], Any], how: dict[str, Any]) -> None:
    model, made = make(), RandomTranscoders(**how)
    found = attribute(LensModel.from_model(model), IDS, made, ignored=1, most_logits=2)
    graph, plain = found.graph, held(model, IDS)
    features = [node.id for node in graph.nodes if node.kind == "feature"]
    checks = check_nodes(found, [features[2], features[-30], "0_1_3", f"E_{IDS[4]}_4"], k=4, factor=0.5)
    largest = 0.0
    for check in checks:
        streams = stream_of(plain, made, graph, graph.places[check.source])
        half = {layer: -0.5 * stream for layer, stream in streams.items()}
        free, patterned = held(model, IDS, None, half), held(model, IDS, plain.patterns, half)
        assert check.targets[-1].startswith("5_")
        for number, name in enumerate(check.targets):
            node = graph.nodes[graph.places[name]]
            assert check.frozen[number] == pytest.approx(check.predicted[number], abs=2e-5)
            assert check.predicted[number] == pytest.approx(
                -0.5 * graph.weight(graph.places[check.source], graph.places[name])
            )
            start = seen(plain, plain, made, node)
            assert check.free[number] == pytest.approx(seen(free, plain, made, node) - start, abs=2e-4)
            assert check.held[number] == pytest.approx(seen(patterned, plain, made, node) - start, abs=2e-4)
            largest = max(largest, abs(check.free[number]))
    assert largest > 0.05


def test_the_total_is_the_sum_over_all_paths() -> None:
    found = attribute(LensModel.from_model(tiny.llama()), IDS, RandomTranscoders(), ignored=1, most_logits=2)
    graph = found.graph
    count = len(graph.nodes)
    matrix: Array = np.zeros((count, count))
    matrix[graph.targets, graph.sources] = graph.weights
    active = np.array([node.activation or np.inf for node in graph.nodes])
    source = next(at for at, node in enumerate(graph.nodes) if node.kind == "feature" and node.layer == 0)
    relative = np.linalg.solve(np.eye(count) - matrix / active[:, None], np.eye(count)[source])
    (check,) = check_nodes(found, [graph.nodes[source].id], k=6)
    expected = [-(matrix @ relative)[graph.places[name]] for name in check.targets]
    np.testing.assert_allclose(check.total, expected, atol=1e-5)
    assert abs(np.array(check.total) - np.array(check.predicted)).max() > 1e-3


def test_a_direction_and_named_targets_are_checked() -> None:
    direction = tiny.unit().astype(np.float32)
    targets = [LogitTarget(direction=direction), LogitTarget(5, minus=7)]
    found = attribute(LensModel.from_model(tiny.llama()), IDS, RandomTranscoders(), targets=targets)
    (check,) = check_nodes(found, ["0_2_5"], targets=["5_97_5", "5_98_5"], factor=2.0)
    assert check.targets == ("5_97_5", "5_98_5")
    np.testing.assert_allclose(check.frozen, check.predicted, atol=1e-5)
    assert max(map(abs, check.free)) > 1e-3


def test_half_precision_checks_agree_as_far_as_it_rounds() -> None:
    made = RandomTranscoders()
    found = attribute(LensModel.from_model(tiny.qwen3(dtype=mx.bfloat16)), IDS, made, ignored=1)
    (check,) = check_nodes(found, [f"E_{IDS[3]}_3"])
    np.testing.assert_allclose(check.frozen, check.predicted, atol=1e-4)
    assert np.isfinite([*check.free, *check.held]).all()


def test_what_cannot_be_checked_is_said() -> None:
    found = attribute(LensModel.from_model(tiny.llama()), IDS, RandomTranscoders())
    logit = next(node.id for node in found.graph.nodes if node.kind == "logit")
    with pytest.raises(LensError, match="no node 'nobody'"):
        check_nodes(found, ["nobody"])
    with pytest.raises(LensError, match="adds nothing"):
        check_nodes(found, [logit])
    with pytest.raises(LensError, match="measured on features and logits"):
        check_nodes(found, ["0_1_3"], targets=["0_2_3"])
    with pytest.raises(LensError, match="cannot be multiplied by nan"):
        check_nodes(found, ["0_1_3"], factor=float("nan"))
