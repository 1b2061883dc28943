"""``compare --prompts``: the numbers of ``compare_prompts``, as data and as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui import FeatureProbe, LensModel, compare_prompts, load_sae, sweep
from lens_tui.cli.command import app
from lens_tui.records import Add, Arm, Sampling
from lens_tui.records.prompt_set import COLUMNS
from tests.folders import llama_folder, sae_folder


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    model = llama_folder(tmp_path_factory.mktemp("models") / "tiny")
    sae = sae_folder(tmp_path_factory.mktemp("saes") / "layer_1_width_64")
    prompts = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    prompts.write_text('{"prompt": "Once upon a time", "id": "once"}\n{"prompt": "[red]The [/] king"}\n')
    return ("compare", "--prompts", str(prompts), "-m", str(model), "-s", str(sae), "--max-tokens", "4")


def run(*arguments: object, code: int = 0, **options: Any) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_a_sweep_over_a_set_is_that_of_the_library(common: tuple[str, ...]) -> None:
    told = json.loads(run(*common, "-a", "f3", "--scales", "2,4.5", "--seeds", "1,2", "--temp", "0.9", "--json"))
    lens, sae = LensModel(common[4]), load_sae(common[6])
    arms = sweep(Arm("f3", (Add(id="x", layer=1, vector=sae.vector(3), scale=1.0),)), (2.0, 4.5))
    sampling = Sampling(max_tokens=4, temp=0.9)
    made = compare_prompts(
        lens,
        ["Once upon a time", "[red]The [/] king"],
        arms,
        sampling,
        seeds=(1, 2),
        probe=FeatureProbe(sae, 3, 1),
    )
    for _ in made:
        pass
    assert [arm["name"] for arm in told["arms"]] == ["baseline", "f3 2", "f3 4.5"]
    assert [(row["id"], row["prompt"]) for row in told["prompts"]] == [
        ("once", "Once upon a time"),
        ("2", "[red]The [/] king"),
    ]
    assert (told["seeds"], told["read_back"]["feature"], told["stopped"]) == ([1, 2], 3, False)
    assert len(told["cells"]) == 12
    for row in told["cells"]:
        cell = made.cells[row["prompt_place"], row["arm_place"], told["seeds"].index(row["seed"])]
        assert (row["text"], row["reason"]) == (cell.text, cell.reason)
        for name in ("mean_kl", "mean_reverse_kl", "perplexity", "plain_perplexity", "distinct_2", "read_back", "dose"):
            assert row[name] == pytest.approx(getattr(cell, name), rel=1e-4, abs=1e-6), name
        assert row["kl"] == pytest.approx([token.kl for token in cell.tokens], rel=1e-4, abs=1e-6)
    for index, arm in enumerate(told["arms"]):
        cells = [cell for cell in made.cells.values() if cell.arm == index]
        assert arm["means"] == pytest.approx({column.id: column.over(cells) for column in COLUMNS}, rel=1e-4, abs=1e-6)


def test_the_table_has_a_row_a_prompt_and_a_column_an_arm(common: tuple[str, ...]) -> None:
    arms = ("-a", "mine=f3*2", "-a", "f5*1")
    told = json.loads(run(*common, *arms, "--json"))
    lines = run(*common, *arms, "--column", "dose", "--texts").splitlines()
    assert lines[0] == "── moved, ‖h‖"
    assert lines[1].split() == ["baseline", "mine", "f5*1"]
    assert lines[2].startswith("once Once upon a time")
    assert lines[3].startswith("[red]The [/] king")
    doses = [cell["dose"] for cell in told["cells"] if cell["id"] == "once"]
    assert lines[2].split()[-3:] == ["–", *(f"{dose:.2f}" for dose in doses[1:])]
    assert lines[4].startswith("mean")
    assert "Once upon a time" + told["cells"][0]["text"].split("\n")[0] in "\n".join(lines[5:])


def test_lines_of_standard_input_and_one_prompt_with_scales(common: tuple[str, ...]) -> None:
    rest = common[3:]
    told = json.loads(run("compare", "--prompts", "-", *rest, "--json", input="a b\n\nc\n"))
    assert [row["prompt"] for row in told["prompts"]] == ["a b", "c"]
    told = json.loads(run("compare", "The king", *rest, "-a", "f3", "--scales", "1 2", "--json"))
    assert [row["prompt"] for row in told["prompts"]] == ["The king"]
    assert len(told["cells"]) == 3
    events = run("compare", "The king", *rest, "-a", "f3", "--scales", "1", "--json", "--stream").splitlines()
    assert [json.loads(line)["event"] for line in events] == ["Cell", "Cell", "Run"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("a prompt",), "both given"),
        (("--column", "x"), "no column 'x'"),
        (("--scales", "1,2"), "sweeps one arm"),
        (("-a", "f3", "--scales", "1,x"), "--scales cannot be '1,x'"),
        (("-a", "f3", "--scales", "nan"), "--scales cannot be"),
        (("--seeds", "1.5"), "--seeds cannot be '1.5'"),
        (("--seeds", "1,2"), "At temperature 0"),
        (("--read-back", "dogs"), "--read-back cannot be 'dogs'"),
    ],
)
def test_what_is_wrong_is_one_sentence(common: tuple[str, ...], more: tuple[str, ...], says: str) -> None:
    assert says in run(*common, *more, code=2)
