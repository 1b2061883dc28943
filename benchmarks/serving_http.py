"""Requests over HTTP: our server with another steering in each request, beside ``mlx_lm.server``, which steers nothing.

Both are processes of their own over the same float32 weights and the same BLAS. Each of 1, 8 and 32 clients asks for
the same number of greedy tokens, one request after the other; every client of ours sends a direction of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui import LensModel, demo

from .machine import Options
from .report import Row, of_speeds
from .turns import take_turns, timed

CLIENTS = (1, 8, 32)
TOKENS = 32
ROWS = 32
# lens_tui puts OpenBLAS under MLX, so that both compute with the same one.
PEER = "import lens_tui, sys; from mlx_lm.server import main; sys.argv[0] = 'mlx_lm.server'; main()"
WORDS = ("The old man", "A ship", "In the garden the", "She said that", "My friend", "When it rained,", "On the table")


def rows(options: Options) -> Iterator[Row]:
    """Requests and tokens a second with each number of clients."""
    per_client, repeats = (1, 1) if options.quick else (2, 3)
    with tempfile.TemporaryDirectory() as folder, _model(Path(folder)) as (model, width, layer):
        ours = [sys.executable, "-m", "lens_tui", "serve", "-m", model, "--rows", str(ROWS)]
        peer = [sys.executable, "-c", PEER, "--model", model, "--decode-concurrency", str(ROWS)]
        with _serving(ours) as here, _serving(peer) as there:
            directions = np.random.default_rng(0).standard_normal((max(CLIENTS), width))
            for count in CLIENTS:
                steering = [
                    [{"vector": (row / np.linalg.norm(row)).tolist(), "layer": layer, "scale": 6.0}]
                    for row in directions[:count]
                ]
                asked = {"ours": [{"steering": one} for one in steering], "peer": [{"model": model}] * count}
                ports = {"ours": here, "peer": there}
                contenders = {
                    name: timed(lambda port=ports[name], bodies=bodies: _round(port, bodies, per_client))
                    for name, bodies in asked.items()
                }
                found = take_turns(contenders, repeats)
                best = {name: count * per_client / float(np.median(seconds)) for name, seconds in found.items()}
                many = f"{count} steered client{'s' if count > 1 else ''}"
                name = "mlx_lm.server, unsteered"
                yield of_speeds(f"requests over HTTP, {many}", best["ours"], best["peer"], name, unit="requests/s")
                yield of_speeds(f"tokens over HTTP, {many}", best["ours"] * TOKENS, best["peer"] * TOKENS, name)


@contextmanager
def _model(folder: Path) -> Iterator[tuple[str, int, int]]:
    """The bundled model with float32 weights in a folder, its width and its middle layer."""
    from mlx_lm.utils import save_config, save_model

    lens = LensModel("demo", dequantize="always")
    for file in demo.model_path().iterdir():
        if file.suffix != ".safetensors" and not file.name.startswith("model") and file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    save_model(folder, lens.model)
    config = json.loads((demo.model_path() / "config.json").read_text())
    save_config({key: value for key, value in config.items() if "quantization" not in key}, folder / "config.json")
    found = str(folder), lens.d_model, lens.n_layers // 2
    lens.close()
    yield found


@contextmanager
def _serving(command: Sequence[str]) -> Iterator[int]:
    """A server process on a free port, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = int(found.getsockname()[1])
    said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=said, env=environment) as server:
        try:
            end = time.monotonic() + 120
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    raise RuntimeError(f"{command[-1]} does not answer: {said.read()[-300:].decode(errors='replace')}")
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
            said.close()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _round(port: int, bodies: Sequence[dict[str, Any]], each: int) -> None:
    """Every client asks ``each`` times, all clients at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda one: _client(port, one[0], one[1], each), enumerate(bodies)))


def _client(port: int, number: int, body: dict[str, Any], each: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        for turn in range(each):
            prompt = f"{WORDS[number % len(WORDS)]} {'and then ' * (1 + turn)}"
            asked = {**body, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0.0}
            answer = _asked(connection, json.dumps(asked))
            if answer["usage"]["completion_tokens"] != TOKENS:
                raise RuntimeError(f"{answer['usage']['completion_tokens']} tokens came, not {TOKENS}")
    finally:
        connection.close()


def _asked(connection: http.client.HTTPConnection, body: str) -> Any:
    """The answer; asked again where the peer's short line of waiting connections was full."""
    for _ in range(100):
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        except (ConnectionError, http.client.RemoteDisconnected):
            connection.close()
            time.sleep(0.02)
    raise RuntimeError("the server takes no connection")
