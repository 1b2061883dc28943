"""A kept run is made again and held against what it was; what is exported comes back; the copied command runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, load_sae
from lens_tui.cli.command import app
from lens_tui.lens.vectors import mean_difference, random_unit
from lens_tui.records import Add, Arm, LensError, Positions, ProjectOut, Sampling
from lens_tui.records.run import RunRecord
from lens_tui.records.run_store import RunStore
from lens_tui.records.vector_formats import keep_vector
from lens_tui.tasks.replay import held_against
from lens_tui.tasks.run_command import as_command
from lens_tui.tasks.run_export import FORMATS, as_csv, as_json, as_svg, from_data, read_run, write
from tests.folders import sae_folder
from tests.tasks.kept_runs import chat_folder, every_arm, made_run
from tests.tasks.test_bake import peft_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("world")
    lens = LensModel(str(chat_folder(root / "it's a model")), dequantize="never")
    saes = [load_sae(sae_folder(root / f"layer_{n}_width_64", layer=n, seed=n)) for n in (1, 2)]
    return lens, *saes


@pytest.fixture(scope="module")
def run(world: Any) -> RunRecord:
    lens, one, two = world
    return made_run(lens, every_arm(lens, one, two), Sampling(max_tokens=4), saes=[one.info, two.info])


def ids(run: RunRecord) -> list[list[int]]:
    return [[token.token_id for token in kept.tokens] for kept in run.arms]


def typed(command: str) -> Any:
    """What the command says with ``--json``, its words as a shell hands them on."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[1:-1]
    result = CliRunner().invoke(app, ["--dequantize", "never", words[0], "--json", *words[1:]])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_copied_command_gives_the_same_tokens(world: Any) -> None:
    lens, one, two = world
    texts = mean_difference(lens, "dogs / cats!", ["the dog"], ["the cat"], 1)
    arms = [
        Arm("baseline"),
        Arm("feature", (Add(id="a", layer=1, vector=one.vector(3), scale=7.5),)),
        Arm("other SAE", (Add(id="b", layer=2, vector=two.vector(4), scale=7.5, positions=Positions("generated")),)),
        Arm("more", (ProjectOut(id="c", layer=1, vector=texts),
                     Add(id="d", layer=2, vector=random_unit(lens, "r", 2, seed=8), scale=1 / 3))),
    ]  # fmt: skip
    for raw in (False, True):
        settings = Sampling(max_tokens=5, temp=0.9, seed=4)
        made = made_run(lens, arms, settings, raw=raw, saes=[one.info, two.info])
        command = as_command(made, keep_vector)
        assert command.startswith("mlx-lens-tui compare")
        assert [arm["token_ids"] for arm in typed(command)["arms"]] == ids(made)


def test_a_run_that_compare_has_no_words_for_is_copied_as_a_replay(run: RunRecord, tmp_path: Path) -> None:
    command = as_command(run, keep_vector, lambda kept: write(kept, tmp_path, formats=("json",))[0])
    assert command.startswith("mlx-lens-tui replay ")
    said = typed(command)
    assert (said["same"], said["differences"], said["run"]) == (True, [], None)
    assert [arm["token_ids"] for arm in said["arms"]] == ids(run)
    number = RunStore().keep(run)
    assert as_command(replace(run, id=number)) == f"mlx-lens-tui replay {number}"
    assert typed(f"mlx-lens-tui replay {number}")["same"] is True


def test_a_replay_that_differs_ends_with_1_and_says_where_and_why(run: RunRecord) -> None:
    token = run.arms[2].tokens[1]
    wrong = replace(run.arms[2], tokens=(run.arms[2].tokens[0], replace(token, token_id=token.token_id + 1)))
    other = replace(run, arms=(*run.arms[:2], wrong, *run.arms[3:]), made_with=replace(run.made_with, mlx="0.1"))
    number = RunStore().keep(other)
    done = CliRunner().invoke(app, ["replay", str(number), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["same"]) == (1, False)
    first = said["differences"][0]
    assert (first["arm"], first["index"]) == ("two SAEs", 1)
    assert first["now"]["id"] == token.token_id
    assert said["causes"][0].startswith("It was made with MLX 0.1")


def test_what_changed_is_named_likeliest_first(run: RunRecord) -> None:
    assert held_against(run, run).sentence() == f"The same {sum(map(len, ids(run)))} tokens."
    tokens = (replace(run.arms[0].tokens[0], token_id=9), *run.arms[0].tokens[1:])
    new = replace(run, arms=(replace(run.arms[0], tokens=tokens), *run.arms[1:]))
    held = replace(
        new, made_with=replace(new.made_with, weights="float32, dequantised on loading", mlx="9", batch_rows=99)
    )
    causes = held_against(run, held).causes
    assert [cause.split()[3] for cause in causes[:2]] == ["with", "with"]
    assert "weights held another way" in causes[0]
    assert "had" in causes[-1] or "tied" in causes[-1]
    files = held_against(run, new)
    assert "the files of the model or of an SAE have changed" in files.sentence() or "tied" in files.sentence()
    for setting, words in (("seed", "seed was"), ("temp", "temperature was"), ("top_k", "top_k was")):
        value = getattr(run.sampling, setting) + 1
        drawn = replace(new, sampling=replace(run.sampling, **{setting: value, "temp": max(value, 1)}))
        guessed = held_against(replace(run, sampling=replace(run.sampling, temp=0.5)), drawn).causes
        assert any(words in cause for cause in guessed), guessed
        assert not any("have changed" in cause or "tied" in cause for cause in guessed), guessed
    prompt = held_against(run, replace(run, prompt_ids=(*run.prompt_ids[:1], 5)))
    assert prompt.prompt_at == 1
    assert "chat template" in prompt.causes[0]
    with pytest.raises(LensError, match="6 arms and the other 1"):
        held_against(run, replace(run, arms=run.arms[:1]))


def test_an_exported_run_comes_back_to_the_last_bit(run: RunRecord, tmp_path: Path) -> None:
    (file,) = write(run, tmp_path, "a / b", ("json",))
    assert file.name == "a-b.json"
    assert write(run, tmp_path, "a / b", ("json",))[0].name == "a-b-2.json"
    back = read_run(file)
    assert (back.prompt, back.sampling, back.raw, back.made_with, ids(back)) == (
        run.prompt, run.sampling, run.raw, run.made_with, ids(run)
    )  # fmt: skip
    for kept, again in zip(run.arms, back.arms, strict=True):
        assert [t.logprob for t in kept.tokens] == [t.logprob for t in again.tokens]
        for one, other in zip(kept.arm.interventions, again.arm.interventions, strict=True):
            assert (one.mode, one.positions, one.enabled) == (other.mode, other.positions, other.enabled)
            if hasattr(one, "vector"):
                assert one.vector.direction.tobytes() == other.vector.direction.tobytes()  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [{"schema": "x"}, {"arms": [{}]}, {"sampling": {"seed": "x"}}, {"prompt_ids": None}])
def test_a_file_that_is_no_run_is_refused_in_a_sentence(run: RunRecord, change: dict[str, Any]) -> None:
    with pytest.raises(LensError):
        from_data({**json.loads(as_json(run)), **change})


def test_csv_and_picture_hold_every_token_safely(run: RunRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(run))))
    assert [int(row["id"]) for row in rows] == [token for arm in ids(run) for token in arm]
    steered = [float(row["kl"]) for row in rows if row["arm"] == "made"]
    np.testing.assert_array_equal(steered, [token.kl for token in run.arms[3].tokens])
    drawn = as_svg(run)
    text = "".join("".join(node.itertext()) for node in ET.fromstring(drawn).iter() if node.tag.endswith("text"))
    assert all(kept.arm.name in text for kept in run.arms)
    assert "href" not in drawn
    assert drawn.count("http") == 1  # the name space
    for suffix in FORMATS:
        said = FORMATS[suffix](run)
        assert not any(ord(letter) < 32 and letter != "\n" for letter in said), suffix
        assert "\u202e" not in said


def test_the_lora_of_a_run_is_loaded_again(world: Any, tmp_path: Path) -> None:
    lens = world[0]
    rng, start = np.random.default_rng(5), "base_model.model.model.layers.1.self_attn.v_proj"
    pair = {f"{start}.lora_A.weight": (4, lens.d_model), f"{start}.lora_B.weight": (lens.d_model, 4)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in pair.items()}
    adapter = peft_folder(tmp_path / "it's a lora", tensors)
    adapted = LensModel(lens.info.path, dequantize="never", adapter=str(adapter))
    assert adapted.info.adapter == str(adapter)
    run = made_run(adapted, [Arm("baseline")], Sampling(max_tokens=6))
    plain = made_run(lens, [Arm("baseline")], Sampling(max_tokens=6))
    assert ids(run) != ids(plain)
    found = held_against(run, plain)
    assert f"Its model had another LoRA: {adapter} then, none now" in found.sentence()

    made = from_data(json.loads(as_json(run)), "there")
    assert made.made_with.adapter == str(adapter)
    (file := tmp_path / "run.json").write_text(as_json(run))
    result = CliRunner().invoke(app, ["replay", str(file), "--json"])
    assert result.exit_code == 0, result.output
    command = as_command(run)
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    said = CliRunner().invoke(
        app, ["--dequantize", "never", *words.decode().replace("compare\0", "compare\0--json\0").split("\0")[1:-1]]
    )
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["arms"][0]["token_ids"] == ids(run)[0]
    assert f"adapter={str(adapter)!r}" in FORMATS["py"](run)
