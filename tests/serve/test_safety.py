"""What a bad, greedy or vanished client does to the others: nothing."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui.lens.decode.batch_rows import BatchModel
from lens_tui.records import Add, LensError
from lens_tui.records.codec import to_json
from lens_tui.serve.http_server import LensServer
from lens_tui.serve.wire_request import read_steering

from .servers import LIMITS, catalogue, client, direction, llama, post, serving

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[LensServer]:
    with serving() as one:
        yield one


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "the cat", "temperature": 0, "max_tokens": 4, **more}


ADD = to_json(Add(id="a", layer=1, vector=direction(), scale=3.0))
NAN = base64.b64encode(np.full(64, np.nan, "<f4").tobytes()).decode()
NARROW = to_json(Add(id="a", layer=1, vector=np.ones(8), scale=3.0))  # type: ignore[arg-type]
BAD: dict[str, Any] = {
    "no JSON": b"{",
    "not an object": [1],
    "nested": b"[" * 100_000,
    "bytes": b"\xff\xfe\x00",
    "unknown": body(stearing=[]),
    "no prompt": {"model": "tiny"},
    "empty prompt": body(prompt=""),
    "mixed prompt": body(prompt=[1, "a"]),
    "foreign ids": body(prompt=[1, 99999]),
    "negative ids": body(prompt=[-1]),
    "too many tokens": body(prompt=[5] * 65),
    "long text": body(prompt="a " * 5000),
    "many words": body(prompt="cat " * 200),
    "temperature": body(temperature="hot"),
    "NaN temperature": json.dumps(body()).replace('"temperature": 0', '"temperature": NaN').encode(),
    "max_tokens": body(max_tokens=10**9),
    "true as a number": body(max_tokens=True),
    "n": body(n=100),
    "rows": body(prompt=["a"] * 9),
    "stop": body(stop=[1]),
    "logprobs": body(logprobs=99),
    "tools": body(tools=[{}]),
    "suffix": body(suffix="x"),
    "bias": body(logit_bias={"x": 1}),
    "foreign bias": body(logit_bias={"99999999": 1}),
    "NaN vector": body(steering=[{**ADD, "vector": {**ADD["vector"], "direction": NAN}}]),
    "narrow vector": body(steering=[NARROW]),
    "wrong layer": body(steering=[{**ADD, "layer": 99}]),
    "wrong site": body(steering=[{**ADD, "site": "\u202eevil\x1b[2J"}]),
    "hostile name": body(steering=[{**ADD, "id": "\x1b]0;x\x07", "mode": "\x1b[31m"}]),
    "infinite scale": json.dumps(body(steering=[{**ADD, "scale": 1}])).replace('"scale": 1', '"scale": 1e999').encode(),
    "no such vector": body(steering=[{"vector": "../../etc/passwd", "scale": 1}]),
    "no such feature": body(steering=[{"feature": 1, "scale": 1}]),
    "list of text": body(steering=[{"vector": ["a"], "layer": 1, "scale": 1}]),
    "steering": body(steering="more"),
    "many": body(steering=[ADD] * 65),
    "role without chat": body(steering=[{"vector": "v", "scale": 1, "positions": "user"}]),
    "vllm": body(vllm_xargs={"apply_steering_vectors": "[{}]"}),
    "vllm bytes": body(vllm_xargs={"apply_steering_vectors": {"activations": {"data": "!!"}}}),
    "vllm other": body(vllm_xargs={"other": 1}),
    "lens": body(lens={"capture": {"layers": [77]}}),
    "lens site": body(lens={"capture": {"layers": [0], "site": "nowhere"}}),
    "lens monitor": body(lens={"monitors": [{"feature": 3}]}),
    "lens key": body(lens={"captures": 1}),
    "messages": {"messages": "hello"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_one_sentence(server: LensServer, name: str) -> None:
    status, answer = post(server, CHAT if name == "messages" else TEXT, BAD[name])
    assert status == 400
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10
    assert error["message"].isprintable()
    assert "Traceback" not in error["message"]
    until(lambda: server.engine.held == 0)


@pytest.mark.parametrize(
    ("asked", "said", "param"),
    [
        ({"lens": {"features": {"k": "x"}}}, "lens.features.k is not a whole number from 1 to 256.", "lens"),
        ({"lens": {"features": 3}}, "lens.features is not an object with named values.", "lens"),
        (
            {"lens": {"features": {"k": 2, "top": 1}}},
            "lens.features has an unknown key 'top'. See docs/serve.md.",
            "lens",
        ),
        ({"lens": {"capture": {"layer": 1}}}, "lens.capture has an unknown key 'layer'. See docs/serve.md.", "lens"),
        ({"lens": {"capture": {}}}, "lens.capture has no layers. Name those to capture.", "lens"),
        ({"lens": {"kl": 1}}, "lens.kl is not true or false.", "lens"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage is not true or false.",
            "stream_options",
        ),
        ({"max_tokens": 0}, "max_tokens is not a whole number from 1 to 64.", "max_tokens"),
    ],
)
def test_an_error_names_the_value_by_its_path(server: LensServer, asked: Any, said: str, param: str) -> None:
    status, answer = post(server, TEXT, body(**asked))
    assert (status, answer["error"]["message"], answer["error"]["param"]) == (400, said, param)


def test_others_do_not_notice_bad_requests() -> None:
    want = llama().generate("the cat", raw=True, max_tokens=60)
    with serving() as server, ThreadPoolExecutor(8) as pool:
        good = [pool.submit(post, server, TEXT, body(max_tokens=60)) for _ in range(4)]
        bad = [
            pool.submit(post, server, TEXT, body(**more)) for more in ({"n": 0}, {"steering": [NARROW]}) for _ in "ab"
        ]
        assert {answer.result()[0] for answer in bad} == {400}
        assert {answer.result()[1]["choices"][0]["text"] for answer in good} == {want}


def test_sixty_four_clients_each_get_what_they_would_alone() -> None:
    lens = llama()
    prompts = [f"the {word} number {at}" for at in range(16) for word in ("cat", "dog", "sea", "red")]
    arms: list[list[dict[str, Any]]] = [
        [],
        [{"vector": "v", "scale": 6.0}],
        [{**ADD, "layer": 2}],
        [{"vector": "v", "mode": "project_out"}],
    ]
    with serving() as server:

        def ask(at: int) -> str:
            made = client(server).completions.create(
                model="tiny",
                prompt=prompts[at],
                temperature=0,
                max_tokens=6 + at % 5,
                extra_body={"steering": arms[at % 4]},
            )
            return made.choices[0].text

        with ThreadPoolExecutor(64) as pool:
            texts = list(pool.map(ask, range(64)))
        until(lambda: server.engine.held == 0)
        batch = server.engine._batch
        assert (batch.rows, batch.plans, batch._uids, batch.model.compositions) == ({}, {}, {}, {})
    for at, text in enumerate(texts):
        records = read_steering({"steering": arms[at % 4]}, {"v": direction()}, LIMITS)
        assert text == lens.generate(prompts[at], raw=True, max_tokens=6 + at % 5, interventions=records)


def test_a_full_queue_is_said() -> None:
    with serving(queue=0, rows=1) as server:
        stream = client(server).completions.create(
            model="tiny", prompt="the cat", max_tokens=64, temperature=0, stream=True, logit_bias={"0": -100}
        )
        next(iter(stream))
        found: list[tuple[int, dict[str, Any]]] = []
        while not found or found[-1][0] == 200:  # until it falls while the first still runs, or that has ended
            found.append(post(server, TEXT, body()))
            if server.engine.held == 0:
                break
        stream.close()
        until(lambda: server.engine.held == 0)
        assert post(server, TEXT, body())[0] == 200
    refused = [answer for status, answer in found if status == 429]
    assert refused
    assert "Ask again later." in refused[0]["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, gate = BatchModel.__call__, threading.Event()

    def held(model: BatchModel, inputs: mx.array, cache: list[Any]) -> mx.array:
        gate.wait(0.02)  # a model slow enough to be left
        return forward(model, inputs, cache)

    with serving(max_tokens=3000, prompt_tokens=64) as server:
        monkeypatch.setattr(BatchModel, "__call__", held)
        data = json.dumps(body(stream=stream, max_tokens=3000)).encode()
        assert post(server, TEXT, b"{")[1]["error"]["message"].endswith("Send one JSON object.")
        head = f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + data)
            if stream:
                assert b"200 OK" in connection.recv(4096)
            until(lambda: len(server.engine._rows) == 1)
        until(lambda: server.engine.held == 0)
        assert server.engine._batch.rows == {}
        gate.set()
        assert post(server, TEXT, body())[0] == 200


def test_a_row_that_is_not_finite_ends_alone() -> None:
    want = llama().generate("the cat", raw=True, max_tokens=40)
    huge = {"vector": "v", "scale": 3e38, "positions": "all"}
    worse = [huge, {**huge, "layer": 2}, {**huge, "layer": 3}]
    with serving() as server, ThreadPoolExecutor(4) as pool:
        good = [pool.submit(post, server, TEXT, body(max_tokens=40)) for _ in range(3)]
        status, answer = pool.submit(post, server, TEXT, body(steering=worse)).result()
        assert status == 400
        assert "not finite" in answer["error"]["message"]
        assert [other.result()[1]["choices"][0]["text"] for other in good] == [want] * 3
        events = list_events(server, body(steering=worse, stream=True))
        assert "not finite" in events[-1]["error"]["message"]


def list_events(server: LensServer, asked: dict[str, Any]) -> list[dict[str, Any]]:
    data = json.dumps(asked).encode()
    head = f"POST {TEXT} HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + data)
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    return [json.loads(line[6:]) for line in got.split(b"\n") if line.startswith(b"data: {")]


def test_a_step_that_fails_costs_those_in_it_and_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, broken = BatchModel.__call__, threading.Event()

    def fails(model: BatchModel, inputs: mx.array, cache: list[Any]) -> mx.array:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("the device said no")
        return forward(model, inputs, cache)

    with serving() as server:
        want = post(server, TEXT, body())[1]["choices"][0]["text"]
        monkeypatch.setattr(BatchModel, "__call__", fails)
        broken.set()
        status, answer = post(server, TEXT, body())
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "the device said no" in answer["error"]["message"]
        assert post(server, TEXT, body())[1]["choices"][0]["text"] == want


def test_who_may_ask(server: LensServer) -> None:
    assert post(server, TEXT, body(), Host="evil.example")[0] == 403
    assert post(server, TEXT, body(), Host=f"evil.example:{server.port}")[0] == 403
    assert post(server, TEXT, body(), Origin="http://evil.example")[0] == 403
    assert post(server, TEXT, body(), Origin="null")[0] == 403
    assert post(server, TEXT, body(), Host=f"localhost:{server.port}")[0] == 200
    assert post(server, TEXT, body(), Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    assert post(server, TEXT, body(model="other"))[0] == 404


def test_a_token_is_asked_for_elsewhere() -> None:
    with pytest.raises(LensError, match="needs a token"):
        LensServer(catalogue, host="0.0.0.0", port=0)
    with serving(token="s3cret") as server:
        assert post(server, TEXT, body())[0] == 401
        assert post(server, TEXT, body(), Authorization="Bearer wrong")[0] == 401
        assert client(server, "s3cret").completions.create(**body()).choices[0].text


def test_bodies_are_bounded_and_have_to_come() -> None:
    with serving(body=1 << 20, body_seconds=0.2) as server:
        status, answer = post(server, TEXT, b" " * (1 << 20) + b"{}")
        assert (status, answer["error"]["message"]) == (413, "The body is larger than 1 MiB. Send less.")
        head = f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as huge:
            huge.sendall(f"{head}Content-Length: 9999999999999\r\n\r\n{{".encode())
            assert b" 413 " in huge.recv(4096)
        for kind in ("Content-Length: 50\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            with socket.create_connection(("127.0.0.1", server.port)) as slow:
                slow.sendall((head + kind).encode())
                assert b" 408 " in slow.recv(4096)
        assert post(server, TEXT, body())[0] == 200


def test_a_model_that_cannot_be_batched_is_served_too() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_tui.lens.decode.batch.way_of", lambda registry: "alone")
        lens = llama()
        want = [lens.generate(prompt, raw=True, max_tokens=5) for prompt in ("the cat", "a dog", "the sea")]
        with serving() as server, ThreadPoolExecutor(3) as pool:
            asked = [body(prompt=prompt, max_tokens=5) for prompt in ("the cat", "a dog", "the sea")]
            found = list(pool.map(lambda one: post(server, TEXT, one)[1]["choices"][0]["text"], asked))
            assert post(server, TEXT, body(steering=[NARROW]))[0] == 400
        assert found == want
