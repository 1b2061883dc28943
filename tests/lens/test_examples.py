"""The examples, as they stand, and the notebooks."""

from __future__ import annotations

import json
import re
import runpy
import sys
from functools import cache
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


@cache
def ran(name: str) -> tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]:
    """A notebook, and its code cells with what they print now."""
    notebook: dict[str, Any] = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return notebook, list(runpy.run_path(str(EXAMPLES / "renew_tour.py"))["run"](notebook))


@pytest.mark.parametrize("name", ["tour.ipynb", "checked_edge.ipynb"])
def test_a_notebook_runs_cell_by_cell_and_its_outputs_are_there(name: str) -> None:
    notebook, cells = ran(name)
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    assert [cell["execution_count"] for cell, _ in cells] == list(range(1, len(cells) + 1))
    for cell, now in cells:
        # The words are the machine's own; what is printed, and in what order, is the notebook's.
        stored = "".join(line for output in cell["outputs"] for line in output["text"])
        assert now.split()[:1] == stored.split()[:1]
        assert bool(now.strip())


def test_what_the_notebook_of_the_checked_edge_claims_is_so() -> None:
    outputs = [printed for _, printed in ran("checked_edge.ipynb")[1]]
    text = "\n".join(outputs)
    sums, says = re.search(r"biases \S+ are (\S+); the model says (\S+)", text).groups()  # type: ignore[union-attr]
    assert float(sums) == pytest.approx(float(says), abs=2e-3)
    by_hand, checked = re.search(r"subtracted by hand: (\S+); the check said (\S+)", text).groups()  # type: ignore[union-attr]
    assert float(by_hand) == pytest.approx(float(checked), abs=2e-2)
    noun, adjective = re.findall(r"layer 0 at '[^']+': (\S+) of", text)
    assert float(noun) < float(adjective) < 0
    lowest, highest = re.findall(r"their length, [\d.]+: (\S+) to (\S+)", text)[0]
    assert float(noun) < float(lowest) < float(highest)
    rows = [line.split() for line in outputs[-1].splitlines() if re.match(r"\d+_\d+_\d+ ", line)]
    assert len(rows) == 8
    for _, direct, frozen, *_rest in rows:
        assert float(direct) == pytest.approx(float(frozen), abs=0.011)
