"""``mlx-lens-tui patch`` on the bundled model: the numbers are the library's."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, PromptPair, Receiver, causal_trace, patch, patch_edges, path_patch
from lens_tui.cli.command import app
from lens_tui.records import AblateHeads, Arm, EditPattern, Sampling, Token
from lens_tui.records.cause_plan import EXAMPLE, PatchPlan
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.tasks.causes import answer, command_of
from lens_tui.tasks.run_command import as_command

CLEAN = "Lily saw a red ball. She wanted to play with the red"
CORRUPTED = "Lily saw a red car. She wanted to play with the red"
TOKENS = ["-a", " ball", "-w", " car"]


@pytest.fixture(scope="module")
def demo() -> LensModel:
    """The bundled model as the library has it, beside those that the verb loads."""
    return LensModel("demo")


def pattern(**values: Any) -> EditPattern:
    """The record, its positions as people write them."""
    return EditPattern(**values)


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["patch", *arguments])
    assert done.exit_code == status, done.output
    return done.stdout if not status else done.output


def test_json_holds_the_librarys_grid(demo: LensModel) -> None:
    result = json.loads(run(CLEAN, CORRUPTED, *TOKENS, "--layers", "2,-1", "--json"))
    pair = PromptPair(CLEAN, CORRUPTED, " ball", " car")
    grid = patch(demo, pair, layers=[2, -1])
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


def test_a_trace_is_the_librarys_and_has_its_control(demo: LensModel) -> None:
    arguments = [CLEAN, "--trace", "ball", "--samples", "2", "--seed", "3", "-a", " ball"]
    result = json.loads(run(*arguments, "--json"))
    found = causal_trace(demo, CLEAN, "ball", answer=" ball", samples=2, seed=3)
    assert found.random is not None
    for name in ("values", "indirect_effect", "random"):
        np.testing.assert_allclose(result[name], getattr(found, name), atol=1e-4)
    assert (result["subject"], result["layers"], result["samples"]) == ([5, 6], list(range(8)), 2)
    assert result["total_effect"] == pytest.approx(found.clean - found.noised, abs=1e-4)
    shown = run(*arguments, "--samples", "1")
    assert shown.splitlines()[1].split()[0] == "L7"
    assert "L7 13 red  random" in shown
    assert "one prompt" in run(CLEAN, CORRUPTED, "--trace", "ball", status=2)


SHORT = replace(EXAMPLE, clean="Lily saw a red ball and a red", corrupted="Lily saw a red car and a red")


@pytest.mark.parametrize("plan", [EXAMPLE, replace(SHORT, by="head", direction="noise"), replace(SHORT, by="trace")])
def test_the_screens_command_gives_the_screens_numbers(plan: PatchPlan, demo: LensModel) -> None:
    plan = replace(plan, samples=2, metric="logit-difference", seed=5)
    words = shlex.split(command_of(plan, "demo"))
    assert words[:2] == ["mlx-lens-tui", "patch"]
    result = json.loads(run("--json", *words[2:]))
    found = answer(demo, plan)
    if found.trace is not None:
        np.testing.assert_allclose(result["values"], found.trace.values, atol=1e-4)
        return
    assert found.grid is not None
    assert found.check is not None
    assert found.estimate is not None
    assert found.grid.random is not None
    np.testing.assert_allclose(result["effect"], found.grid.effect, atol=1e-4)
    np.testing.assert_allclose(result["random"], found.grid.random, atol=1e-4)
    np.testing.assert_allclose(result["estimate"], found.estimate.effect, atol=1e-4)
    assert result["agreement"]["pearson"] == pytest.approx(found.check.pearson, abs=1e-4)
    assert result["other_tokens"] == list(found.grid.other_tokens)


def test_heads_off_in_an_arm_are_the_librarys_ablation(demo: LensModel) -> None:
    done = CliRunner().invoke(app, ["compare", CLEAN, "-a", "off=head:7.4,5", "--max-tokens", "4", "--json"])
    assert done.exit_code == 0, done.output
    arm = json.loads(done.stdout)["arms"][1]
    off = Arm("off", (AblateHeads(id="x", layer=7, heads=(4, 5)),))
    tokens = [event for event in demo.compare(CLEAN, [Arm("baseline"), off], Sampling(4)) if isinstance(event, Token)]
    assert arm["token_ids"] == [token.token_id for token in tokens if token.arm == 1]
    assert arm["mean_kl"] == pytest.approx(np.mean([token.kl for token in tokens if token.arm == 1]), abs=1e-3)
    assert arm["mean_kl"] > 0


def test_an_edge_cut_in_an_arm_is_the_librarys_and_its_command_says_it(demo: LensModel) -> None:
    arm = "off=edge:7.4:5+edge:6.5:13/5:zero"
    done = CliRunner().invoke(app, ["compare", CLEAN, "-a", arm, "--max-tokens", "4", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["arms"][1]
    off = Arm(
        "off",
        (
            pattern(id="x", layer=7, heads=(4,), sources=[5]),
            pattern(id="y", layer=6, heads=(5,), sources=[5], positions=[13], renormalise=False),
        ),
    )
    tokens = [event for event in demo.compare(CLEAN, [Arm("baseline"), off], Sampling(4)) if isinstance(event, Token)]
    assert found["token_ids"] == [token.token_id for token in tokens if token.arm == 1]
    assert found["mean_kl"] == pytest.approx(np.mean([token.kl for token in tokens if token.arm == 1]), abs=1e-3)
    assert found["mean_kl"] > 0
    run = RunRecord(prompt=CLEAN, arms=(ArmRecord(off),), model="demo")
    assert shlex.join(["--arm", arm]) in as_command(run)


def test_paths_and_edges_are_the_librarys(demo: LensModel) -> None:
    pair = PromptPair(CLEAN, CORRUPTED, " ball", " car")
    ends = ["--to", "logits", "--to", "q:7.4"]
    result = json.loads(run(CLEAN, CORRUPTED, *TOKENS, *ends, "--seed", "2", "--json"))
    found = path_patch(demo, pair, receivers=[Receiver("logits"), Receiver("q", 7, 4)], seed=2)
    for name in ("raw", "effect", "random"):
        np.testing.assert_allclose(result[name], getattr(found, name), atol=1e-4)
    assert (result["receivers"], result["senders"][:2]) == (["logits", "q 7.4"], ["embed", "head 0.0"])
    assert found.random is not None
    assert abs(found.random).max() < abs(found.effect).max()
    shown = run(CLEAN, CORRUPTED, *TOKENS, "--to", "logits").splitlines()
    assert "head 7.4" in shown[0]
    assert "random" in shown[0]
    edges = json.loads(run(CLEAN, CORRUPTED, *TOKENS, "--edges", "--method", "attribution", "--json"))
    expected = patch_edges(demo, pair)
    assert np.shape(edges["raw"]) == expected.raw.shape
    at = edges["senders"].index("head 7.4"), edges["receivers"].index("logits")
    assert edges["raw"][at[0]][at[1]] == pytest.approx(expected.raw[at], abs=1e-3)
    assert edges["raw"][-1][0] is None
    assert edges["random"][at[0]][at[1]] is not None
    few = json.loads(
        run(CLEAN, CORRUPTED, *TOKENS, "--to", "logits", "--from", "head:7.4", "--from", "embed", "--json")
    )
    assert few["senders"] == ["head 7.4", "embed"]
    assert few["effect"][0] == pytest.approx(edges["effect"][at[0]][at[1]], abs=0.05)
    lines = run(CLEAN, CORRUPTED, *TOKENS, "--edges", "--from", "head:7.4").splitlines()
    assert "head 7.4 → logits" in lines[0]
    assert "random" in lines[0]
    assert "cannot be read" in run(CLEAN, CORRUPTED, *TOKENS, "--to", "logits", "--from", "head:1", status=2)
    assert "--from" in run(CLEAN, CORRUPTED, *TOKENS, "--from", "mlp:1", status=2)
    for wrong in ("attn", "mlp:1.2", "w:3"):
        assert "cannot be read" in run(CLEAN, CORRUPTED, *TOKENS, "--to", wrong, status=2)


CLEAN_CORRUPTED = ["Lily saw a red ball", "Lily saw a red car", "--metric", "kl"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["Lily saw", "--trace", "saw", "--by", "head"], "--by says nothing of a causal trace"),
        (["Lily saw", "--trace", "saw", "-l", "3"], "--layers says nothing of a causal trace"),
        (["Lily saw", "--trace", "saw", "--metric", "kl"], "--metric says nothing of a causal trace"),
        (["Lily saw", "--trace", "saw", "--to", "logits"], "--to says nothing of a causal trace"),
        ([*CLEAN_CORRUPTED, "--to", "logits", "--method", "attribution"], "--method says nothing of paths"),
        ([*CLEAN_CORRUPTED, "--to", "logits", "--edges"], "--edges says nothing of paths"),
        ([*CLEAN_CORRUPTED, "--to", "logits", "-l", "3"], "--layers says nothing of paths"),
        ([*CLEAN_CORRUPTED, "--edges", "--by", "head"], "--by says nothing of edges"),
        ([*CLEAN_CORRUPTED, "--edges", "--site", "mlp_out"], "--site says nothing of edges"),
        ([*CLEAN_CORRUPTED, "--features", "3"], "--features says nothing of a map by layer-position"),
        ([*CLEAN_CORRUPTED, "--by", "head", "--site", "mlp_out"], "--site says nothing of a map by head"),
        ([*CLEAN_CORRUPTED, "--samples", "3"], "--samples says nothing of a map by layer-position"),
        ([*CLEAN_CORRUPTED, "--from", "embed"], "--from says nothing of a map by layer-position"),
    ],
)
def test_an_option_that_what_is_asked_has_no_use_for_is_refused(arguments: list[str], option: str) -> None:
    done = CliRunner().invoke(app, ["patch", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert option in done.stderr


def test_edges_are_estimated_or_patched_and_not_both() -> None:
    done = CliRunner().invoke(app, ["patch", *CLEAN_CORRUPTED, "--edges", "--method", "both"])
    assert done.exit_code == 2
    assert "Edges are patched or estimated" in done.stderr
