"""``mlx-lens-tui patch`` on the bundled model: the numbers are the library's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, PromptPair, patch
from lens_tui.cli.command import app

CLEAN = "Lily saw a red ball. She wanted to play with the red"
CORRUPTED = "Lily saw a red car. She wanted to play with the red"
TOKENS = ["-a", " ball", "-w", " car"]


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["patch", *arguments])
    assert done.exit_code == status, done.output
    return done.stdout if not status else done.output


def test_json_holds_the_librarys_grid() -> None:
    result = json.loads(run(CLEAN, CORRUPTED, *TOKENS, "--layers", "2,-1", "--json"))
    pair = PromptPair(CLEAN, CORRUPTED, " ball", " car")
    grid = patch(LensModel("demo"), pair, layers=[2, -1])
    assert grid.random is not None
    for name in ("values", "effect", "random"):
        np.testing.assert_allclose(result[name], getattr(grid, name), atol=1e-4)
    assert (result["rows"], result["layers"]) == (["L2", "L7"], [2, 7])
    assert result["tokens"][5].strip() == "car"
    assert (result["low"], result["shuffled"], result["agreement"]) == (None, None, None)
    assert result["noise_floor"] == pytest.approx(grid.noise_floor, abs=1e-4)


def test_the_map_reads_from_the_last_layer_down_and_says_what_it_is() -> None:
    shown = run(CLEAN, CORRUPTED, *TOKENS, "--by", "head", "--method", "both", "--no-controls")
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[1:9]] == [f"L{layer}" for layer in range(7, -1, -1)]
    assert "+0.30" in lines[1].split()
    listed = [line for line in lines if "L7 head 4" in line]
    assert listed
    assert "random" not in shown.split("\n\n")[1]
    assert all(line == line.rstrip() for line in lines)


def test_pairs_come_from_a_file_with_intervals(tmp_path: Path) -> None:
    rows = [
        {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " ball", "wrong": " car"},
        {"clean": CORRUPTED, "corrupted": CLEAN, "answer": " car", "wrong": " ball"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    result = json.loads(run("--pairs", str(file), "--by", "layer", "--site", "mlp_out", "--layers", "0,7", "--json"))
    assert result["n_pairs"] == 2
    assert np.shape(result["low"]) == np.shape(result["shuffled"]) == (2, 1)
    file.write_text('{"clean": "x"}\n')
    assert "Line 1 of pairs.jsonl" in run("--pairs", str(file), status=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a"], "There are not two prompts"),
        ([CLEAN, "Lily saw", *TOKENS], "Make them equally long"),
        ([CLEAN, CORRUPTED, "-a", " ball"], "needs the pair's wrong token"),
        ([CLEAN, CORRUPTED, *TOKENS, "--site", "nowhere"], "There is no site"),
        ([CLEAN, CORRUPTED, *TOKENS, "--pairs", "x"], "Give one or the other"),
    ],
)
def test_what_cannot_be_patched_is_one_sentence(arguments: list[str], sentence: str) -> None:
    assert sentence in " ".join(run(*arguments, status=2).split())
