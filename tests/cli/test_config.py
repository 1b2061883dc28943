"""The verbs ``config`` and ``keys``: what is in force, where it comes from, what is wrong with it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.records import paths
from lens_tui.records.settings import Settings, explained_settings, manual, parse_settings
from lens_tui.tui.keys import KEYS, check_keymap, split


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


def data(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code)[0])


def written(text: str) -> Path:
    file = paths.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_without_a_file_the_defaults_are_in_force() -> None:
    said = run("config")[0]
    assert said.startswith(f"# There is no {paths.settings_file()}.\n")
    assert parse_settings(said) == Settings()
    found = data("config")
    assert (found["file"], found["changed"], found["problems"], found["manual"]) == (None, [], [], None)
    assert found["settings"]["generate"]["max_tokens"] == Settings().generate.max_tokens


def test_what_a_file_says_is_in_force_and_told_from_the_defaults() -> None:
    file = written('[look]\ntint = "bars"\n[keys]\n"app.run" = "R"\n')
    said = run("config")[0]
    assert said.startswith(f"# {file}\n")
    assert 'tint = "bars"  # default: "tint"' in said
    assert parse_settings(said) == parse_settings(file.read_text())
    assert data("config")["changed"] == ["look.tint", "keys.app.run"]


def test_a_file_is_checked_before_it_is_used(tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text("[generate]\ntemp = 0.5\n")
    assert data("config", "--check", str(file))["changed"] == ["generate.temp"]
    file.write_text('[look]\n\ntint = "loud"\n')
    assert "line 3: look.tint" in run("config", "--check", str(file), code=2)[1]
    file.write_text('[keys]\n"app.ran" = "R"\n')
    assert "did you mean app.run" in data("config", "--check", str(file), code=2)["error"]["message"]
    assert "There is no file" in run("config", "--check", str(tmp_path / "none.toml"), code=2)[1]
    assert not paths.settings_file().exists()


def test_the_manual_is_printed() -> None:
    assert run("config", "--explain")[0].rstrip() == manual().rstrip()
    assert data("config", "--explain")["manual"] == manual()


def test_the_keys_are_those_of_the_app_and_yours_are_marked() -> None:
    plain = data("keys")
    assert [row["id"] for row in plain["keys"]] == [key.id for key in KEYS]
    assert all(row["keys"] == row["default"] for row in plain["keys"])
    assert plain["file"] is None
    written('[keys]\n"app.run" = "f5"\n"app.stop" = "ctrl+m"\n')
    rows = {row["id"]: row for row in data("keys")["keys"]}
    assert (rows["app.run"]["keys"], rows["app.run"]["default"]) == (["f5"], ["r"])
    said, noted = run("keys")
    (line,) = [line for line in said.split("\n") if " app.run " in line]
    assert line.split()[0] == "f5"
    assert line.endswith("(yours)")
    assert "keys.app.stop: terminals send ctrl+m as enter" in noted
    assert data("keys")["problems"] == [noted.removeprefix("mlx-lens-tui: ").rstrip()]


def test_one_setting_is_explained_with_its_value() -> None:
    written("[generate]\ntemp = 0.25\n")
    said = run("config", "generate.temp")[0]
    assert said.startswith("generate.temp = 0.25  (default: 0.0)")
    assert "Temperature" in said
    found = data("config", "look.motion")
    assert (found["value"], found["default"], found["may_be"]) == ("full", "full", "One of full, reduced.")
    assert "Did you mean look.theme?" in run("config", "look.them", code=2)[1]


def test_every_setting_of_the_manual_can_be_explained() -> None:
    text = manual()
    for name, found in explained_settings().items():
        assert found["says"] in text
        assert data("config", name)["says"] == found["says"]


def test_a_theme_that_is_not_there_is_a_problem() -> None:
    file = written('[look]\ntheme = "wallpaper"\n')
    assert "no theme 'wallpaper'" in data("config")["problems"][0]
    assert "auto, contrast" in run("config", "--check", str(file), code=2)[1]


def test_keys_are_found_by_words_or_by_the_key() -> None:
    assert {row["id"] for row in data("keys", "export")["keys"]} >= {"generate.export"}
    assert {row["id"] for row in data("keys", "+")["keys"]} >= {"steer.scale_up", "generate.scale_up"}
    assert all("scale" in row["id"] + row["description"] for row in data("keys", "scale", "up")["keys"])
    assert "No key has" in run("keys", "wibble", code=2)[1]


def test_keys_are_checked_and_printed_as_settings() -> None:
    run("keys", "--check")
    text = run("keys", "--explain")[0]
    table = parse_settings(text).keys
    assert table == {key.id: key.keys for key in KEYS}
    assert check_keymap(table) == ({name: ",".join(split(keys)) for name, keys in table.items()}, [])
    written('[keys]\n"app.run" = "j"\n')
    assert "already belongs to move.down" in run("keys", "--check", code=2)[1]


def test_the_page_of_settings_is_the_manual() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    assert page.split("```toml\n")[1].split("```")[0].rstrip() == manual().rstrip()


def test_a_file_named_by_the_environment_stands_in_the_place_of_yours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written('[look]\ntint = "bars"\n')
    other = tmp_path / "other.toml"
    other.write_text('[look]\ntint = "digits"\n')
    monkeypatch.setenv("LENS_TUI_CONFIG", str(other))
    found = data("config")
    assert (found["file"], found["settings"]["look"]["tint"]) == (str(other), "digits")
    assert data("keys")["file"] == str(other)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_is_the_scripts_of_the_program_by_its_name(shell: str) -> None:
    said = run("completion", shell)[0]
    assert "mlx-lens-tui" in said
    assert "_MLX_LENS_TUI_COMPLETE" in said
    assert data("completion", shell)["script"].strip() == said.strip()


def test_the_shell_completes_verbs_by_what_was_printed(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    program = tmp_path / "mlx-lens-tui"
    program.write_text(f"#!{sys.executable}\nfrom lens_tui.cli.command import run\nrun()\n")
    program.chmod(0o755)
    asked = f"COMP_WORDS=(mlx-lens-tui comp); COMP_CWORD=1; _mlx_lens_tui_completion {shlex.quote(str(program))}"
    lines = [run("completion", "bash")[0], asked, 'echo "${COMPREPLY[@]}"']
    done = subprocess.run([bash, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert {"compare", "completion"} <= set(done.stdout.split()), done.stderr


def test_an_unknown_shell_is_refused_with_those_there_are() -> None:
    assert "bash, zsh, fish, powershell" in run("completion", "nushell", code=2)[1]
