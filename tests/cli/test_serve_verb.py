"""``mlx-lens-tui serve`` as a process: what it is started with, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextvars import copy_context
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.cli.sources import asked_adapter
from lens_tui.records import LensError
from tests.folders import llama_folder
from tests.serve.servers import free_port

PATIENCE = 60


def test_sigterm_lets_answers_end(tmp_path: Path, shell_signals: None) -> None:
    model, port = llama_folder(tmp_path / "tiny"), free_port()
    command = [sys.executable, "-m", "lens_tui", "serve", "-m", str(model), "-p", str(port), "-v", "r=random:0@1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as server:
        try:
            assert server.stderr is not None
            assert f"http://127.0.0.1:{port}/v1".encode() in server.stderr.readline()
            asked = {"prompt": [1, 2, 3], "max_tokens": 400, "temperature": 0, "stream": True, "logprobs": 0}
            asked |= {"steering": [{"vector": "r", "scale": 2}], "logit_bias": {"0": -100}}
            request = Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode())
            with urlopen(request, timeout=PATIENCE) as answer:
                answer.readline()
                server.send_signal(signal.SIGTERM)
                rest = answer.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            assert b'"finish_reason":"length"' in rest
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["-v", "nameless"], "is not NAME=SOURCE"),
        (["-v", "a=f3*2"], "is not NAME=SOURCE"),
        (["-m", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["serve", "-p", str(free_port()), *arguments], env={"LENS_TUI_TOKEN": ""})
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize("verb", ["serve", "mcp"])
def test_without_its_packages_a_verb_says_what_to_install(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_tui.cli.server_verbs.find_spec", lambda name: None)
    done = CliRunner().invoke(app, [verb])
    assert done.exit_code == 2
    assert f"pip install 'mlx-lens-tui[{verb}]'" in done.stderr


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(app, ["serve", "-p", str(taken.getsockname()[1])])
    assert done.exit_code == 2
    assert "Choose another with --port." in done.stderr


def test_what_is_asked_for_before_the_verb_reaches_the_models_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def catalogue(*_: object) -> None:
        heard.append(asked_adapter.get())
        raise LensError("Enough is known.")

    monkeypatch.setattr("lens_tui.cli.server_verbs._catalogue", catalogue)
    words = ["--adapter", "some/lora", "serve", "-p", str(free_port())]
    done = copy_context().run(CliRunner().invoke, app, words)  # what is asked for ends with the test
    assert (done.exit_code, heard) == (2, ["some/lora"])
