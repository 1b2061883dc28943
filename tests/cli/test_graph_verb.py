"""``mlx-lens-tui graph``: the numbers are the library's, the file is read by it, and what it says fits the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from lens_tui import LensModel
from lens_tui.cli.command import app
from lens_tui.lens.graphs.build_graph import attribution_graph
from lens_tui.lens.vectors import random_unit
from lens_tui.records.attribution_graph import LogitTarget, graph_scores, prune_graph
from lens_tui.records.graph_file import read_graph, write_graph
from lens_tui.sae.transcoder_sets import load_transcoders
from lens_tui.tasks.graphs import open_graph, with_promoted
from tests.folders import llama_folder, transcoder_folder
from tests.hub import FakeHub, use_hub
from tests.records.test_attribution_graph import small_graph

PROMPT = "The old man opened the door and"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("graph")
    return str(llama_folder(root / "tiny")), str(transcoder_folder(root / "set"))


def run(places: tuple[str, str], *arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["graph", "-m", places[0], "-t", places[1], *arguments])
    assert done.exit_code == status, done.output
    return done.stdout if not status else done.output


def test_json_and_the_file_hold_the_librarys_graph(places: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "g.json"
    result = json.loads(run(places, PROMPT, "--json", "-o", str(out), "--nodes", "0.9"))
    whole = attribution_graph(LensModel(places[0]), PROMPT, load_transcoders(places[1]))
    graph = prune_graph(whole, 0.9)
    assert result["prompt"] == PROMPT
    assert (result["scan"], result["n_active"], result["n_layers"]) == ("a-set", whole.n_active, 3)
    assert {node["id"] for node in result["nodes"]} == {node.id for node in graph.nodes}
    assert all(node["label"].startswith("promotes “") for node in result["nodes"] if node["kind"] == "feature")
    edges = {(edge["source"], edge["target"]): edge["weight"] for edge in result["edges"]}
    for source, target, weight in zip(graph.sources, graph.targets, graph.weights, strict=True):
        assert edges[graph.nodes[source].id, graph.nodes[target].id] == pytest.approx(float(weight), abs=1e-5)
    assert len(edges) == graph.n_edges
    assert result["sum_error"] < 1e-4
    assert 0 < result["replacement"] < 1
    assert sum(node["share"] or 0 for node in result["nodes"]) == pytest.approx(1.0)
    kept = read_graph(out)
    assert [replace(node, label="") for node in kept.nodes] == [replace(node, label="") for node in graph.nodes]
    np.testing.assert_allclose(np.sort(kept.weights), np.sort(graph.weights), atol=1e-5)
    assert kept.generator.startswith("mlx-lens-tui ")
    assert kept.slug == "tiny-the-old-man-opened-the-door-and"
    again = CliRunner().invoke(app, ["graph", "--read", str(out), "--json"])
    facts = ("n_active", "sum_error", "replacement", "completeness")
    assert [json.loads(again.stdout)[name] for name in facts] == [result[name] for name in facts]
    assert open_graph(str(out)).scores == kept.scores == graph_scores(whole)
    bare = replace(kept, scores=None, sum_error=None, n_active=0)
    write_graph(bare, out)
    again = CliRunner().invoke(app, ["graph", "--read", str(out), "--json"])
    assert [json.loads(again.stdout)[name] for name in facts] == [None] * 4


def test_a_feature_without_a_label_says_what_it_promotes(places: tuple[str, str]) -> None:
    lens, found = LensModel(places[0]), load_transcoders(places[1])
    graph = with_promoted(lens, attribution_graph(lens, PROMPT, found), found, most=5, k=1)
    named = [node for node in graph.nodes if node.label.startswith("promotes")]
    assert len({(node.layer, node.feature) for node in named}) == 5
    weights = load_file(Path(places[0]) / "model.safetensors")
    head, gain = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
    for node in named:
        row = load_file(Path(places[1]) / f"layer_{node.layer}.safetensors")["W_dec"][node.feature]
        assert node.label == f"promotes “{lens.tokens.decode([int(np.argmax(head @ (row * gain)))])}”"


def test_checks_are_of_the_features_with_the_most_influence(places: tuple[str, str]) -> None:
    result = json.loads(run(places, PROMPT, "--json", "--check", "2", "--factor", "2"))
    order = [node["id"] for node in result["nodes"] if node["kind"] == "feature"]
    assert [check["source"] for check in result["checks"]] == order[:2]
    for check in result["checks"]:
        np.testing.assert_allclose(check["frozen"], check["predicted"], atol=1e-4)
        assert len(check["targets"]) == len(check["free"])
    shown = run(places, PROMPT, "--check", "1")
    assert "removed: L" in shown
    assert "direct  frozen   total    held    free  on" in shown


def test_the_table_says_what_counts_and_the_edges_of_a_node(places: tuple[str, str]) -> None:
    shown = run(places, PROMPT)
    assert 'Output "' in shown.splitlines()[0]
    assert "share  node" in shown
    assert "   from  logit @7" in shown
    result = json.loads(run(places, PROMPT, "--json", "--nodes", "1", "--edges", "1"))
    feature = next(node["id"] for node in result["nodes"] if node["kind"] == "feature" and node["layer"] == 1)
    edges = run(places, PROMPT, "--node", feature, "--nodes", "1", "--edges", "1")
    assert "   from  L1 #" in edges
    assert "     to  L1 #" in edges
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_targets_are_tokens_and_their_difference(places: tuple[str, str]) -> None:
    result = json.loads(run(places, PROMPT, "--json", "--target", "id:17", "--target", "id:9"))
    assert [node["feature"] for node in result["nodes"] if node["kind"] == "logit"] == [17, 9]
    along = json.loads(run(places, PROMPT, "--json", "--direction", "random:3@1"))
    assert [node["label"] for node in along["nodes"] if node["kind"] == "logit"] == ["along random 3"]
    lens = LensModel(places[0])
    target = LogitTarget(direction=random_unit(lens, "r", 1, seed=3).direction)
    whole = attribution_graph(lens, PROMPT, load_transcoders(places[1]), targets=[target])
    end = len(whole.nodes) - 1
    expected = {whole.nodes[source].id: weight for source, weight in whole.into(end, 1000)}
    shown = {edge["source"]: edge["weight"] for edge in along["edges"] if edge["target"] == whole.nodes[end].id}
    assert shown
    assert shown == pytest.approx({name: expected[name] for name in shown}, abs=1e-5)
    result = json.loads(run(places, PROMPT, "--json", "--target", "id:17", "--minus", "id:9"))
    (logit,) = [node for node in result["nodes"] if node["kind"] == "logit"]
    assert (logit["feature"], logit["probability"]) == (8192, 1.0)


def test_a_graph_made_elsewhere_is_shown(tmp_path: Path) -> None:
    write_graph(small_graph(), tmp_path / "g.json")
    shown = CliRunner().invoke(app, ["graph", "--read", str(tmp_path / "g.json")])
    assert shown.exit_code == 0, shown.output
    assert "L2 #40 @3" in shown.stdout
    assert "a label" in shown.stdout
    hostile: Any = json.loads((tmp_path / "g.json").read_text())
    hostile["nodes"][0]["clerp"] = "\x1b[2Jboo\u202e"
    (tmp_path / "g.json").write_text(json.dumps(hostile))
    done = CliRunner().invoke(app, ["graph", "--read", str(tmp_path / "g.json")])
    assert "boo" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_what_is_wrong_is_one_sentence(places: tuple[str, str], tmp_path: Path) -> None:
    assert "a difference is of one target" in run(places, PROMPT, "--minus", "id:9", status=2).lower()
    assert "no node 'gone'" in run(places, PROMPT, "--node", "gone", status=2)
    assert "needs no prompt" in run(places, PROMPT, "--read", "x", status=2)
    assert "no folder of transcoders" in run((places[0], str(tmp_path / "gone")), PROMPT, status=2)
    bare = CliRunner().invoke(app, ["graph", PROMPT, "-m", places[0]])
    assert bare.exit_code == 2
    assert "No transcoders are named" in bare.output


def test_the_first_tokens_have_no_features_where_they_are_ignored(places: tuple[str, str]) -> None:
    made = json.loads(run(places, PROMPT, "--json", "--ignored", "3", "--nodes", "1"))
    whole = attribution_graph(LensModel(places[0]), PROMPT, load_transcoders(places[1]), ignored=3)
    assert made["n_active"] == whole.n_active
    assert min(node["position"] for node in made["nodes"] if node["kind"] == "feature") == 3
    more = json.loads(run(places, PROMPT, "--json", "--ignored", "0", "--nodes", "1"))
    assert more["n_active"] > made["n_active"]


def test_a_set_at_the_hub_is_fetched_by_its_own_files(
    places: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"set-a/{path.name}": path.read_bytes() for path in Path(places[1]).iterdir() if path.is_file()}
    others = {"set-a/layer_0/params.safetensors": b"x" * 1000, "set-b/layer_0.safetensors": b"y" * 1000}
    with FakeHub().serve() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        hub.repos["org/sets"] = files | others
        here = json.loads(run(places, PROMPT, "--json"))
        for name in ("org/sets/set-a", "hf://org/sets/set-a"):
            fetched = json.loads(run((places[0], name), PROMPT, "--json"))
            assert fetched["scan"] == "org/sets/set-a"
            assert fetched["nodes"] == here["nodes"]
        taken = {Path(path).name for _, path, _ in hub.asked if "/resolve/" in path}
        assert taken == {Path(name).name for name in files}
        assert not any("set-b" in path or "layer_0/params" in path for _, path, _ in hub.asked)
        assert "no set of transcoders" in run((places[0], "org/sets/nothing"), PROMPT, status=2)
        assert "no place at the hub" in run((places[0], "hf://org"), PROMPT, status=2)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        cached = json.loads(run((places[0], "org/sets/set-a"), PROMPT, "--json"))
        assert cached["nodes"] == here["nodes"]
