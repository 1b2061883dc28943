"""What a verb says to who does not know it yet: of nothing, of what is wrong, of what the numbers are of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.testing import CliRunner

from lens_tui import Add, bake
from lens_tui.cli.command import app
from lens_tui.cli.output import _as_options
from tests.folders import D_MODEL, llama_folder


@pytest.mark.parametrize("verb", [["compare", "-"], ["generate", "-"], ["loss", "-"], ["features", "-"], ["lens", "-"]])
@pytest.mark.parametrize("given", [b"", b" \n\n"])
def test_nothing_on_standard_input_is_called_that(verb: list[str], given: bytes) -> None:
    done = CliRunner().invoke(app, verb, input=given)
    assert (done.exit_code, "Standard input is empty." in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("verb", "key"), [("runs list", "runs"), ("runs tally", "contests"), ("causes list", "causes")]
)
def test_a_list_of_what_was_never_kept_is_empty_and_no_error(
    verb: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "other"))
    done = CliRunner().invoke(app, [*verb.split(), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"model": None, key: []})
    said = CliRunner().invoke(app, verb.split())
    assert (said.exit_code, said.stdout, "has been kept yet. " in said.stderr) == (0, "", True)
    assert not (tmp_path / "other").exists()


def test_hints_name_the_options_of_the_verb_and_not_the_arguments_of_python(tmp_path: Path) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "robot", "content": "hi"}]')
    said = CliRunner().invoke(app, ["compare", "--chat", str(chat)]).stderr
    assert ("--raw" in said, "raw=True" in said) == (True, False)
    said = CliRunner().invoke(app, ["patch", "A red ball", "A red car"]).stderr
    assert ("--answer ' word'" in said, "answer=" in said) == (True, False)


def test_what_the_parser_refuses_is_said_without_its_librarys_words() -> None:
    said = CliRunner().invoke(app, ["patch", "a", "b", "--by", "nosuch"]).stderr
    assert ("'nosuch' is not one of 'layer'" in said, "Value error" in said) == (True, False)


@pytest.mark.parametrize("verb", [["loss", "the cat sat"], ["generate", "-", "--max-tokens", "2"]])
def test_under_an_adapter_it_is_said_what_the_numbers_are_of(verb: list[str], tmp_path: Path) -> None:
    model, lora = str(llama_folder(tmp_path / "tiny")), str(tmp_path / "lora")
    bake(model, [Add(id="a", layer=1, vector=[1.0] * D_MODEL, scale=3.0)], lora, form="peft")  # type: ignore[arg-type]
    command = [sys.executable, "-m", "lens_tui", "--adapter", lora, *verb, "-m", model]
    done = subprocess.run(command, input="the cat", capture_output=True, text=True, check=True)
    assert "has the LoRA in " in done.stderr
    assert "LoRA" not in done.stdout


@pytest.mark.parametrize("name", ["lens_tui.cli.command", "lens_tui.cli.output", "lens_tui.records.errors"])
def test_ctrl_c_while_the_verbs_are_imported_is_a_sentence_too(name: str) -> None:
    start = """
import sys
class Interrupted:
    def find_spec(self, name, *rest):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.argv[2:] = ["--json"]
from lens_tui.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", start, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "mlx-lens-tui: Stopped.\n")
    assert json.loads(done.stdout) == {"error": {"message": "Stopped.", "hint": ""}}


def test_what_a_person_wrote_is_to_be_corrected_not_fetched(tmp_path: Path) -> None:
    bad, texts = tmp_path / "bad.json", tmp_path / "texts.jsonl"
    bad.write_text('[{"role": ')
    texts.write_text('{"text": "a"}\n{"text": "b"}\n')
    for words, says in (
        (["compare", "--chat", str(bad)], "Correct it"),
        (["compare", "--prompts", str(bad)], "Correct it"),
        (["compare", "a", "--arm", f"{texts}*22"], "Vectors in JSON are one object as vLLM-Lens writes it"),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert says in done.output
        assert "Fetch" not in done.output


def test_a_file_that_is_no_export_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    for form, lacks in (("neuronpedia", "'index' and no 'description'"), ("neuronpedia-features", "'index'")):
        done = CliRunner().invoke(app, ["labels", "import", str(tmp_path / "texts.jsonl"), "--format", form])
        assert done.exit_code == 2
        assert f"texts.jsonl is not a Neuronpedia export: line 1 has no {lacks}. Every line of " in done.output


def test_hints_of_a_jacobian_fit_name_options(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat.")
    done = CliRunner().invoke(app, ["jlens", "fit", str(tmp_path / "a.txt"), "--context", "8", "--skip", "8"])
    assert done.exit_code == 2
    assert "Give a larger --context, or a smaller --skip." in done.output
    assert "or a smaller --skip" in _as_options("Give longer texts, or a smaller skip=.", {"skip": 1})
    assert _as_options("Say it: FILE@LAYER in --arm, layer= in Python.", {"layer": 1}).endswith(", layer= in Python.")


def test_ctrl_c_while_the_command_line_is_read_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TyperGroup, "parse_args", interrupted)
    done = CliRunner().invoke(app, ["info", "--json"])
    assert (done.exit_code, done.stderr) == (130, "mlx-lens-tui: Stopped.\n")
    assert json.loads(done.stdout)["error"]["message"] == "Stopped."
