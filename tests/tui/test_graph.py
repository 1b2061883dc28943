"""The attribution graph on Causes: asked for, gone through, pruned, pinned, checked, and taken elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from lens_tui.records import LensError, Origin
from lens_tui.records.attribution_graph import EdgeCheck, node_influence, prune_graph
from lens_tui.records.cause_plan import GraphPlan
from lens_tui.records.graph_file import read_graph
from lens_tui.tui.app import LensApp
from lens_tui.tui.graph_text import GraphLayout, NodeView, edges_of, graph_question, merged, node_lines
from lens_tui.tui.screens.causes_screen import CausesScreen
from lens_tui.tui.screens.features_screen import FeaturesScreen
from lens_tui.tui.screens.graph_pane import GraphPane
from lens_tui.tui.widgets.entry import Pick
from lens_tui.worker.jobs import CheckNode, Compare, Encode, LoadSAE, MakeGraph, Patch, VectorFromNode
from tests.fake_graphs import PATH, whole_graph
from tests.fakes import DEMO_SAE, FakeWorker, unit_vector

from .opened import PROMPT, jobs_of, opened, screen_text, settle

TO_GRAPH = ("V", "V", "V")
WORK = frozenset(["enter", "e", "o", "i", "w", "H", "c", "F", "plus", "minus"])
"""Keys whose work is waited for before the next one."""


def heard(app: LensApp, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(app, "say", said.append)
    return said


@asynccontextmanager
async def graph_opened(*keys: str, **options: Any) -> AsyncIterator[tuple[LensApp, Pilot[None], GraphPane]]:
    async with opened("causes", **options) as (app, pilot):
        screen = app.screen
        assert isinstance(screen, CausesScreen)
        await press(app, pilot, *TO_GRAPH, *keys)
        yield app, pilot, screen.graph


async def press(app: LensApp, pilot: Pilot[None], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        if key in WORK:
            await settle(app, pilot)
    await settle(app, pilot)


def test_nodes_stand_in_their_layer_and_token_the_strongest_first() -> None:
    graph = prune_graph(whole_graph(GraphPlan(PROMPT)))
    layout = GraphLayout.of(graph)
    scores = node_influence(graph)
    assert layout.rows[0] == "emb"
    assert layout.rows[-1] == "out"
    seen: list[int] = []
    for (row, column), nodes in layout.cells.items():
        seen += nodes
        for at in nodes:
            assert (row, column) == (graph.nodes[at].layer + 1, graph.nodes[at].position)
            if graph.nodes[at].kind != "logit":
                assert layout.share[at] == pytest.approx(scores[at] / scores.sum())
        shares = [layout.share[at] for at in nodes]
        assert shares == sorted(shares, reverse=True)
    assert sorted(seen) == list(range(len(graph.nodes)))
    assert graph.nodes[layout.order[0]].label.startswith('Output " went"')
    inner = [layout.share[at] for at in layout.order[3:]]
    assert inner == sorted(inner, reverse=True)
    assert layout.level(layout.order[3]) == 7


@pytest.mark.parametrize("width", [27, 42, 80])
def test_a_node_says_its_edges_by_weight_and_what_was_measured(width: int) -> None:
    graph = prune_graph(whole_graph(GraphPlan(PROMPT)))
    layout = GraphLayout.of(graph)
    at = next(at for at in layout.order if graph.nodes[at].kind == "feature" and graph.nodes[at].layer == 4)
    found = edges_of(graph, at)
    inward = [edge for edge in found if edge.inward]
    assert [edge.weight for edge in inward] == sorted((edge.weight for edge in inward), key=abs, reverse=True)
    assert all(edge.weight == pytest.approx(graph.weight(edge.other, at)) for edge in inward)
    target = next(edge for edge in found if not edge.inward).other
    columns = ((-1.25,), (-1.5,), (2.0,), (0.0,), (0.75,))
    checks = {graph.nodes[at].id: EdgeCheck(graph.nodes[at].id, 0.0, (graph.nodes[target].id,), *columns)}
    lines, edge, check = node_lines(layout, NodeView(at, 1, checks), width)
    texts = [line.plain for line in lines]
    assert all(line.cell_length <= width for line in lines)
    assert texts[edge].startswith("▸")
    assert f"{inward[1].weight:+.2f}" in texts[edge]
    figures = ["-1.25", "-1.50", "+2.00", "0.00", "+0.75"] if width > 30 else ["-1.2", "-1.5", "+2.0", "0.0", "+0.8"]
    assert texts[check].split() == figures
    assert any(line.startswith("share") and line.endswith(f"{layout.share[at]:.1%}") for line in texts)


def test_two_checks_of_a_node_are_one_table() -> None:
    old = EdgeCheck("a", 0.0, ("x", "y"), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0))
    new = EdgeCheck("a", 0.0, ("y", "z"), (5.0, 6.0), (5.0, 6.0), (5.0, 6.0), (5.0, 6.0), (5.0, 6.0))
    both = merged(old, new)
    assert both.targets == ("y", "z", "x")
    assert both.free == (5.0, 6.0, 1.0)
    assert merged(old, replace(new, factor=2.0)) == replace(new, factor=2.0)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_empty_pane_names_its_key_and_the_opening_is_ready(size: tuple[int, int]) -> None:
    async with graph_opened(size=size) as (app, pilot, graph):
        assert "⏎ makes the graph" in " ".join(screen_text(app).split())
        assert PROMPT in screen_text(app)
        await press(app, pilot, "enter")
        assert [job.plan for job in jobs_of(app, MakeGraph)] == [GraphPlan(PROMPT)]
        assert graph.found is not None
        assert graph.chosen is not None
        assert graph.chosen.kind == "logit"
        text = screen_text(app)
        assert "comes from" in text
        assert "▲" in text
        assert "60% of influence" in text
        assert "◉ pinned" in text
        assert not jobs_of(app, Patch)


async def test_arrows_go_among_nodes_and_enter_along_an_edge() -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        layout = graph.layout_of
        assert layout is not None
        row = layout.in_row(layout.row(graph.map.node))
        await press(app, pilot, "l")
        assert graph.map.node == row[1]
        await press(app, pilot, "h", "j")
        below = max(at for at, _ in layout.cells if at < layout.row(row[0]))
        assert layout.row(graph.map.node) == below
        await press(app, pilot, "G")
        assert graph.map.node == layout.in_row(layout.row(graph.map.node))[-1]
        await press(app, pilot, "k")
        assert layout.row(graph.map.node) == len(layout.rows) - 1
        await press(app, pilot, "n", "n", "n")
        start = graph.map.node
        await press(app, pilot, "right_square_bracket")
        wanted = graph.edges_here[1].other
        await press(app, pilot, "enter")
        assert graph.map.node == wanted != start
        assert len(jobs_of(app, MakeGraph)) == 1
        order = list(layout.order)
        at = order.index(wanted)
        await press(app, pilot, "N")
        assert graph.map.node == order[at - 1]


async def test_nodes_are_found_by_words_and_n_goes_through_those_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        said = heard(app, monkeypatch)
        layout = graph.layout_of
        assert layout is not None
        nodes = layout.graph.nodes
        found = [at for at in layout.order if nodes[at].layer == 1 and nodes[at].kind == "feature"]
        assert 1 < len(found) < len(layout.order)
        await press(app, pilot, "slash", *"L1", "space", "#", "enter")
        assert said[-1] == f"{len(found)} nodes with “L1 #”: n and N go through them."
        for at in found[1:3]:
            await press(app, pilot, "n")
            assert graph.map.node == at
        await press(app, pilot, "slash", "backspace", "enter")  # what was typed before is selected
        assert said[-1] == "n and N go through every node."
        order = list(layout.order)
        here = order.index(graph.map.node)
        await press(app, pilot, "N")
        assert graph.map.node == order[here - 1]


async def test_the_dial_prunes_and_pinned_nodes_stay() -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        assert graph.found is not None
        last = graph.found.pruned.nodes[graph.layout_of.order[-1]].id  # type: ignore[union-attr]
        graph.map.node = graph.found.pruned.places[last]
        await press(app, pilot, "space")
        assert graph.found.whole.pinned == (last,)
        before = len(graph.found.pruned.nodes)
        await press(app, pilot, "minus", "minus")
        assert graph.found.plan.nodes == 0.4
        shown = graph.found.pruned
        expected = prune_graph(graph.found.whole, 0.4, graph.plan.edges, frozenset([last]))
        assert [node.id for node in shown.nodes] == [node.id for node in expected.nodes]
        assert len(shown.nodes) < before
        assert "40% of influence" in screen_text(app)
        if last in shown.places:
            assert graph.chosen is not None
            assert graph.chosen.id == last
        await press(app, pilot, "plus")
        assert graph.found.plan.nodes == 0.5
        assert len(jobs_of(app, MakeGraph)) == 1


async def test_pinned_nodes_become_a_group_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        said = heard(app, monkeypatch)
        await press(app, pilot, "w")
        assert "pins the one under the cursor" in said[-1]
        await press(app, pilot, "n", "n", "n", "space", "n", "space", "w")
        app.screen.query_one("#name", Input).value = "says [b]where[/b]"
        await press(app, pilot, "enter")
        assert graph.found is not None
        (group,) = graph.found.pruned.supernodes
        assert (group.name, len(group.nodes)) == ("says [b]where[/b]", 2)
        assert graph.found.whole.pinned == ()
        assert "in says [b]where[/b], 2 nodes" in screen_text(app)
        offers = dict(graph.offers())
        offers["Go to the group says [b]where[/b]"]()
        await settle(app, pilot)
        assert graph.chosen is not None
        assert graph.chosen.id == group.nodes[0]
        offers["Take the group says [b]where[/b] apart"]()
        await settle(app, pilot)
        assert graph.found.pruned.supernodes == ()


async def test_an_edge_and_a_node_are_checked_live(monkeypatch: pytest.MonkeyPatch) -> None:
    async with graph_opened("enter", "c") as (app, pilot, graph):
        (job,) = jobs_of(app, CheckNode)
        assert graph.found is not None
        shown = graph.found.pruned
        assert job.node == shown.nodes[graph.edges_here[0].other].id
        assert job.targets == (graph.chosen.id,)  # type: ignore[union-attr]
        text = screen_text(app)
        assert "removed:" in text
        assert "frozen" in text
        assert f"{-graph.edges_here[0].weight:+.2f}" in text
        said = heard(app, monkeypatch)
        await press(app, pilot, "C")
        assert "A logit acts on nothing" in said[-1]
        await press(app, pilot, "enter", "C")
        assert graph.chosen is not None
        check = graph.checks[graph.chosen.id]
        assert len(check.targets) >= 2
        assert graph.explains[0] == "graph_checks"


async def test_a_node_goes_to_the_bench_and_a_feature_to_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async with graph_opened("s", steers=0) as (app, pilot, graph):
        assert not app.store.session.steers
        said = heard(app, monkeypatch)
        await press(app, pilot, "enter", "F")
        assert "Only a feature has a page" in said[-1]
        at = next(at for at, node in enumerate(graph.found.pruned.nodes) if node.kind == "feature")  # type: ignore[union-attr]
        graph.map.node = at
        await press(app, pilot, "s")
        node = graph.chosen
        assert node is not None
        assert [job.node for job in jobs_of(app, VectorFromNode)] == [node.id]
        assert app.store.session.steers[-1].vector.name == f"L{node.layer} #{node.feature}"
        await press(app, pilot, "F")
        assert jobs_of(app, LoadSAE)[-1].path == PATH
        assert isinstance(app.screen, FeaturesScreen)
        assert app.screen.list.chosen == node.feature


async def test_a_graph_is_saved_opened_copied_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    async with graph_opened("enter", "n", "n", "n", "space", "e") as (app, pilot, graph):
        monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
        file = tmp_path / "door.json"
        app.screen.query_one("#file", Input).value = str(file)
        await press(app, pilot, "enter")
        assert graph.found is not None
        assert read_graph(file).nodes == graph.found.pruned.nodes
        assert read_graph(file).pinned == graph.found.pruned.pinned != ()
        await press(app, pilot, "y", "Y")
        assert PROMPT in copied[0]
        node = graph.chosen
        assert node is not None
        assert copied[1].endswith(f"--nodes 0.6 --edges 0.98 --features 4096 --node {node.id} -- '{PROMPT}'")
        made = graph.found
        await press(app, pilot, "o")
        app.screen.query_one("#file", Input).value = str(file)
        await press(app, pilot, "enter")
        assert graph.found.file == str(file)
        assert len(graph.found.pruned.nodes) == len(made.pruned.nodes)
        await press(app, pilot, "Y")
        assert f"graph --read {file}" in copied[2]
        await press(app, pilot, "c")
        assert "read from a file" in screen_text(app)
        await press(app, pilot, "escape", "H", "j", "enter")
        assert graph.found.whole.nodes is made.whole.nodes
        assert graph.found.whole.pinned == made.whole.pinned


async def test_another_question_is_asked_in_the_form() -> None:
    async with graph_opened("enter", "i") as (app, pilot, graph):
        app.screen.query_one("#prompt", Input).value = "The king had"
        app.screen.query_one("#target", Input).value = " a"
        app.screen.query_one("#minus", Input).value = " the"
        await press(app, pilot, "enter")
        assert jobs_of(app, MakeGraph)[-1].plan == GraphPlan("The king had", " a", " the")
        assert "‘·a’ less ‘·the’" in screen_text(app)
        app.store.update(prompt="Something else")
        await settle(app, pilot)
        assert not graph.stale


async def test_several_targets_a_direction_and_ignored_tokens_are_asked_in_the_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with graph_opened("enter") as (app, pilot, _graph):
        copied: list[str] = []
        monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
        vector = replace(unit_vector("dog"), origin=Origin("random", {"seed": 3}))
        app.store.add_steer(vector)
        await press(app, pilot, "i")
        app.screen.query_one("#target", Input).value = " a | the"
        pick = app.screen.query_one("#direction", Pick)
        assert pick.options[0] == "none"
        pick.place = next(at for at, name in enumerate(pick.options) if name.endswith("dog"))
        app.screen.query_one("#ignored", Input).value = "-2"
        await press(app, pilot, "enter")
        assert "ignored needs at least 0" in screen_text(app) or "whole number" in screen_text(app)
        app.screen.query_one("#ignored", Input).value = "2"
        await press(app, pilot, "enter")
        plan = jobs_of(app, MakeGraph)[-1].plan
        assert plan == GraphPlan(PROMPT, " a | the", ignored=2, direction=vector)
        assert plan.written == (" a", " the")
        assert "‘·a’, ‘·the’, along dog" in screen_text(app)
        await press(app, pilot, "Y")
        assert "--target ' a' --target ' the' --ignored 2 --direction random:3@4 --" in copied[0]
        await press(app, pilot, "i")
        assert app.screen.query_one("#direction", Pick).value.endswith("dog")
        app.screen.query_one("#ignored", Input).value = ""
        await press(app, pilot, "enter")
        assert jobs_of(app, MakeGraph)[-1].plan.ignored == -1


async def test_a_new_prompt_makes_the_graph_one_of_before() -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        app.store.update(prompt="The king had")
        await settle(app, pilot)
        assert graph.stale
        assert "as of before" in screen_text(app)
        await press(app, pilot, "enter")
        assert jobs_of(app, MakeGraph)[-1].plan.prompt == "The king had"
        assert not graph.stale


async def test_keys_of_patches_do_nothing_while_the_graph_shows_and_a_run_is_a_key_away() -> None:
    async with graph_opened("enter") as (app, pilot, graph):
        assert isinstance(app.screen, CausesScreen)
        screen = app.screen
        plan = screen.patches.plan
        await press(app, pilot, "M", "b", "v")
        assert screen.patches.plan == plan
        await press(app, pilot, "V")
        assert not screen.of_graph
        assert screen.patches.display
        await press(app, pilot, "enter")
        assert len(jobs_of(app, Patch)) == 1
        await press(app, pilot, *TO_GRAPH)
        assert screen.of_graph
        assert graph.found is not None
        await press(app, pilot, "r")
        assert jobs_of(app, Compare)


async def test_a_graph_behind_another_job_says_that_it_waits() -> None:
    async with graph_opened() as (app, pilot, _):
        worker = cast("FakeWorker", app.worker)
        worker.hold()
        app.submit(Encode(DEMO_SAE.id, "a door", ()), "before", lambda event: None)
        await press(app, pilot, "enter")
        assert "waits for what runs" in screen_text(app)
        assert "making the graph" not in screen_text(app)
        for _ in range(8):
            if "waits for what runs" in screen_text(app):
                worker.release(1)
                await settle(app, pilot)
        assert "making the graph" in screen_text(app)
        worker.release()


async def test_a_failure_is_said_and_another_model_forgets() -> None:
    failures: Any = {MakeGraph: LensError("No transcoders are named.", "Name a set.")}
    async with graph_opened("enter", failures=failures) as (app, pilot, _):
        assert "Name a set." in screen_text(app)
    async with graph_opened("enter") as (app, pilot, graph):
        model = app.store.session.model
        assert model is not None
        app.store.update(model=replace(model, name="other"))
        await settle(app, pilot)
        assert graph.found is None
        assert "makes the graph" in screen_text(app)
        app.store.update(model=None)
        await settle(app, pilot)
        assert "No model: 1 goes to Load." in screen_text(app)


@pytest.mark.parametrize("text", ["[b]x[/b] [@click=app.quit]y[/]", "\x1b]52;c;aGk=\x07\x1b[2J", "\u202eabc \ud800"])
async def test_hostile_labels_and_prompts_are_shown_and_not_acted_on(text: str) -> None:
    async with graph_opened("enter", "n", "n", "n") as (app, pilot, graph):
        found = graph.found
        assert found is not None
        nodes = tuple(replace(node, label=text) for node in found.pruned.nodes)
        shown = replace(found.pruned, nodes=nodes, tokens=(text,) * len(found.pruned.tokens), prompt=text)
        graph.plan = replace(graph.plan, prompt=text, target=text)
        graph._show(replace(found, pruned=shown, plan=graph.plan))
        await press(app, pilot, "space", "c")
        painted = screen_text(app)
        assert "\x1b" not in painted
        assert "\u202e" not in painted
        if text.startswith("[b]"):
            assert "[b]x[/b]" in painted


def test_the_question_is_two_lines_of_the_width() -> None:
    for plan in (GraphPlan(PROMPT), GraphPlan("x" * 500, " a", " b")):
        lines = graph_question(plan, None, 50)
        assert len(lines) == 2
        assert all(line.cell_length <= 50 for line in lines)
