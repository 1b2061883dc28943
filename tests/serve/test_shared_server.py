"""A server whose model two processes share: every answer is that of one process, and one end is the end of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.folders import llama_folder
from tests.lens.sharing.ring import ring_environments
from tests.serve.servers import free_port

PATIENCE = 120
ASKED: list[dict[str, Any]] = [
    {"prompt": [5, 6, 7, 8], "max_tokens": 9},
    {"prompt": [9, 3], "max_tokens": 5, "steering": [{"vector": "r", "scale": 6}], "logprobs": 2, "lens": {"kl": True}},
    {"prompt": [4, 4, 11], "max_tokens": 12, "steering": [{"vector": "r", "scale": -6, "layer": 0}]},
    {"prompt": [4, 9], "max_tokens": 8, "temperature": 1, "seed": 3, "n": 2},
    {"prompt": [5, 6, 7, 8], "max_tokens": 3, "steering": [{"vector": "nobody", "scale": 1}]},
    {"prompt": [1], "max_tokens": 2, "steering": [{"vector": "r", "scale": 1, "layer": 99}]},
]


@dataclass
class Ring:
    """Two processes that serve one model."""

    ranks: list[subprocess.Popen[str]]
    port: int

    def ask(self, body: dict[str, Any]) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/completions", json.dumps({"temperature": 0, **body}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def rows(self) -> int:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            return int(json.loads(connection.getresponse().read())["rows"])
        finally:
            connection.close()

    def wait(self) -> list[tuple[int, str]]:
        """The exit status of each, and what it said."""
        said = [process.communicate(timeout=PATIENCE)[1] for process in self.ranks]
        return [(process.returncode, text) for process, text in zip(self.ranks, said, strict=True)]


@contextmanager
def sharing(folder: Path, mode: str, size: int = 2) -> Iterator[Ring]:
    """A server of a tiny llama in ``size`` processes, or one for ``mode`` ``""``; it is ready."""
    model, port = llama_folder(folder / "tiny"), free_port()
    verb = ["serve", "-m", str(model), "-p", str(port), "-v", "r=random:0@1", "--rows", "4"]
    command = [sys.executable, "-m", "lens_tui", *(["--shard", mode] if mode else []), *verb]
    environments = ring_environments(folder, size) if mode else [dict(os.environ)]
    ranks = [
        subprocess.Popen(command, env=each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
        for each in environments
    ]
    try:
        said = ranks[0].stderr
        assert said is not None
        line = said.readline()
        assert f"http://127.0.0.1:{port}/v1" in line, line
        yield Ring(ranks, port)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def together(ring: Ring, bodies: list[dict[str, Any]]) -> list[Any]:
    """What these requests get when all are asked at once."""
    found: list[Any] = [None] * len(bodies)

    def ask(at: int) -> None:
        found[at] = ring.ask(bodies[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def core(answer: tuple[int, Any]) -> Any:
    """What does not differ from one server to the next."""
    status, body = answer
    if status != 200:
        return status, body
    return status, [(choice["text"], choice["finish_reason"]) for choice in body["choices"]], body["usage"]


@pytest.mark.parametrize("mode", ["tensor", "pipeline"])
def test_every_answer_is_that_of_one_process_and_a_signal_ends_all(tmp_path: Path, mode: str) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    one.mkdir()
    both.mkdir()
    with sharing(one, "") as ring:
        wanted = [ring.ask(body) for body in ASKED]
    with sharing(both, mode) as ring:
        got = together(ring, ASKED)
        again = ring.ask(ASKED[0])
        gone = HTTPConnection("127.0.0.1", ring.port, timeout=PATIENCE)
        gone.request("POST", "/v1/completions", json.dumps({**ASKED[0], "max_tokens": 4000, "stream": True}))
        with gone.getresponse() as stream:
            stream.readline()
            assert ring.rows() == 1  # it takes no other end than the client's
        gone.close()
        until(lambda: ring.rows() == 0)
        assert core(ring.ask(ASKED[2])) == core(wanted[2])
        ring.ranks[1].send_signal(signal.SIGTERM)
        assert ring.wait() == [(0, ""), (0, "")]
    assert [core(answer) for answer in got] == [core(answer) for answer in wanted]
    assert core(again) == core(wanted[0])
    assert [status for status, _ in got] == [200, 200, 200, 200, 400, 400]
    kls = [answer[1][1]["choices"][0]["lens"]["kl"]["mean"] for answer in (got, wanted)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)
    assert kls[0] > 0.01


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_other_with_one_sentence(tmp_path: Path, lost: int) -> None:
    with sharing(tmp_path, "tensor") as ring:
        assert ring.ask(ASKED[0])[0] == 200
        ring.ranks[lost].kill()
        status, said = ring.wait()[1 - lost]
    assert status == 2
    sentences = [line for line in said.splitlines() if not line.startswith("[ring]")]
    assert len(sentences) == 1
    assert "A process that shares the model has ended" in sentences[0]


def test_several_servers_of_whole_models_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lens_tui", "serve", "-p", str(free_port())]
    done = subprocess.run(
        command, env={**os.environ, "MLX_RANK": "0"}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--shard tensor serve" in done.stderr
