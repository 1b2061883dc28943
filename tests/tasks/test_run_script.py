"""The Python that a run is exported as gives the same tokens in a process of its own, whatever the arms are."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, load_sae
from lens_tui.cli.command import app
from lens_tui.records import Add, Arm, Sampling, Token
from lens_tui.records.chat import Turn, as_prompt, read_chat
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.tasks.replay import Gathered, held_against, run_again
from lens_tui.tasks.run_command import as_command
from lens_tui.tasks.run_export import as_data, as_markdown, from_data, read_run, write, write_chat
from lens_tui.tasks.run_script import as_python
from tests.folders import sae_folder
from tests.hub import FakeHub, use_hub
from tests.tasks.kept_runs import chat_folder, demo_arms, every_arm, made_run

REPO = "someone/saes"


def run_script(script: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit status and what it printed."""
    place = folder / "again.py"
    place.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(place)],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, **environment, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode, done.stderr.decode() + done.stdout.decode()


@pytest.fixture(scope="module")
def bundled() -> RunRecord:
    lens = LensModel("demo")
    arms, saes = demo_arms(lens)
    return made_run(lens, arms, Sampling(max_tokens=6, temp=0.8, seed=3, top_k=40), prompt="The sea was", saes=saes)


def test_a_run_of_the_bundled_model_is_made_again(bundled: RunRecord, tmp_path: Path) -> None:
    script = as_python(bundled)
    assert "base64" not in script  # all of it has words
    status, said = run_script(script, tmp_path)
    assert (status, said.splitlines()[-1]) == (0, "The tokens are the same.")
    for kept in bundled.arms:
        assert kept.text.splitlines()[0] in said


def test_the_command_of_a_conversation_names_its_file_and_gives_the_same_tokens(tmp_path: Path) -> None:
    lens = LensModel("demo")
    arms, saes = demo_arms(lens)
    turns = (Turn("user", 'Book "a table".\nFor \u202etwo.'), Turn("assistant", " When?"), Turn("user", "At seven."))
    comparison = lens.compare(as_prompt("", turns), arms[:2], Sampling(max_tokens=8))
    gathered = Gathered("At seven.", arms[:2], comparison, turns=turns)
    for event in comparison:
        gathered.take(event)
    kept = gathered.record(lens, saes)
    words = shlex.split(as_command(kept, keep_chat=lambda some: write_chat(some, tmp_path)))
    assert words[:2] == ["mlx-lens-tui", "compare"]
    file = Path(words[words.index("--chat") + 1])
    assert read_chat(file) == turns
    assert write_chat(turns, tmp_path) == file  # asked again: no second file
    assert write_chat(turns[:1], tmp_path) != file
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    again = json.loads(done.stdout)
    assert again["prompt_ids"] == list(kept.prompt_ids)
    assert [arm["token_ids"] for arm in again["arms"]] == [[t.token_id for t in arm.tokens] for arm in kept.arms]


def test_a_conversation_is_made_again_with_all_of_its_turns(tmp_path: Path) -> None:
    lens = LensModel("demo")
    arms, saes = demo_arms(lens)
    turns = (Turn("user", 'Book "a table".\nFor two.'), Turn("assistant", " When?"), Turn("user", "At seven."))
    comparison = lens.compare(as_prompt("", turns), arms, Sampling(max_tokens=8), top=5)
    gathered = Gathered("At seven.", [Arm("baseline"), *arms][-len(comparison.arms) :], comparison, turns=turns)
    for event in comparison:
        gathered.take(event)
    kept = gathered.record(lens, saes)
    status, said = run_script(as_python(kept), tmp_path)
    assert (status, said.splitlines()[-1]) == (0, "The tokens are the same.")
    assert as_command(replace(kept, id=7)) == "mlx-lens-tui replay 7"
    assert from_data(as_data(kept)).turns == turns
    assert "assistant:" in as_markdown(kept)


def test_a_token_that_differs_is_named(bundled: RunRecord, tmp_path: Path) -> None:
    arm = bundled.arms[2]
    tokens = (*arm.tokens[:3], replace(arm.tokens[3], token_id=arm.tokens[3].token_id + 1), *arm.tokens[4:])
    other = replace(bundled, arms=(*bundled.arms[:2], replace(arm, tokens=tokens), *bundled.arms[3:]))
    status, said = run_script(as_python(other), tmp_path)
    assert status == 1
    assert "out differs from token 3 on." in said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A chat model in bfloat16, an SAE in a folder and one at a hub that is gone by the time the script runs."""
    root = tmp_path_factory.mktemp("world")
    folder, cache = root / "it's a model", root / "cache"
    chat_folder(folder)
    far = sae_folder(root / "far" / "layer_2_width_64", layer=2, seed=9)
    files = {f"sub/layer_2_width_64/{file.name}": file.read_bytes() for file in far.iterdir()}
    with pytest.MonkeyPatch.context() as patch, FakeHub({REPO: files}).serve() as hub:
        use_hub(patch, hub.url, cache)
        at_hub = load_sae(f"{REPO}/sub/layer_2_width_64")
    lens = LensModel(str(folder), dequantize="never")
    return lens, load_sae(sae_folder(root / "layer_1_width_64")), at_hub, cache


@pytest.mark.parametrize("raw", [False, True])
def test_every_kind_of_arm_is_made_again(world: Any, tmp_path: Path, raw: bool) -> None:
    lens, folder_sae, hub_sae, cache = world
    arms = every_arm(lens, folder_sae, hub_sae)
    settings = Sampling(max_tokens=5, temp=0.0 if raw else 0.9, seed=11, stop=("zzz\n",), repetition_penalty=1.1)
    run = made_run(lens, arms, settings, raw=raw, saes=[folder_sae.info, hub_sae.info])
    assert run.made_with.saes == {
        folder_sae.info.id: folder_sae.info.path,
        hub_sae.info.id: f"{REPO}/sub/layer_2_width_64",
    }
    (file,) = write(run, tmp_path, formats=("py",))
    status, said = run_script(file.read_text(), tmp_path, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1")
    assert (status, said.splitlines()[-1]) == (0, "The tokens are the same."), said
    assert not any(ord(letter) < 32 and letter != "\n" for letter in said)
    assert "\u202e" not in said


def test_what_was_dialled_while_it_wrote_is_dialled_again(world: Any, tmp_path: Path) -> None:
    lens, folder_sae, *_ = world
    vector = folder_sae.vector(3)
    before, after = (Add(id="a", layer=1, vector=vector, scale=scale) for scale in (1.0, 60.0))
    run = made_run(
        lens,
        [Arm("baseline"), Arm("dialled", (before,))],
        Sampling(max_tokens=8),
        saes=[folder_sae.info],
        dials={2: (1, (after,))},
    )
    assert run.arms[1].changes == [(4, (after,))]
    steady = made_run(lens, [Arm("baseline"), Arm("dialled", (before,))], Sampling(max_tokens=8))
    assert ids(run)[1][:4] == ids(steady)[1][:4]
    assert ids(run)[1] != ids(steady)[1]
    status, said = run_script(as_python(run), tmp_path)
    assert (status, said.splitlines()[-1]) == (0, "The tokens are the same."), said
    (file,) = write(run, tmp_path, formats=("json",))
    found = held_against(run, run_again(lens, read_run(file)))
    assert found.same, found.sentence()


def test_a_run_that_was_stopped_is_made_again_as_far_as_it_came(world: Any, tmp_path: Path) -> None:
    lens, folder_sae, *_ = world
    arm = Arm("a", (Add(id="a", layer=1, vector=folder_sae.vector(3), scale=9.0),))
    whole = made_run(lens, [arm], Sampling(max_tokens=9), saes=[folder_sae.info])
    cut = (replace(kept, tokens=kept.tokens[: 4 - n], reason="stopped") for n, kept in enumerate(whole.arms))
    stopped = replace(whole, arms=tuple(cut), state="stopped")
    assert stopped.sampling_again.max_tokens == 4
    status, said = run_script(as_python(stopped), tmp_path)
    assert (status, said.splitlines()[-1]) == (0, "The tokens are the same."), said
    assert held_against(stopped, run_again(lens, stopped)).same


def ids(run: RunRecord) -> list[list[int]]:
    return [[token.token_id for token in kept.tokens] for kept in run.arms]


def test_names_from_elsewhere_are_words_and_nothing_else(tmp_path: Path) -> None:
    nasty = '"""\nimport os; os.system("touch owned")\n"""\\'
    run = RunRecord(nasty, nasty, (ArmRecord(Arm(nasty), (Token(0, 1, "x", "x", -1.0),)),), id=3)
    script = as_python(run)
    compile(script, "script", "exec")
    names: dict[str, Any] = {"__name__": "script"}
    out = io.StringIO()
    sys.stdout, before = out, sys.stdout
    try:
        exec(script, names)
    finally:
        sys.stdout = before
    assert (names["PROMPT"], out.getvalue()) == (nasty, "")
    assert not Path("owned").exists()
