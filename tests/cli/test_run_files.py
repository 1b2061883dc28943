"""Runs by number and by file: one file of a name with a known ending, and what is said where there is no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.records import Arm, Sampling, Token
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.records.run_store import RunStore
from lens_tui.tasks.run_export import FORMATS


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    text = ArmRecord(Arm("baseline"), (Token(0, 5, " sea", " sea", -1.0),), " sea", "length")
    run = RunRecord("demo", "The", (text,), Sampling(max_tokens=1), state="done")
    store = RunStore()
    found = store.get(store.keep(run))
    assert found is not None
    return found


def call(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["runs", "export", *words] if words[0].isdecimal() else list(words))
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_out_with_a_known_ending_is_that_file(suffix: str, kept: RunRecord) -> None:
    file = Path(f"r.{suffix}")
    file.write_text("old", encoding="utf-8")
    assert call("1", "--out", str(file)).split() == [str(file)]
    assert file.read_text(encoding="utf-8") == FORMATS[suffix](kept)
    assert sorted(path.name for path in Path().iterdir()) == ["home", f"r.{suffix}"]


def test_any_other_out_is_a_folder_and_so_is_a_folder_of_such_a_name() -> None:
    call("1", "--out", "runs", "-f", "md csv")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["lens-run-1.csv", "lens-run-1.md"]
    Path("old.md").mkdir()
    call("1", "--out", "old.md", "-f", "csv")
    assert [path.name for path in Path("old.md").iterdir()] == ["lens-run-1.csv"]


@pytest.mark.parametrize("more", [("-f", "csv"), ("--name", "other")])
def test_a_file_and_another_word_for_it_is_refused_and_nothing_is_written(more: tuple[str, ...]) -> None:
    assert "r.md is one md file" in call("1", "--out", "r.md", *more, status=2)
    assert not Path("r.md").exists()


@pytest.mark.parametrize("verb", [("replay",), ("runs", "show"), ("runs", "export")])
def test_a_run_that_is_not_there_is_one_sentence_with_what_to_do(verb: tuple[str, ...]) -> None:
    said = call(*verb, "nosuch", status=2)
    assert "There is no run and no file 'nosuch'." in said
    assert "runs list" in said
    number = call(*verb, "77", status=2)
    assert "There is no run 77" in number
    assert "runs list" in number


def test_the_error_of_an_absent_run_as_json() -> None:
    done = CliRunner().invoke(app, ["replay", "nosuch", "--json"])
    assert json.loads(done.stdout)["error"]["message"] == "There is no run and no file 'nosuch'."
