"""Kept maps and graphs without the app: listed, shown, exported in the formats of others, deleted once asked."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui import read_graph
from lens_tui.cli.command import app
from lens_tui.records import Arm, Sampling
from lens_tui.records.attribution_graph import Supernode
from lens_tui.records.cause_plan import EXAMPLE, GraphFound, GraphPlan, PatchFound
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.run import MadeWith
from lens_tui.records.run_store import RunStore
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.fake_causes import fake_patch
from tests.fake_graphs import fake_graph
from tests.fakes import unit_vector

MADE = MadeWith(version="0.2.0", mlx="1", source="a model", device="cpu", dtype="float32")


def a_map(**parts: Any) -> PatchFound:
    *_, last = fake_patch(1, jobs.Patch(replace(EXAMPLE, **parts)))
    assert isinstance(last, ev.Patched)
    return last.found


def a_graph(**parts: Any) -> GraphFound:
    *_, last = fake_graph(1, jobs.MakeGraph(GraphPlan("The old man sat", **parts)))
    assert isinstance(last, ev.GraphMade)
    names = tuple(node.id for node in last.found.pruned.nodes[:2])
    return replace(last.found, pruned=replace(last.found.pruned, pinned=names, supernodes=(Supernode("two", names),)))


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PatchFound, GraphFound, PatchFound]:
    """Number 1 is a map, 2 a graph, 3 a trace."""
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = a_map(), a_graph(target=" a"), a_map(by="trace")
    store = CauseStore()
    for each in found:
        store.keep(each, MADE)
    return found


def call(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["causes", *words])
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr


def test_the_newest_is_listed_first_and_words_choose() -> None:
    assert [line.split()[0] for line in call("list").splitlines()] == ["3", "2", "1"]
    assert [line.split()[0] for line in call("list", "OLD graph").splitlines()] == ["2"]
    assert [row["id"] for row in json.loads(call("list", "-n", "1", "--json"))["causes"]] == [3]
    assert call("list", "nowhere") == ""


def test_a_map_is_shown_with_its_numbers_and_the_command_that_makes_it_again(kept: tuple[Any, ...]) -> None:
    text, data = call("show", "1"), json.loads(call("show", "1", "--json"))
    assert "mlx-lens-tui patch --model 'a model' --by layer-position" in text
    assert data["command"] in text
    grid = kept[0].grid
    row, column = grid.strongest(1)[0]
    assert f"{grid.effect[row, column]:+.3f}".replace("-", "−") in text
    assert data["found"]["values"] == grid.values.tolist()
    assert (data["plan"]["clean"], data["made_with"]["version"]) == (EXAMPLE.clean, "0.2.0")
    assert json.loads(call("show", "3", "--json"))["found"]["total_effect"] == kept[2].trace.total_effect
    assert "noised run" in CliRunner().invoke(app, ["causes", "show", "3"]).stderr


def test_a_graph_is_shown_with_a_node_of_choice(kept: tuple[Any, ...]) -> None:
    shown = kept[1].pruned
    data = json.loads(call("show", "2", "--json"))
    assert {node["id"] for node in data["found"]["nodes"]} == {node.id for node in shown.nodes}
    assert data["found"]["pinned"] == list(shown.pinned)
    assert data["found"]["supernodes"] == [{"name": "two", "nodes": list(shown.pinned)}]
    source, target = int(shown.sources[0]), int(shown.targets[0])
    weight = f"{abs(float(shown.weights[0])):.2f}"
    lines = call("show", "2", "--node", shown.nodes[target].id).partition("   from ")[2]
    assert weight in lines
    assert f"@{shown.nodes[source].position}" in lines
    assert "There is no node 'x'" in call("show", "2", "--node", "x", status=2)
    assert "no nodes" in call("show", "1", "--node", "x", status=2)


def test_a_graph_along_a_direction_of_the_app_says_no_command() -> None:
    number = CauseStore().keep(a_graph(direction=unit_vector("dog")), MADE)
    assert json.loads(call("show", str(number), "--json"))["command"] is None


def test_a_graph_is_exported_as_others_read_it(kept: tuple[Any, ...]) -> None:
    assert call("export", "2", "-o", "g.json").split() == ["g.json"]
    read, shown = read_graph("g.json"), kept[1].pruned
    assert [node.id for node in read.nodes] == [node.id for node in shown.nodes]
    assert (read.weights == shown.weights).all()
    assert (read.pinned, read.supernodes) == (shown.pinned, shown.supernodes)
    assert json.loads(call("export", "2", "-o", "-")) == json.loads(Path("g.json").read_text())
    assert "no format 'csv' of a graph" in call("export", "2", "-f", "csv", status=2)
    assert "no format 'csv' of a graph" in call("export", "2", "-o", "g.csv", status=2)


def test_a_map_is_exported_as_json_and_a_row_a_cell(kept: tuple[Any, ...]) -> None:
    files = json.loads(call("export", "1", "-o", "maps", "--json"))["files"]
    assert files == ["maps/patch-1.json", "maps/patch-1.csv"]
    call("export", "1", "-o", "maps", "-f", "csv")
    assert sorted(file.name for file in Path("maps").iterdir()) == ["patch-1-2.csv", "patch-1.csv", "patch-1.json"]
    grid, estimate = kept[0].grid, kept[0].estimate
    assert json.loads(Path(files[0]).read_text())["effect"] == grid.effect.tolist()
    rows = list(csv.DictReader(io.StringIO(Path(files[1]).read_text())))
    assert len(rows) == grid.effect.size
    at = {(row["row"], row["column"]): row for row in rows}
    for i, row in enumerate(grid.rows):
        for j, column in enumerate(grid.columns):
            found = at[row, column]
            assert [float(found[name]) for name in ("value", "effect")] == [grid.values[i, j], grid.effect[i, j]]
            assert float(found["estimate"]) == estimate.effect[i, j]


def test_an_out_of_one_format_is_that_file_and_two_words_for_it_are_refused() -> None:
    Path("m.csv").write_text("old")
    assert call("export", "1", "-o", "m.csv").split() == ["m.csv"]
    assert Path("m.csv").read_text().startswith("row,column,token,value,effect")
    assert call("export", "1", "-o", "-", "-f", "csv") == Path("m.csv").read_text()
    assert "one csv file" in call("export", "1", "-o", "m.csv", "-f", "json", status=2)
    assert "takes one format" in call("export", "1", "-o", "-", status=2)


def test_one_is_deleted_only_when_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was not confirmed. Say --yes." in call("delete", "1", status=2)
    monkeypatch.setattr("lens_tui.cli.output.asked_in_person", lambda: True)
    for answer, status in (("n\n", 2), ("", 2), ("y\n", 0)):
        assert json.loads(call("show", "1", "--json"))["id"] == 1
        done = CliRunner().invoke(app, ["causes", "delete", "1"], input=answer)
        assert done.exit_code == status
        assert re.search(r"Delete patch 1 \(Patching · resid_pre.*'Lily saw a red ball", done.stderr)
    assert "There is no map or graph '1'" in call("show", "1", status=2)
    assert json.loads(call("delete", "3", "--yes", "--json")) == {"model": None, "deleted": 3}
    assert [row["id"] for row in json.loads(call("list", "--json"))["causes"]] == [2]


def test_a_damaged_one_is_said_to_be_and_can_be_deleted() -> None:
    with CauseStore().store.write() as connection:
        connection.execute("UPDATE cause SET record = x'00' WHERE id = 2")
    assert "Number 2 of the causes cannot be read" in call("show", "2", status=2)
    call("delete", "2", "--yes")
    assert [line.split()[0] for line in call("list").splitlines()] == ["3", "1"]


@pytest.mark.parametrize("verb", ["show", "export", "delete"])
@pytest.mark.parametrize("number", ["77", "x", "9" * 40, "\u202e1"])
def test_one_that_is_not_there_is_one_sentence_with_what_to_do(verb: str, number: str) -> None:
    said = call(verb, number, status=2)
    assert said.startswith("mlx-lens-tui: There is no map or graph ")
    assert "causes list" in said
    assert said.count("\n") == 1


def test_words_that_nothing_has_and_an_empty_store_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = CliRunner().invoke(app, ["causes", "list", "nothing-has-this"]).stderr
    assert said == "No map or graph has these words.\n"
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "runs only"))
    RunStore().begin("demo", "p", [Arm("baseline")], Sampling())
    said = CliRunner().invoke(app, ["causes", "list", "ball"]).stderr
    assert said == "No map or graph has been kept yet.\n"
    assert CliRunner().invoke(app, ["runs", "list", "ball"]).stderr == "No run has these words.\n"


def test_before_anything_was_kept_it_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "other"))
    for verb in ("show", "export", "delete"):
        assert "No map or graph has been kept yet. Causes, a screen of the app" in call(verb, "1", status=2)
    assert not (tmp_path / "other").exists()
