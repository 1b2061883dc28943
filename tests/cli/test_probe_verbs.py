"""``mlx-lens-tui probe``: the numbers are the library's, and what is kept is read, steered and gated with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensError, LensModel, load_probe, train_probes
from lens_tui.cli.command import app
from lens_tui.records.corpus import read_labelled

FILE = str(Path(__file__).parents[2] / "examples" / "dialogue_or_story.jsonl")


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, done.output
    return done.stdout if not status else done.output


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "p.safetensors"
    options = ["--layers", "2,4", "--over", "mean", "--permutations", "20", "--seed", "1", "-n", "talk", "-o", str(out)]
    return out, json.loads(run("probe", "train", FILE, *options, "--json"))


def test_a_probe_is_trained_evaluated_applied_and_read_in_a_run(kept: tuple[Path, dict[str, Any]]) -> None:
    file, result = kept
    lens, given = LensModel("demo"), read_labelled(FILE)
    options: dict[str, Any] = {"layers": [2, 4], "over": "mean", "permutations": 20, "seed": 1}
    report = train_probes(lens, "talk", given.texts, given.labels, **options)
    assert [row["value"] for row in result["layers"]] == [probe.held_out.value for probe in report.probes]
    assert (result["best"], result["sha256"], result["path"]) == (report.best.layer, report.facts["sha256"], str(file))
    probe = load_probe(file)
    np.testing.assert_allclose(probe.vector.direction, report.best.vector.direction, atol=1e-6)
    scores = json.loads(run("probe", "evaluate", str(file), FILE, "--json"))
    assert (scores["metric"], scores["n"]) == ("auc", 32)
    assert scores["value"] == 1.0
    text = "Lily saw a ball."
    applied = json.loads(run("probe", "apply", str(file), text, "--json"))
    h = np.array(lens.residuals(text, probe.layer))
    np.testing.assert_allclose(applied["scores"], probe.scores(h), atol=1e-3)
    arm = f"far=f2666*22?{file}>1000"
    shown = json.loads(run("compare", text, "-a", arm, "--monitor", str(file), "--max-tokens", "3", "--json"))
    assert shown["monitors"] == ["talk"]
    plain, gated = shown["arms"]
    assert gated["token_ids"] == plain["token_ids"]
    assert gated["dose"] is None
    ids = [*shown["prompt_ids"], *plain["token_ids"]]
    np.testing.assert_allclose(
        plain["readings"][0], probe.scores(np.array(lens.residuals(ids, probe.layer))), atol=1e-3
    )
    assert "talk " in run("compare", text, "--monitor", str(file), "--max-tokens", "3")


def test_features_of_an_sae_are_probed_sparsely() -> None:
    found = json.loads(run("probe", "train", FILE, "--sparse", "2", "--over", "mean", "--permutations", "10", "--json"))
    assert len(found["features"]) == 2
    assert found["held_out"]["value"] > 0.8


def test_probes_that_are_kept_are_listed() -> None:
    assert json.loads(run("probe", "list", "--json")) == {"model": None, "probes": []}
    run("probe", "train", FILE, "-l", "1", "--permutations", "0", "-n", "mine")
    run("vector", "random", "-l", "1")
    (row,) = json.loads(run("probe", "list", "--json"))["probes"]
    assert (row["name"], row["layer"], row["probe"], row["metric"]) == ("mine", 1, "logistic", "auc")
    assert "no probe 'other'" in run("probe", "apply", "other", "Lily", status=2)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "has no labelled texts"),
        ('{"text": "a"}', "Line 1 of t.jsonl is not an object with a text and a label"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0, "group": "x"}', "Some lines"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}', "too few examples"),
        ('{"text": "a", "label": 3}\n{"text": "b", "label": 0}', "not all 0 or 1"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(tmp_path: Path, lines: str, sentence: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(lines)
    assert sentence in " ".join(run("probe", "train", str(file), status=2).split())


def test_labels_of_tokens_are_examples_of_their_own(
    tmp_path: Path,
) -> None:
    lens = LensModel("demo")
    texts = ["The cat sat on a mat.", "A dog ran to the park.", "The sun is hot.", "She saw a red ball."]
    rows = [lens.tokens.encode(text) for text in texts]
    labels = [[1.0 if " " in lens.tokens.display(token) else 0.0 for token in row] for row in rows]
    file = tmp_path / "tokens.jsonl"
    lines = [{"token_ids": list(row), "labels": each} for row, each in zip(rows, labels, strict=True)]
    lines[1] = {"text": texts[1], "labels": labels[1]}
    file.write_text("\n".join(map(json.dumps, lines)))
    given = read_labelled(file)
    assert given.by_token
    assert given.texts[0] == tuple(rows[0])
    assert given.texts[1] == texts[1]
    out = tmp_path / "space.safetensors"
    options = ["--layers", "2", "--permutations", "0", "-o", str(out), "--json"]
    found = json.loads(run("probe", "train", str(file), *options))
    own = train_probes(lens, "probe", texts, labels, layers=2, over="every", permutations=0)
    assert found["over"] == "every"
    assert found["layers"][0]["n"] == own.probes[0].held_out.n
    assert found["layers"][0]["value"] == pytest.approx(own.probes[0].held_out.value)


@pytest.mark.parametrize(
    "line",
    ['{"token_ids": [1, 2], "labels": [1]}', '{"token_ids": [-1], "label": 1}',
     '{"token_ids": "\\u001b[31m", "label": 1}',
     '{"text": "a", "labels": []}', '{"text": "a", "labels": ["x"]}', '{"token_ids": [], "label": 1}', "[]"],
)  # fmt: skip
def test_lines_that_label_nothing_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(line)
    with pytest.raises(LensError, match=r"Line 1 of bad\.jsonl"):
        read_labelled(file)


def test_every_prompt_of_generate_is_read(kept: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file, _ = kept
    prompts = ["Lily saw a ball.", "Once upon a time"]
    given = tmp_path / "prompts.txt"
    given.write_text("\n".join(prompts))
    options = ["--monitor", str(file), "--monitor", "f75", "--max-tokens", "4"]
    rows = [json.loads(line) for line in run("generate", str(given), *options, "--json").splitlines()]
    lens, probe = LensModel("demo"), load_probe(file)
    for prompt, row in zip(prompts, rows, strict=True):
        assert row["monitors"] == ["talk", "f75"]
        ids = [*lens.tokens.encode(prompt), *row["token_ids"]]
        scores = probe.scores(np.array(lens.residuals(ids, probe.layer)))
        assert len(row["readings"][0]) in (len(ids), len(ids) - 1)
        np.testing.assert_allclose(row["readings"][0], scores[: len(row["readings"][0])], atol=1e-3)
    assert "talk " in run("generate", str(given), *options)
