"""The examples, as they stand, and the notebook that shows the same."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_basic_steering_shows_the_cost_and_every_arm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed("basic_steering.py", monkeypatch, capsys, "--max-tokens", "6")
    losses = [line.split("nats")[0].split(":")[1].split("->") for line in out.splitlines() if "->" in line]
    assert len(losses) == 2
    assert all(float(plain) < float(steered) for plain, steered in losses)
    heads = [line for line in out.splitlines() if line.startswith("──")]
    assert [head.split()[1].strip(",") for head in heads] == ["baseline", "cooking", "random"]
    assert ["moved" in head for head in heads] == [False, True, True]


def test_sae_analysis_finds_a_feature_and_steers_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed("sae_analysis.py", monkeypatch, capsys, "--max-tokens", "6")
    assert 0.0 < float(out.split("FVU")[1].split()[0]) < 0.6
    assert int(out.split("\nfeature ")[1].split(":")[0]) >= 0
    texts = dict(part.split("\n", 1) for part in out.split("\n── ")[1:])
    assert list(texts) == ["baseline", "added", "clamped"]
    assert len(set(texts.values())) > 1


def test_scale_search_finds_a_scale_and_shows_the_curve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed("scale_search.py", monkeypatch, capsys, "--texts", "2").splitlines()
    (found,) = [line for line in lines if line.startswith("scale ")]
    assert 0.2 < float(found.split("costs")[1].split()[0]) < 0.4
    assert sum("█" in line for line in lines) >= 2
    assert lines[-1].startswith("on texts it was not chosen on") or "turns back" in lines[-1]


def test_the_notebook_runs_cell_by_cell_and_its_outputs_are_there() -> None:
    notebook: dict[str, Any] = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    run = runpy.run_path(str(EXAMPLES / "renew_tour.py"))["run"]
    cells = list(run(notebook))
    assert [cell["execution_count"] for cell, _ in cells] == list(range(1, len(cells) + 1))
    for cell, now in cells:
        # The words are the machine's own; what is printed, and in what order, is the notebook's.
        stored = "".join(line for output in cell["outputs"] for line in output["text"])
        assert now.split()[:1] == stored.split()[:1]
        assert bool(now.strip())
