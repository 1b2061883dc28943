"""``mlx-lens-tui lens`` on the bundled model: the numbers are the library's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, attention_patterns, attribute_logits, demo, load_sae, logit_lens
from lens_tui.cli.command import app
from lens_tui.records import Add

TEXT = "The old man opened the door and"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["lens", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_holds_the_librarys_grid_and_attribution() -> None:
    result = json.loads(run(TEXT, "--layers", "0,-1", "-k", "3", "--target", " door", "--attribute", "--json"))
    lens = LensModel("demo")
    grid = logit_lens(lens, TEXT, layers=[0, -1], top_k=3, target=" door")
    assert [row["layer"] for row in result["layers"]] == [0, grid.layers[-1]]
    assert [token["id"] for token in result["tokens"]] == list(grid.token_ids)
    assert {token["target"]["text"] for token in result["tokens"]} == {" door"}
    cells = [row["cells"] for row in result["layers"]]
    ids = [[[top["id"] for top in cell["top"]] for cell in row] for row in cells]
    np.testing.assert_array_equal(ids, grid.top_ids)
    for name in ("target_logprob", "entropy", "kl"):
        expected = getattr(grid, {"target_logprob": "target_logprobs"}.get(name, name))
        np.testing.assert_allclose([[cell[name] for cell in row] for row in cells], expected, atol=1e-5)
    np.testing.assert_array_equal([[cell["target_rank"] for cell in row] for row in cells], grid.target_ranks)
    parts = attribute_logits(lens, TEXT, " door", heads=True)
    found = result["attribution"]
    np.testing.assert_allclose([part["value"] for part in found["parts"]], parts.values[:, 0], atol=1e-5)
    for item, heads in zip(found["heads"], parts.heads, strict=True):
        np.testing.assert_allclose(item["values"], heads.values[:, 0], atol=1e-5)
        attention = next(p["value"] for p in found["parts"] if (p["kind"], p["layer"]) == ("attn", item["layer"]))
        assert sum(item["values"]) + item["bias"] + item["rest"] == pytest.approx(attention, abs=1e-4)
    total = sum(part["value"] for part in found["parts"]) + found["rest"] + found["constant"]
    assert total == pytest.approx(found["model_logit"], abs=1e-4)


def test_attribution_and_attention_are_of_the_token_that_is_named() -> None:
    result = json.loads(run(TEXT, "--at", "3", "--attribute", "--heads", "--layers", "2,5", "--json"))
    lens = LensModel("demo")
    ids = lens.tokens.encode(TEXT)
    parts, found = attribute_logits(lens, TEXT, ids[4], positions=[3]), result["attribution"]
    assert (found["position"], found["target"]["id"]) == (3, ids[4])
    np.testing.assert_allclose([part["value"] for part in found["parts"]], parts.values[:, 0], atol=1e-5)
    assert [item["layer"] for item in result["attention"]] == [2, 5]
    for item, pattern in zip(result["attention"], attention_patterns(lens, TEXT, [2, 5]), strict=True):
        np.testing.assert_allclose(item["weights"], pattern.weights[:, 3, :4], atol=1e-6)
        assert (item["position"], item["why"], item["error"]) == (3, "", pytest.approx(pattern.error, abs=1e-6))


def test_words_name_the_heads_that_add_most_and_where_each_looks() -> None:
    lines = run(TEXT, "--attribute", "--heads", "--layers", "5").splitlines()
    lens = LensModel("demo")
    ids = lens.tokens.encode(TEXT)
    heads = attribute_logits(lens, TEXT, heads=True).heads
    values = {f"L{item.layer} H{head}": value for item in heads for head, value in enumerate(item.values[:, 0])}
    best = max(values, key=lambda name: abs(values[name]))
    assert lines[lines.index("the heads that add most") + 1].split() == [f"{values[best]:+.3f}", *best.split()]
    (pattern,) = attention_patterns(lens, TEXT, 5)
    row = pattern.weights[0, -1]
    source = int(row.argmax())
    first = next(line for line in lines if line.startswith("  L5 H0"))
    text = lens.tokens.display(ids[source]).replace(" ", "·")
    assert first.split()[2:5] == [str(source), text, f"{row[source]:.2f}"]


def test_an_arm_reads_the_steered_model() -> None:
    result = json.loads(run(TEXT, "-a", "f1288*22", "--target", "id:262", "--json"))
    lens = LensModel("demo")
    vector = load_sae(str(demo.sae_paths()[demo.default_sae()])).vector(1288)
    add = Add(id="a", layer=4, vector=vector, scale=22.0)
    expected = logit_lens(lens, TEXT, target=262, interventions=[add]).target_logprobs
    found = [[cell["target_logprob"] for cell in row["cells"]] for row in result["layers"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(expected, logit_lens(lens, TEXT, target=262).target_logprobs, atol=0.1)
    assert result["steering"] == ["add at layer 4 resid_post"]


def test_words_have_a_line_for_each_layer_the_last_one_first() -> None:
    lines = run(TEXT, "--attribute").splitlines()
    lens = LensModel("demo")
    grid, parts = logit_lens(lens, TEXT), attribute_logits(lens, TEXT)
    last, n = grid.layers[-1], len(grid.layers)
    assert "·door" in lines[0]
    assert [line.split()[0] for line in lines[1 : n + 1]] == [f"L{layer}" for layer in range(last, -1, -1)]
    best = grid.texts[int(grid.top_ids[-1, -1, 0])].replace(" ", "·")
    assert lines[1].split()[-1] == best[:9]
    chance = f"{grid.target_probabilities[-1, 0]:.2f}".lstrip("0")
    assert lines[n + 2].split()[1:3] == [str(grid.target_ranks[-1, 0]), chance]
    target = parts.texts[parts.target_ids[0]]
    start = f"logit of {target!r} after token {parts.positions[0]}: {parts.logits[0]:.3f}"
    assert any(line.startswith(start) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "a"], "cannot be read"),
        (["--target", "id:x"], "names no token"),
        (["--target", " incomprehensible unutterable"], "not one token"),
        (["--layers", "99"], "no layer 99"),
        (["--heads", "--at", "99"], "no token 99"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["lens", "Hello", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_word_without_its_blank_is_answered_with_the_one_that_has_it() -> None:
    done = CliRunner().invoke(app, ["lens", TEXT, "--target", "door"])
    assert done.exit_code == 2
    assert "With the blank in front, ' door', it is one." in done.output
