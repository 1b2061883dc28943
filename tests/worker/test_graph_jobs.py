"""The jobs of the attribution graph are the library's graph, its pruning, its checks and its directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lens_tui import LensModel, attribute, check_nodes, load_transcoders, node_vector, prune_graph, read_graph
from lens_tui.lens.vectors import random_unit
from lens_tui.records.attribution_graph import LogitTarget
from lens_tui.records.cause_plan import GraphFound, GraphPlan
from lens_tui.records.cause_store import CauseStore
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.folders import transcoder_folder
from tests.worker.drive import Driver, of, only


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> GraphPlan:
    folder = transcoder_folder(tmp_path_factory.mktemp("graph") / "set")
    return GraphPlan("Once upon a time", "id:5", "id:9", str(folder), nodes=0.95)


@pytest.fixture(scope="module")
def found(loaded: Driver, plan: GraphPlan) -> GraphFound:
    return only(loaded.done(jobs.MakeGraph(plan)), ev.GraphMade).found


def test_a_graph_its_pruning_checks_and_directions_are_the_librarys(
    loaded: Driver, tiny: Path, plan: GraphPlan, found: GraphFound, tmp_path: Path
) -> None:
    made = attribute(LensModel(str(tiny)), plan.prompt, load_transcoders(plan.transcoders), targets=[LogitTarget(5, 9)])
    assert [node.id for node in found.whole.nodes] == [node.id for node in made.graph.nodes]
    np.testing.assert_allclose(found.whole.weights, made.graph.weights, atol=1e-5)
    assert found.sum_error is not None
    assert found.sum_error < 1e-4
    expected = prune_graph(made.graph, 0.95, 0.98)
    assert [node.id for node in found.pruned.nodes] == [node.id for node in expected.nodes]
    assert all(node.label for node in found.pruned.nodes if node.kind != "error")

    left_out = next(node.id for node in found.whole.nodes if node.id not in found.pruned.places)
    pinned = replace(found, whole=replace(found.whole, pinned=(left_out,)))
    less = only(loaded.done(jobs.PruneGraph(pinned, replace(plan, nodes=0.3))), ev.GraphMade).found
    assert left_out in less.pruned.places or not found.whole.out_of(found.whole.places[left_out])
    assert len(less.pruned.nodes) <= len(found.pruned.nodes) + 1
    assert less.whole.nodes is found.whole.nodes

    source = next(node.id for node in found.whole.nodes if node.kind == "feature")
    target = found.pruned.nodes[-1].id
    check = only(loaded.done(jobs.CheckNode(found, source, (target,))), ev.NodeChecked).check
    (wanted,) = check_nodes(made, [source], targets=[target])
    for name in ("predicted", "frozen", "total", "held", "free"):
        np.testing.assert_allclose(getattr(check, name), getattr(wanted, name), atol=1e-4)

    for kind in ("feature", "error", "embedding", "logit"):
        node = next(node.id for node in found.whole.nodes if node.kind == kind)
        vector = only(loaded.done(jobs.VectorFromNode(found, node, "v")), ev.VectorMade).vector
        mine = node_vector(made, node)
        np.testing.assert_allclose(vector.direction, mine.direction, atol=1e-4)
        assert (vector.layer, vector.site, vector.name) == (mine.layer, mine.site, "v")

    file = tmp_path / "g.json"
    loaded.done(jobs.WriteGraph(found.pruned, str(file)))
    again = only(loaded.done(jobs.ReadGraph(str(file))), ev.GraphMade).found
    assert again.pruned.nodes == read_graph(file).nodes
    assert "read from a file" in loaded.failed(jobs.CheckNode(again, source, (target,))).message
    fewer = only(loaded.done(jobs.PruneGraph(again, replace(again.plan, nodes=0.3))), ev.GraphMade).found
    assert len(fewer.pruned.nodes) < len(again.pruned.nodes)


def test_several_targets_a_direction_and_ignored_tokens_are_the_librarys(
    loaded: Driver, tiny: Path, plan: GraphPlan
) -> None:
    lens = LensModel(str(tiny))
    along = random_unit(lens, "r", 1, seed=3)
    asked = replace(plan, target="id:5|id:9|id:7", minus="", ignored=2, direction=along)
    found = only(loaded.done(jobs.MakeGraph(asked)), ev.GraphMade).found
    targets = [LogitTarget(5), LogitTarget(9), LogitTarget(7), LogitTarget(direction=along.direction)]
    made = attribute(lens, asked.prompt, load_transcoders(asked.transcoders), targets=targets, ignored=2)
    assert [node.id for node in found.whole.nodes] == [node.id for node in made.graph.nodes]
    np.testing.assert_allclose(found.whole.weights, made.graph.weights, atol=1e-5)
    assert [node.label for node in found.whole.nodes if node.kind == "logit"][-1] == "along r"
    assert min(node.position for node in found.whole.nodes if node.kind == "feature") >= 2
    assert "difference is of one target" in loaded.failed(jobs.MakeGraph(replace(asked, minus="id:3"))).message


def test_what_a_feature_adds_is_its_decoder_row_times_its_activation(tiny: Path, plan: GraphPlan) -> None:
    transcoders = load_transcoders(plan.transcoders)
    made = attribute(LensModel(str(tiny)), plan.prompt, transcoders)
    node = next(node for node in made.graph.nodes if node.kind == "feature" and node.layer == 1)
    row = np.array(transcoders.decoder(1, 1, np.array([node.feature]))[0])
    vector = node_vector(made, node.id)
    assert node.activation is not None
    np.testing.assert_allclose(vector.direction, row / np.linalg.norm(row), atol=1e-5)
    assert vector.norm == pytest.approx(float(np.linalg.norm(row)) * node.activation, rel=1e-4)
    assert (vector.layer, vector.site) == (1, "resid_post")


def test_an_older_graph_is_made_once_more_to_be_checked(loaded: Driver, plan: GraphPlan, found: GraphFound) -> None:
    loaded.done(jobs.MakeGraph(replace(plan, prompt="Once upon a page")))
    source, target = found.pruned.nodes[0].id, found.pruned.nodes[-1].id
    check = only(loaded.done(jobs.CheckNode(found, source, (target,))), ev.NodeChecked).check
    graph = found.whole
    assert check.predicted[0] == pytest.approx(-graph.weight(graph.places[source], graph.places[target]), abs=1e-5)
    assert check.frozen[0] == pytest.approx(check.predicted[0], abs=1e-4)


def test_a_graph_is_kept_and_one_of_the_disk_is_pruned_and_checked_by_making_it_once_more(
    tiny: Path, home: Path, plan: GraphPlan, tmp_path: Path
) -> None:
    database = tmp_path / "h.db"
    first = Driver(Worker(history=database))
    first.done(jobs.LoadModel(str(tiny)))
    made = only(first.done(jobs.MakeGraph(plan)), ev.GraphMade)
    assert made.unkept == ""
    pins = tuple(node.id for node in made.found.pruned.nodes if node.kind == "feature")[:2]
    pinned = replace(made.found, pruned=replace(made.found.pruned, pinned=pins))
    first.done(jobs.KeepGraph(pinned))
    assert first.worker.close(60)

    with CauseStore(database).store as store:
        kept = CauseStore(store).get(made.found.kept)
        assert kept is not None
        assert isinstance(kept.found, GraphFound)
    assert kept.found.pruned.nodes == made.found.pruned.nodes
    assert kept.found.pruned.pinned == pins
    assert kept.made_with.source == str(tiny)
    second = Driver(Worker(history=database))
    second.done(jobs.LoadModel(str(tiny)))
    target = next(node.id for node in kept.found.pruned.nodes if node.kind == "logit")
    check = only(second.done(jobs.CheckNode(kept.found, pins[0], (target,))), ev.NodeChecked).check
    graph = made.found.whole
    weight = graph.weight(graph.places[pins[0]], graph.places[target])
    assert check.predicted[0] == pytest.approx(-weight, abs=1e-5)
    wider = replace(plan, nodes=0.99)
    more = only(second.done(jobs.MakeGraph(wider, kept.found.kept)), ev.GraphMade).found
    assert more.kept == made.found.kept  # not a second one
    assert len(more.pruned.nodes) > len(kept.found.pruned.nodes)
    assert second.worker.close(60)
    assert len(CauseStore(database).list()) == 1


def test_a_model_without_transcoders_named_says_what_to_do(loaded: Driver) -> None:
    failure = loaded.failed(jobs.MakeGraph(GraphPlan("Once upon a time")))
    assert "No transcoders are named" in failure.message
    assert "Name a set" in failure.hint


def test_a_stop_ends_between_two_batches_of_rows(loaded: Driver, plan: GraphPlan) -> None:
    number = loaded.worker.submit(jobs.MakeGraph(plan))
    loaded.worker.stop(number)
    seen = loaded.follow(number, lambda _: None)
    assert isinstance(seen[-1], ev.JobDone)
    assert seen[-1].stopped
    assert not of(seen, ev.GraphMade)
