"""The command measures what it is told, keeps what it has when one benchmark fails, and writes where it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.machine import Options
from benchmarks.report import Row, at_most, of_times


class Fake(command.Benchmark):
    def rows(self, options: Options) -> Iterator[Row]:
        yield of_times("a thing", 2.0, 1.0, "peer", at_most(1.5))
        if self.name == "broken":
            raise ValueError("no disk")


@pytest.mark.parametrize("benchmark", command.ALL, ids=lambda each: each.name)
def test_every_benchmark_has_its_module(benchmark: command.Benchmark) -> None:
    assert callable(import_module(f"benchmarks.{benchmark.module}").rows)


def test_one_that_fails_loses_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ALL", (Fake("broken", ""), Fake("whole", "")))
    out, found = tmp_path / "README.md", tmp_path / "rows.json"
    out.write_text("# Head\n")
    assert command.main(["--out", str(out), "--json", str(found)]) == 1
    text = out.read_text()
    assert text.startswith("# Head\n")
    assert text.count("| a thing | 2.00 s | peer: 1.00 s | 2.00 |") == 2
    assert "| not finished |  | ValueError: no disk |" in text
    rows = [[row["what"] for row in each["rows"]] for each in json.loads(found.read_text())["benchmarks"]]
    assert rows == [["a thing", "not finished"], ["a thing"]]


def test_only_what_was_asked_for_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "ALL", (Fake("broken", ""), Fake("whole", "")))
    assert command.main(["--only", "whole"]) == 0
    shown = capsys.readouterr().out
    assert "### whole" in shown
    assert "### broken" not in shown
