"""``dose``, ``scale`` and ``vector``: the numbers of the screen, without it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import FeatureProbe, LensModel, behaviour, find_scale, load_sae, random_unit
from lens_tui.cli.command import app
from lens_tui.records import Add
from lens_tui.records.corpus import read_questions
from lens_tui.records.vector_formats import load_vectors
from lens_tui.tasks import make_vectors
from tests.folders import llama_folder, sae_folder

PROMPT = "Once upon a time"
SAY = {"positive": "The dog ran home.", "negative": "The cat sat there."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sae_folder(tmp_path_factory.mktemp("saes") / "layer_1_width_64")


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_dose_is_what_the_screen_measures(model: Path, sae: Path) -> None:
    arguments = ("dose", PROMPT, "-a", "f3*2", "-m", model, "-s", sae, "--scales", "-1,0,2", "--max-tokens", 5)
    result: dict[str, Any] = json.loads(run(*arguments, "--texts", 3, "--json"))
    lens, features = LensModel(str(model)), load_sae(sae)
    # The screen gives a record of scale 1 and absolute scales.
    record = Add(id="x", layer=1, vector=features.vector(3), scale=1.0)
    found = make_vectors.measure_dose(
        lens, PROMPT, [record], [-2.0, 0.0, 4.0], probe=FeatureProbe(features, 3, 1), max_tokens=5, n_texts=3
    )
    assert [point["scale"] for point in result["points"]] == [point.scale for point in found.points]
    for printed, point in zip(result["points"], found.points, strict=True):
        assert printed["factor"] == printed["scale"] / 2
        assert printed["delta_loss"]["delta"] == pytest.approx(point.delta_loss.delta, abs=1e-5)
        assert printed["kl"] == pytest.approx(point.on_baseline.mean_forward, abs=1e-5)
        assert printed["degeneration"]["distinct_2"] == point.degeneration.distinct_2
        assert point.read_back is not None
        assert printed["read_back"]["mean"] == pytest.approx(point.read_back.mean, rel=1e-4)
        assert printed["random_delta"] == pytest.approx(point.random_delta, abs=1e-5)
    assert set(result["curves"]) == {curve.name for curve in found.curves}
    table = run(*arguments, "--texts", 3).splitlines()
    assert table[0].split()[:3] == ["x", "scale", "dloss"]
    assert [line.split()[0] for line in table[1:4]] == ["-1", "0", "2"]


def test_dose_of_random_and_of_a_mode(model: Path) -> None:
    few = ("--scales", "0,1", "--max-tokens", 2, "--texts", 2, "--json", "-m", model)
    result = json.loads(run("dose", PROMPT, "-a", "random:0@1*0.5:norm_match:generated", *few))
    assert result["steering"] == ["norm_match at layer 1 resid_post, generated only"]
    assert result["points"][1]["dose"] == pytest.approx(0.5, rel=1e-3)
    assert result["points"][1]["read_back"] is None
    said = run("dose", PROMPT, "-a", "random:0@1:project_out", *few, code=2)
    assert "has a scale that could be multiplied" in said
    assert "cannot be read" in run("dose", PROMPT, "-a", "random:0@1*1", "--scales", "a", "-m", model, code=2)


def test_scale_is_the_librarys(model: Path) -> None:
    result = json.loads(run("scale", "-a", "random:0@1", "--by", "relative_norm", "-t", 0.2, "-m", model, "--json"))
    lens = LensModel(str(model))
    record = Add(id="x", layer=1, vector=random_unit(lens, "random 0", 1, seed=0), scale=1.0)
    expected = find_scale(lens, record, quantity="relative_norm", target=0.2)
    assert result["scale"] == pytest.approx(expected.scale, rel=1e-4)
    assert result["value"] == pytest.approx(0.2, rel=0.03)
    assert result["reached"]
    assert "reached at" in run("scale", "-a", "random:0@1", "--by", "relative_norm", "-m", model)
    assert "no quantity 'x'" in run("scale", "-a", "random:0@1", "--by", "x", "-m", model, code=2)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "asked.jsonl"
    keys = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    rows = [
        ("Is it?", " yes", " no"),
        ("Was it?", " no", " yes"),
        ("A or B?", " A", " B"),
        ("Who?", " the cat", " a dog"),
    ]
    file.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return file


def test_dose_asks_the_questions_of_a_file_at_every_scale(model: Path, asked: Path) -> None:
    few = ("--scales", "-1,0,2", "--max-tokens", 2, "--texts", 2, "--controls", 0, "-m", model)
    dose = ("dose", PROMPT, "-a", "random:0@1*6", *few)
    result = json.loads(run(*dose, "--questions", asked, "--json"))
    lens = LensModel(str(model))
    record = Add(id="x", layer=1, vector=random_unit(lens, "random 0", 1, seed=0), scale=6.0)
    found = behaviour(lens, read_questions(asked), [record], [-1.0, 0.0, 2.0])
    assert result["baseline"]["behaviour"] == pytest.approx(asdict(found.plain), abs=1e-4)
    for printed, point in zip(result["points"], found.points, strict=True):
        assert printed["behaviour"] == pytest.approx(asdict(point.behaviour), abs=1e-4)
    assert len({round(point["behaviour"]["difference"], 3) for point in result["points"]}) == 3
    assert "behaviour" in result["curves"]
    lines = run(*dose, "--questions", asked).splitlines()
    assert lines[0].split()[-1] == "behaviour"
    assert [line.split()[-1] for line in lines[1:4]] == [
        f"{point['behaviour']['difference']:+.3f}" for point in result["points"]
    ]
    assert any(line.startswith("behaviour: ") for line in lines)
    plain = json.loads(run(*dose, "--json"))
    assert plain["baseline"]["behaviour"] is None
    assert "behaviour" not in plain["curves"]
    assert "behaviour" not in run(*dose)


def test_scale_searches_for_a_behaviour(model: Path, asked: Path) -> None:
    lens = LensModel(str(model))
    unit = random_unit(lens, "random 0", 1, seed=0)
    questions = read_questions(asked)
    grown = behaviour(lens, questions[::2], [Add(id="x", layer=1, vector=unit, scale=1.0)])
    sign = 1.0 if grown.points[0].behaviour.difference > grown.plain.difference else -1.0
    push = Add(id="x", layer=1, vector=unit, scale=sign)
    goal = abs(grown.points[0].behaviour.difference - grown.plain.difference)
    expected = find_scale(lens, push, quantity="behaviour", target=goal, questions=questions, raw=False)
    assert expected.reached
    scale = ("scale", "-a", f"random:0@1*{sign:g}", "-m", model, "--questions", asked, "-t", goal)
    result = json.loads(run(*scale, "--json"))
    assert result["quantity"] == "behaviour"
    assert result["factor"] == pytest.approx(expected.scale, rel=1e-3)
    assert result["scale"] == pytest.approx(sign * expected.scale, rel=1e-3)
    assert result["value"] == pytest.approx(expected.value, abs=1e-4)
    assert result["held_out"] == pytest.approx(expected.held_out, abs=1e-4)
    assert "on the questions held out" in run(*scale, "--by", "behaviour")
    assert "No questions are asked by kl" in run(*scale, "--by", "kl", code=2)
    assert "searched for by questions" in run("scale", "-a", "random:0@1", "--by", "behaviour", "-m", model, code=2)
    on_prompt = (*scale[:2], f"random:0@1*{sign:g}:prompt", *scale[3:])
    assert json.loads(run(*on_prompt, "--json"))["curve"]["values"] != result["curve"]["values"]


@pytest.mark.parametrize(("name", "heights"), [("behaviour", [0.0, 5.0, 2.0]), ("kl", [-3.0, 2.0, -1.0])])
def test_a_behaviour_is_drawn_above_its_least(name: str, heights: list[float]) -> None:
    from lens_tui.cli.steer_verbs import _heights

    points = [{"kl": value, "behaviour": {"difference": value}} for value in (-3.0, 2.0, -1.0)]
    assert _heights(name, points) == heights


def test_vectors_from_pairs_with_the_layers_ranked(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("The dog ran.\tThe cat sat.\nA dog barked.\tA cat slept.\n")
    out = tmp_path / "dog.safetensors"
    result = json.loads(run("vector", "contrast", "dog", "--pairs", pairs, "-m", model, "-o", out, "--json"))
    lens = LensModel(str(model))
    ranked = make_vectors.from_pairs(lens, "dog", ("The dog ran.", "A dog barked."), ("The cat sat.", "A cat slept."))
    assert [row["layer"] for row in result["layers"]] == [row.vector.layer for row in ranked]
    assert [row["auc"] for row in result["layers"]] == [row.auc for row in ranked]
    (saved,) = load_vectors(out)
    assert saved.layer == result["layer"] == ranked[0].vector.layer
    np.testing.assert_allclose(saved.direction, ranked[0].vector.direction, atol=1e-6)
    assert len(result["promoted"]) == 10
    both = ("-p", SAY["positive"], "-n", SAY["negative"])
    assert "layer" in run("vector", "contrast", "dog", *both, "-m", model)
    assert "Both a file" in run("vector", "contrast", "dog", *both, "--pairs", pairs, "-m", model, code=2)
    assert "layer 'x'" in run("vector", "contrast", "dog", *both, "-l", "x", "-m", model, code=2)


def test_vectors_from_tokens_features_and_sums(model: Path, sae: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    token = json.loads(run("vector", "token", "id:300", "-l", -1, "-m", model, "-o", first, "--json"))
    assert (token["layer"], token["origin"]["token"]) == (2, 300)
    feature = json.loads(run("vector", "feature", 3, "-m", model, "-s", sae, "-o", second, "--json"))
    assert (feature["layer"], feature["origin"]["feature"]) == (1, 3)
    (a,), (b,) = load_vectors(first), load_vectors(second)
    terms = (f"{first}@1*2", "f3*-1")
    result = json.loads(run("vector", "sum", "mix", *terms, "-m", model, "-s", sae, "-o", third, "--json"))
    (mixed,) = load_vectors(third)
    expected = 2.0 * a.direction.astype(np.float64) - b.direction
    np.testing.assert_allclose(mixed.direction, expected / np.linalg.norm(expected), atol=1e-6)
    assert (mixed.layer, result["name"]) == (1, "mix")
    rest = json.loads(run("vector", "sum", "rest", *terms, "--without", "-m", model, "-s", sae, "--json"))
    (left,) = load_vectors(rest["file"])
    assert abs(float(left.direction @ b.direction)) < 1e-6


@pytest.mark.parametrize("suffix", [".gguf", ".npy", ".npz", ".json", ".safetensors"])
def test_an_arm_and_a_sum_read_what_out_writes(model: Path, tmp_path: Path, suffix: str) -> None:
    out, total = tmp_path / f"king{suffix}", tmp_path / f"twice{suffix}"
    run("vector", "token", "id:300", "-l", 1, "-m", model, "-o", out)
    same = json.loads(run("compare", PROMPT, "-m", model, "--arm", f"{out}@1*8", "--max-tokens", 2, "--json"))
    assert same["arms"][1]["interventions"][0]["layer"] == 1
    kept = json.loads(run("vector", "sum", "same", f"{out}@1", "-m", model, "--json"))
    assert kept["origin"]["path"] == str(out)
    run("vector", "sum", "twice", f"{out}@1*2", f"{out}@1", "-m", model, "-o", total)
    (made,), (read,) = load_vectors(total, layer=1), load_vectors(out, layer=1)
    np.testing.assert_allclose(made.direction, read.direction, atol=1e-6)


def test_an_arm_names_row_entry_and_position_of_files_of_others(model: Path, tmp_path: Path) -> None:
    lens = LensModel(str(model))
    n, width = lens.n_layers, lens.d_model
    hidden = np.random.default_rng(0).normal(size=(n + 1, width)).astype(np.float32)
    np.save(tmp_path / "hidden.npy", hidden)
    np.savez(tmp_path / "named.npz", evil=hidden[0], kind=hidden[1])
    np.save(tmp_path / "positions.npy", np.stack([hidden[:n], hidden[1:]]))

    for term, row, layer in (
        ("hidden.npy@1", hidden[2], 1),
        ("hidden.npy@-1", hidden[n], n - 1),
        ("named.npz:kind@1", hidden[1], 1),
        ("positions.npy:-1@0", hidden[1], 0),
    ):
        item = json.loads(run("vector", "sum", "same", tmp_path / term, "-m", model, "--json"))
        assert item["layer"] == layer
        assert item["norm"] == pytest.approx(float(np.linalg.norm(row)), rel=1e-5)
    for term, said in (
        ("hidden.npy*8", "takes one at a time"),
        ("named.npz@1*8", "vectors named evil, kind"),
        ("named.npz:evil*8", "does not say which layer"),
        ("positions.npy@1*8", "2 positions"),
    ):
        assert said in run("compare", PROMPT, "-m", model, "--arm", str(tmp_path / term), code=2)


@pytest.mark.parametrize("width", [60, 80, 88, 89, 200])
def test_the_dose_fits_the_terminal_and_names_what_it_leaves_out(width: int) -> None:
    from lens_tui.cli import steer_verbs

    cells = ["-0.25", "-88.00", "-3.514", "[+3.163 +3.880]", "3.695", "3.862", "4.439", "4.527", "384.0", "0.21"]
    rows = [[*cells, "-0.05", "2.455"]]
    kept, gone = steer_verbs._columns_that_fit(rows, width)
    columns = list(zip(steer_verbs._HEADS, rows[0], strict=True))
    line = " ".join(max(columns[at], key=len) for at in kept)
    assert len(line) <= width
    assert len(kept) + len(gone) == len(columns)
    assert (not gone) == (len(" ".join(max(pair, key=len) for pair in columns)) <= width)
    assert gone[:1] in ([], ["95 %"])


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([0.0, 1.0, 8.0], "▁▂█"), ([-8.0, None, 4.0], "█·▅"), ([float("inf"), 1.0], "×█"), ([None, None], "··"), ([], "")],
)
def test_a_curve_is_drawn_by_its_size_and_what_is_not_known_is_marked(values: list[float | None], drawn: str) -> None:
    from lens_tui.cli.steer_verbs import _drawn

    assert _drawn(values) == drawn
