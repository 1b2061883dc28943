"""The command that Generate copies is read by the command line and makes the same arms, whatever they are made of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, demo, load_sae
from lens_tui.cli.command import app
from lens_tui.cli.sources import Vectors
from lens_tui.lens.vectors import from_array, from_token, mean_difference, random_unit
from lens_tui.records import (
    AblateHeads,
    Add,
    Arm,
    Gate,
    Intervention,
    LensError,
    Monitor,
    Positions,
    SAEInfo,
    Sampling,
    SteeringVector,
)
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.interventions import BenchRow, amount_of
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.records.vector_formats import keep_vector, list_vectors, load_one
from lens_tui.tasks.made_with import made_with, sae_words
from lens_tui.tasks.prompt_sets import compare_prompts
from lens_tui.tasks.run_command import as_command, quoted, set_command
from lens_tui.tasks.run_export import write_prompts
from tests.folders import llama_folder, sae_folder

PROMPT = 'it\'s \n"the" $HOME `x` \\ \u202ecat\x1b[31m e\u0301 日本'


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    return LensModel(str(llama_folder(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_sae(sae_folder(tmp_path_factory.mktemp("saes") / "layer_1_width_64"))


def run_of(
    lens: LensModel, arms: dict[str, list[Intervention]], saes: Sequence[SAEInfo] = (), **options: Any
) -> RunRecord:
    """A run with these arms beside the baseline, as a screen or the history hands it to the exporter."""
    named = [Arm("baseline"), *(Arm(name, tuple(items)) for name, items in arms.items())]
    texts = tuple(ArmRecord(arm) for arm in named)
    return RunRecord(lens.info.name, PROMPT, texts, Sampling(**options), made_with=made_with(lens.info, named, saes))


def words_of(command: str) -> list[str]:
    """The words as a shell hands them on."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def read(lens: LensModel, command: str, model: str = "") -> list[Arm]:
    """The arms of a command as the command line makes them."""
    words = words_of(command)
    assert words[:2] == ["mlx-lens-tui", "compare"]
    assert words[-2:] == ["--", PROMPT]
    options = [(word, words[at + 1]) for at, word in enumerate(words[:-2]) if word.startswith("--")]
    sae = dict(options).get("--sae", "")
    vectors = Vectors(lens, sae, model)
    return [vectors.arm(parse_arm(text)) for name, text in options if name == "--arm"]


def acting(
    mode: str, name: str, vector: SteeringVector, layer: int, scale: float, positions: Positions | None = None
) -> Intervention:
    return BenchRow(name, vector, layer, scale, mode=mode, positions=positions).intervention()


def assert_same(made: list[Arm], wanted: dict[str, list[Intervention]]) -> None:
    assert [arm.name for arm in made] == list(wanted)
    for arm, items in zip(made, wanted.values(), strict=True):
        assert len(arm.interventions) == len(items)
        for one, other in zip(arm.interventions, items, strict=True):
            assert (one.mode, amount_of(one)) == (other.mode, amount_of(other))
            assert (one.layer, one.site, one.positions) == (other.layer, other.site, other.positions)
            found, given = (getattr(item, "vector").direction for item in (one, other))  # noqa: B009
            np.testing.assert_array_equal(found, given)


def vectors_of(lens: LensModel, sae: Any) -> dict[str, SteeringVector]:
    """A vector of every origin that the bench can hold."""
    rng = np.random.default_rng(0)
    token = from_token(lens, 7, 1)
    return {
        "feature": sae.vector(3),
        "noise": random_unit(lens, "noise", 2, seed=5),
        "token": token,
        "texts": mean_difference(lens, "dogs / cats!", ["the dog"], ["the cat"], 1),
        "given": from_array(lens, "given", rng.normal(size=lens.d_model), 0),
        "site": from_array(lens, "site", rng.normal(size=lens.d_model), 1, site="mlp_out"),
        "noise at a site": random_unit(lens, "noise", 1, seed=5, site="mlp_out"),
    }


def test_every_kind_of_vector_is_found_again(lens: LensModel, sae: Any) -> None:
    arms: dict[str, list[Intervention]] = {
        name: [acting("add", "x", vector, vector.layer, 0.1 + 1 / 3)] for name, vector in vectors_of(lens, sae).items()
    }
    command = as_command(run_of(lens, arms, [sae.info]), keep_vector)
    assert "#" not in command
    assert_same(read(lens, command), arms)
    assert as_command(run_of(lens, arms, [sae.info]), keep_vector) == command
    assert len(list_vectors()) == 5  # what has words of its own is not written, and nothing is written twice


def test_modes_positions_sums_and_another_layer(lens: LensModel, sae: Any) -> None:
    vectors = vectors_of(lens, sae)
    arms: dict[str, list[Intervention]] = {
        "a+b": [
            acting("norm_match", "x", vectors["token"], 2, -0.5, Positions("generated")),
            acting("project_out", "y", vectors["feature"], 0, 0.0),
            acting("at_most", "z", vectors["noise"], 1, 1e-7),
        ]
    }
    assert_same(read(lens, as_command(run_of(lens, arms, [sae.info]), keep_vector)), arms)


def test_gates_of_features_vectors_and_seeds(lens: LensModel, sae: Any) -> None:
    vectors = vectors_of(lens, sae)
    read_by = [
        Monitor("f3", 1, sae=sae.info.id, feature=3),
        Monitor("given", 0, vector=vectors["given"]),
        Monitor("noise", 1, vector=vectors["noise"]),
    ]
    lens.attach_sae(sae.info.id, sae)
    arms: dict[str, list[Intervention]] = {
        monitor.name: [replace(acting("add", "x", vectors["token"], 2, 4.0), gate=Gate(monitor, -0.5, "below"))]
        for monitor in read_by
    }
    command = as_command(run_of(lens, arms, [sae.info]), keep_vector)
    made = read(lens, command)
    assert_same(made, arms)
    for arm, monitor in zip(made, read_by, strict=True):
        gate = arm.interventions[0].gate
        assert gate is not None
        assert (gate.threshold, gate.side) == (-0.5, "below")
        mine = gate.monitor
        assert (mine.layer, mine.site, mine.feature) == (monitor.layer, monitor.site, monitor.feature)
        if monitor.vector is not None:
            assert mine.vector is not None
            np.testing.assert_array_equal(mine.vector.direction, monitor.vector.direction)
    scaled = replace(acting("add", "x", vectors["token"], 2, 4.0), gate=Gate(replace(read_by[1], scale=2.0), 1.0))
    assert "replay" in as_command(replace(run_of(lens, {"x": [scaled]}), id=4), keep_vector)


def test_features_of_a_second_sae_and_of_one_that_is_gone(lens: LensModel, sae: Any, tmp_path: Path) -> None:
    other = load_sae(sae_folder(tmp_path / "layer_2_width_64", layer=2, seed=9))
    arms: dict[str, list[Intervention]] = {
        "two": [acting("add", "x", sae.vector(3), 1, 2.0), acting("add", "y", other.vector(4), 2, 3.0)]
    }
    command = as_command(run_of(lens, arms, [sae.info, other.info]), keep_vector)
    assert command.count("--sae") == 1
    assert_same(read(lens, command), arms)
    assert_same(read(lens, as_command(run_of(lens, arms), keep_vector)), arms)


def test_an_sae_whose_place_was_told_is_named_with_it(sae: Any) -> None:
    told_of = replace(sae.info, path="/saes/x y", layer=4, site="mlp_out", provenance={"layer": "given by the caller"})
    assert sae_words(told_of) == "/saes/x y@4:mlp_out"
    assert sae_words(sae.info) == sae.info.path
    bundled = load_sae(str(demo.sae_paths()[demo.default_sae()]))
    assert sae_words(bundled.info) == demo.default_sae()


def test_ready_vectors_and_bundled_features_are_named_as_the_command_line_knows_them() -> None:
    lens = LensModel("demo")
    ready = demo.vectors()[0]
    held = load_one(ready.path)
    sae = load_sae(str(demo.sae_paths()[demo.default_sae()]))
    arms: dict[str, list[Intervention]] = {
        "ready": [Add(id="x", layer=held.layer, vector=held, scale=ready.scale)],
        "cookery": [Add(id="y", layer=4, vector=sae.vector(2666), scale=22.0)],
    }
    command = as_command(run_of(lens, arms, [sae.info]), keep_vector)
    assert f"'ready={ready.name}@" in command
    assert f"--sae {demo.default_sae()} " in command
    assert_same(read(lens, command, "demo"), arms)
    assert not list_vectors()


def test_the_command_runs(lens: LensModel, sae: Any) -> None:
    vectors = vectors_of(lens, sae)
    arms: dict[str, list[Intervention]] = {
        "texts": [acting("add", "x", vectors["texts"], 1, 2.0)],
        "feature": [acting("add", "x", vectors["feature"], 1, 2.0)],
    }
    options = {"max_tokens": 3, "seed": 4, "temp": 0.7, "repetition_penalty": 1.25, "stop": ("\x1b", "| x")}
    command = as_command(run_of(lens, arms, [sae.info], **options), keep_vector)
    done = CliRunner().invoke(app, [*words_of(command)[1:-2], "--json", "--", PROMPT])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["prompt"] == PROMPT
    assert {name: result["sampling"][name] for name in options} == {**options, "stop": ["\x1b", "| x"]}
    assert [arm["name"] for arm in result["arms"]] == ["baseline", "texts", "feature"]


def test_what_cannot_be_kept_is_named(lens: LensModel) -> None:
    def refuse(vector: SteeringVector) -> Path:
        raise LensError("The disk is full.")

    arms: dict[str, list[Intervention]] = {
        "t": [Add(id="x", layer=1, vector=from_token(lens, 7, 1, name="it"), scale=2.0)]
    }
    assert as_command(run_of(lens, arms), refuse).endswith("  # without it; The disk is full.")
    places = Positions("indices", indices=(1,))
    arms = {"t": [Add(id="x", layer=1, positions=places, vector=from_token(lens, 7, 1, name="it"), scale=2.0)]}
    assert as_command(run_of(lens, arms), keep_vector).endswith("  # without it")


@pytest.mark.parametrize("word", [PROMPT, "plain", "", "it's", "\x9b\u202e\u2028'\\n", "\udce9", "a\x7f1f"])
def test_a_word_goes_through_a_shell(word: str) -> None:
    typed = quoted(word)
    assert all(letter.isprintable() or letter == "\n" for letter in typed)
    done = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True)
    assert done.stdout == word.encode("utf-8", "surrogateescape")


def test_heads_that_are_taken_away_are_said(lens: LensModel) -> None:
    off = AblateHeads(id="x", layer=1, heads=(0, 1), positions=Positions("generated"))
    command = as_command(run_of(lens, {"off": [off]}))
    assert "--arm off=head:1.0,1:generated" in command
    (record,) = Vectors(lens, "", "demo").arm(parse_arm("off=head:1.0,1:generated")).interventions
    assert replace(record, id="x") == off


@pytest.mark.parametrize("prompts", [["a small dog"], ["a small dog", 'two\nlines, "quoted" \\ \x1b[31m'], None])
def test_the_command_of_a_set_gives_the_same_numbers(tmp_path: Path, prompts: list[str] | None, sae: Any) -> None:
    """Of a prompt that is alone, of typed ones, and of the first two of a file; with a sweep's arms and two seeds."""
    folder = llama_folder(tmp_path / "tiny")
    model = LensModel(str(folder))
    named = [Arm("baseline"), *(Arm(f"f3 {s:g}", (BenchRow("x", sae.vector(3), 1, s).intervention(),)) for s in (2, 4))]
    texts = tuple(map(ArmRecord, named))
    made = made_with(model.info, named, [sae.info])
    sampling = Sampling(max_tokens=4, temp=0.8, seed=3)
    run = RunRecord(model.info.name, "", texts, sampling, made_with=made)
    items = [PromptItem(str(number), text) for number, text in enumerate(prompts or ["one", "two words"], 1)]
    path, first, seeds = "", None, (3, 9)
    if prompts is None:
        path, first = str(tmp_path / "prompts.txt"), 2
        Path(path).write_text("one\ntwo words\nthree\n")
    given = [] if path else items
    command = set_command(run, given, path, first, seeds, keep_vector, lambda some: write_prompts(some, tmp_path))
    assert "#" not in command
    words = words_of(command)
    assert words[:2] == ["mlx-lens-tui", "compare"]
    at = words.index("--") if "--" in words else len(words)
    done = CliRunner().invoke(app, [*words[1:at], "--json", *words[at:]])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [item["prompt"] for item in answer["prompts"]] == [item.text for item in items]
    assert [arm["name"] for arm in answer["arms"]] == [arm.name for arm in named]
    again = compare_prompts(model, items, named, sampling, seeds=seeds)
    wanted = {place: cell for event in again for place, cell in again.cells.items()}
    assert len(answer["cells"]) == len(wanted) == len(items) * 3 * 2
    for cell in answer["cells"]:
        one = wanted[cell["prompt_place"], cell["arm_place"], seeds.index(cell["seed"])]
        assert cell["token_ids"] == [token.token_id for token in one.tokens]
        assert cell["mean_kl"] == pytest.approx(one.mean_kl, rel=1e-6)


def test_a_set_whose_prompts_cannot_be_kept_says_so(lens: LensModel) -> None:
    def refuse(items: Sequence[PromptItem]) -> Path:
        raise LensError("The disk is full.")

    run = run_of(lens, {})
    command = set_command(run, [PromptItem("1", "a"), PromptItem("2", "b")], "", None, (), None, refuse)
    assert command.endswith("# without the prompts; The disk is full.")
