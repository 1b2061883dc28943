"""``--chat``: the same tokens as the library's, headless, kept and made again; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, demo
from lens_tui.cli.command import app
from lens_tui.records import Arm

TALK = [{"role": "user", "content": "I want to book a table for two."}]
NEXT = {"role": "user", "content": "At seven."}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "home"))


def call(*words: str, status: int = 0, given: str | None = None) -> str:
    done = CliRunner().invoke(app, list(words), input=given)
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr


def file_of(folder: Path, data: Any) -> str:
    path = folder / "chat.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def test_compare_answers_a_conversation_with_the_library_s_tokens(tmp_path: Path) -> None:
    file = file_of(tmp_path, TALK)
    options = ("--max-tokens", "12", "--arm", "random:0@4*12:user", "--json")
    made = json.loads(call("compare", "--chat", file, "At seven.", "--keep", *options))
    lens = LensModel(str(demo.model_path()))
    run = lens.compare([*TALK, NEXT], [Arm("baseline")], max_tokens=12)
    list(run)
    assert made["prompt"] == "At seven."
    assert made["messages"] == [*TALK, NEXT]
    assert tuple(made["prompt_ids"]) == run.prompt_ids
    assert tuple(made["arms"][0]["token_ids"]) == run.token_ids[0]
    assert made["arms"][1]["interventions"]
    again = json.loads(call("replay", "1", "--json"))
    assert again["same"] is True
    shown = call("runs", "show", "1")
    assert "user: I want to book a table for two." in shown
    kept = json.loads(call("runs", "export", "1", "--format", "json", "--out", "-"))
    assert kept["messages"] == [*TALK, NEXT]


def test_generate_answers_many_conversations_each_as_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps(TALK)}\n{json.dumps({'messages': [*TALK, NEXT]})}\n", encoding="utf-8")
    rows = [
        json.loads(line) for line in call("generate", "--chat", str(path), "--max-tokens", "9", "--json").splitlines()
    ]
    assert [row["messages"] for row in rows] == [TALK, [*TALK, NEXT]]
    lens = LensModel(str(demo.model_path()))
    for row in rows:
        run = lens.stream(row["messages"], max_tokens=9)
        list(run)
        assert (tuple(row["token_ids"]), row["text"]) == (run.token_ids, run.text)


def test_what_cannot_be_answered_is_one_sentence(tmp_path: Path) -> None:
    answered = file_of(tmp_path, [*TALK, {"role": "assistant", "content": "When?"}])
    assert "ends with the assistant" in call("compare", "--chat", answered, status=2)
    assert "a set of prompts" in call("compare", "--chat", answered, "--prompts", "bundled", status=2).lower()
    system = file_of(tmp_path, [{"role": "system", "content": "\x1b[31mBe kind."}, NEXT])
    said = call("compare", "--chat", system, status=2)
    assert "user and assistant only" in said
    assert "\x1b" not in said
    assert "not valid JSON" in call("compare", "--chat", "-", status=2, given="hello")
    assert "no prompts" in call("generate", status=2)
    assert "both given" in call("generate", "x.txt", "--chat", system, status=2)
    assert "not made from chat messages" in call("compare", "The sea", "--arm", "random:0@4*12:user", status=2)
