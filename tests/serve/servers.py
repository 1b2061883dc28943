"""Servers of tiny models, each with its engine's thread and its own loop, and clients of them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui import LensModel
from lens_tui.records import SteeringVector
from lens_tui.serve.engine_thread import Catalogue
from lens_tui.serve.http_server import LensServer
from lens_tui.serve.limits import ServeLimits
from tests.lens import tiny
from tests.lens.test_tokens import PLAIN, tokens

if TYPE_CHECKING:
    from openai import OpenAI

LIMITS = ServeLimits(rows=8, queue=200, prompt_tokens=64, max_tokens=64, default_tokens=8)
VOCAB = 8192


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def llama() -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=VOCAB), tokens(PLAIN).tokenizer, name="tiny")


def gemma() -> LensModel:
    return LensModel.from_model(tiny.gemma3(vocab=VOCAB), tokens(PLAIN).tokenizer, name="tiny")


def direction(seed: int = 0, layer: int = 1) -> SteeringVector:
    return SteeringVector.of(f"v{seed}", np.random.default_rng(seed).normal(size=64), layer)


def catalogue(make: Callable[[], LensModel] = llama) -> Catalogue:
    return Catalogue("tiny", make(), {"v": direction()})


@contextmanager
def serving(
    opened: Callable[[], Catalogue] = catalogue, *, token: str = "", limits: ServeLimits = LIMITS, **changed: Any
) -> Iterator[LensServer]:
    """A server on a free port of this machine; ended, and its thread with it."""
    server = LensServer(opened, port=0, token=token, limits=replace(limits, **changed), drain=10.0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
    assert not thread.is_alive()


def client(server: LensServer, key: str = "none") -> OpenAI:
    from openai import DefaultHttpxClient, OpenAI  # a second, which only who gets one of these tests is to pay

    plain = DefaultHttpxClient(verify=False)  # or each would read the certificates of all authorities
    made = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60, http_client=plain)
    weakref.finalize(made, plain.close)
    return made


def post(server: LensServer, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """What a bare HTTP client gets; ``body`` may be bytes that are no JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
