"""Answers of the server: by OpenAI's own client, and equal to what the library gives alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from lens_tui import LensModel
from lens_tui.records import Add, ClampFeature, Origin, Positions, ProjectOut, SteeringVector
from lens_tui.records.codec import to_json
from lens_tui.records.gates import Gate, monitor_of
from lens_tui.records.vector_formats import save_vectors
from lens_tui.sae.load_sae import load_sae
from lens_tui.serve.engine_thread import Begun, Catalogue, Ended, Piece, ScoredToken
from lens_tui.serve.http_server import LensServer
from lens_tui.serve.wire_answer import Reply
from lens_tui.serve.wire_request import read_order
from tests.folders import sae_folder

from .servers import LIMITS, catalogue, client, direction, gemma, llama, post, serving

ADD = Add(id="push", layer=2, vector=direction(1, 2), scale=6.0, positions=Positions("generated"))
OUT = ProjectOut(id="out", layer=1, vector=direction(2))
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module", params=[llama, gemma])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LensServer, LensModel]]:
    with serving(lambda: catalogue(request.param)) as server:
        yield server, request.param()


@pytest.fixture(scope="module")
def server() -> Iterator[LensServer]:
    with serving() as one:
        yield one


def ask(server: LensServer, prompt: Any = "the cat", **more: Any) -> Any:
    extra = {name: more.pop(name) for name in ("steering", "vllm_xargs", "lens") if name in more}
    return client(server).completions.create(prompt=prompt, **{**GREEDY, **more}, extra_body=extra)


def test_steered_tokens_are_those_of_generate(pair: tuple[LensServer, LensModel]) -> None:
    server, lens = pair
    texts = []
    for records in ((), (ADD,), (OUT, ADD)):
        done = ask(server, steering=[to_json(record) for record in records], logprobs=2)
        tokens = list(lens.stream("the cat", interventions=records, raw=True, max_tokens=8, top=2))
        assert done.choices[0].text == "".join(token.text for token in tokens)
        got = done.choices[0].logprobs
        np.testing.assert_allclose(got.token_logprobs, [token.logprob for token in tokens], atol=2e-4)
        best = [max(place.values()) for place in got.top_logprobs]
        np.testing.assert_allclose(best, [token.top[0].logprob for token in tokens], atol=2e-4)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(lens.tokens.encode("the cat")), 8)
        texts.append(done.choices[0].text)
    assert len(set(texts)) == 3


def test_chat_goes_through_the_template_and_streams_the_same(pair: tuple[LensServer, LensModel]) -> None:
    server, lens = pair
    messages: Any = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi there"}]
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi there"}]
    want = lens.generate(said, interventions=[ADD], max_tokens=8)
    extra = {"steering": [to_json(ADD)]}
    chat = client(server).chat.completions
    done = chat.create(messages=messages, **GREEDY, logprobs=True, top_logprobs=3, extra_body=extra)
    assert done.choices[0].message.content == want
    assert done.choices[0].finish_reason == "length"
    scored = done.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in scored).decode("utf-8", "replace").strip() == want.strip()
    assert all(token.top_logprobs[0].logprob == pytest.approx(token.logprob) for token in scored)
    options: Any = {"include_usage": True}
    chunks = list(chat.create(messages=messages, **GREEDY, stream=True, stream_options=options, extra_body=extra))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == want
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage == done.usage


def test_the_forms_of_steering_are_one(server: LensServer, tmp_path: Any) -> None:
    vector = direction()
    numbers = [float(value) for value in vector.direction]
    record = Add(id="a", layer=vector.layer, vector=vector, scale=6.0, positions=Positions("generated"))
    want = ask(server, steering=[to_json(record)]).choices[0].text
    assert want != ask(server).choices[0].text
    named = {"vector": "v", "scale": 6.0, "positions": "generated"}
    raw = {"vector": [2 * value for value in numbers], "layer": 1, "scale": 3.0, "positions": {"kind": "generated"}}
    for form in (named, raw):
        assert ask(server, steering=[form]).choices[0].text == want
        assert ask(server, steering=form).choices[0].text == want
    everywhere = ask(server, steering=[{"vector": "v", "scale": 6.0}]).choices[0].text
    path = save_vectors(vector, tmp_path / "v.json")
    wire = {**json.loads(path.read_text()), "scale": 6.0 / vector.norm}
    for given in (wire, [wire], json.dumps([wire]), [json.dumps(wire)]):
        assert ask(server, vllm_xargs={"apply_steering_vectors": given}).choices[0].text == everywhere
    at_last = {**wire, "position_indices": [0]}
    indexed = {"vector": "v", "scale": 6.0, "positions": [0]}
    first = ask(server, vllm_xargs={"apply_steering_vectors": [at_last]}).choices[0].text
    assert first == ask(server, steering=[indexed]).choices[0].text


def test_seeds_make_a_text_again_and_answers_differ(server: LensServer) -> None:
    one, again = (ask(server, temperature=1.5, seed=7, n=3) for _ in range(2))
    assert [choice.text for choice in one.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in one.choices}) == 3
    lens = llama()
    for at, choice in enumerate(one.choices):
        assert choice.text == lens.generate("the cat", raw=True, max_tokens=8, temp=1.5, seed=7 + at)


def test_an_answer_of_its_end_alone_has_empty_lists_of_log_probabilities_streamed_or_not(server: LensServer) -> None:
    tokenizer: Any = llama().tokens.tokenizer
    (end, *_) = tokenizer.eos_token_ids
    only: dict[str, Any] = {**GREEDY, "logit_bias": {str(end): 100}}
    texts = client(server).completions
    done = texts.create(prompt="the cat", **only, logprobs=1)
    empty: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert (done.choices[0].text, done.choices[0].finish_reason, done.usage.completion_tokens) == ("", "stop", 1)
    assert done.choices[0].logprobs.model_dump() == empty
    (last,) = texts.create(prompt="the cat", **only, logprobs=1, stream=True)
    assert last.choices[0].logprobs.model_dump() == empty
    chat, messages = client(server).chat.completions, cast("Any", [{"role": "user", "content": "Hi"}])
    whole = chat.create(messages=messages, **only, logprobs=True)
    assert whole.choices[0].logprobs.model_dump() == {"content": [], "refusal": None}
    with chat.stream(messages=messages, **only, logprobs=True) as stream:
        assert stream.get_final_completion().choices[0].model_dump()["logprobs"]["content"] == []
    chunks: Any = list(chat.create(messages=messages, **only, stream=True))
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)


def test_of_tokens_that_read_alike_the_likeliest_is_listed() -> None:
    order = read_order({"prompt": "a", "logprobs": 3}, "text", {}, LIMITS)
    reply = Reply(order, "tiny")
    reply.take(Piece(0, "x", ScoredToken(b"x", -0.1, ((b"x", -0.1), (b"\xe2", -2.0), (b"\xf0", -3.0)))))
    reply.take(Ended(0, "stop", 1))
    (choice,) = json.loads(reply.whole())["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"x": -0.1, "\ufffd": -2.0}]


@pytest.mark.parametrize("usage", [False, True])
def test_what_there_is_to_say_about_an_order_comes_once_in_a_stream(usage: bool) -> None:
    asked = {"prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": usage}}
    reply = Reply(read_order(asked, "text", {}, LIMITS), "tiny")
    reply.take(Begun(2, ("It is long.",)))
    chunks: list[Any] = []
    for event in (Piece(1, "x"), Ended(1, "stop", 1), Ended(0, "length", 8)):
        reply.take(event)
        chunks += [json.loads(chunk.removeprefix(b"data: ")) for chunk in reply.chunks(event)]
    assert [chunk.get("warnings") for chunk in chunks] == [None] * (len(chunks) - 1) + [["It is long."]]


def test_several_prompts_stops_and_ids(server: LensServer) -> None:
    lens = llama()
    texts = [lens.generate(prompt, raw=True, max_tokens=8) for prompt in ("the cat", "a dog")]
    done = ask(server, ["the cat", "a dog"])
    assert [choice.text for choice in done.choices] == texts
    ids = list(lens.tokens.encode("a dog"))
    assert ask(server, ids).choices[0].text == texts[1]
    stop = texts[0][3:6]
    ended = ask(server, stop=stop)
    assert ended.choices[0].text == texts[0][: texts[0].index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    biased = ask(server, logit_bias={"5": 100.0}, max_tokens=3, logprobs=0)
    assert biased.choices[0].text == lens.generate("the cat", raw=True, max_tokens=3, logit_bias={5: 100.0})


def test_readings_are_those_of_the_steered_text(server: LensServer) -> None:
    lens = llama()
    asked = {"capture": {"layers": [0, -1]}, "monitors": [{"vector": "v"}], "kl": True, "over": "all"}
    done = ask(server, steering=[to_json(ADD)], lens=asked)
    found = done.choices[0].model_extra["lens"]
    records = list(lens.stream("the cat", interventions=[ADD], raw=True, max_tokens=8))
    ids = [*lens.tokens.encode("the cat"), *(token.token_id for token in records)]
    n = len(ids) - 8

    # The same by hand: what 'generated' steers is the last prompt token and all behind it.
    def push(_: Any, h: mx.array) -> mx.array:
        moved = np.array(h)
        moved[:, n - 1 :] += 6.0 * ADD.vector.direction
        return mx.array(moved)

    with lens.hook(2, push), lens.capture([0, 1, 3]) as seen:
        steered = np.array(lens.forward(mx.array([ids])))[0]
    plain = np.array(lens.forward(mx.array([ids])))[0]
    for entry, layer in zip(found["capture"], (0, 3), strict=True):
        values = np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])
        np.testing.assert_allclose(values, np.array(seen[layer])[0], atol=1e-4)
        assert entry["layer"] == layer
    projection = np.array(seen[1])[0] @ direction().direction
    np.testing.assert_allclose(found["monitors"][0]["values"], projection, atol=1e-4)

    def log(x: Any) -> Any:
        return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)

    p, q = log(steered[n - 1 : -1]), log(plain[n - 1 : -1])
    np.testing.assert_allclose(found["kl"]["kl"], (np.exp(p) * (p - q)).sum(-1), atol=1e-4)
    np.testing.assert_allclose(found["kl"]["reverse_kl"], (np.exp(q) * (q - p)).sum(-1), atol=1e-4)
    chunks = list(ask(server, steering=[to_json(ADD)], lens=asked, stream=True))
    assert chunks[-1].choices[0].model_extra["lens"] == found


def test_a_probe_reads_its_score_and_a_gate_lets_a_request_steer_where_it_is_open() -> None:
    probe = SteeringVector.of("p", 3.0 * direction(4, 0).direction, 0, origin=Origin("probe", {"bias": 0.5}))
    gated = replace(ADD, gate=Gate(monitor_of(probe), threshold=0.5))
    lens = llama()
    with serving(lambda: replace(catalogue(), vectors={"p": probe})) as server:
        asked = {"capture": {"layers": [0]}, "monitors": [{"vector": "p"}]}
        done = ask(server, steering=[to_json(gated)], lens=asked).choices[0]
        assert done.text == lens.generate("the cat", raw=True, max_tokens=8, interventions=[gated])
        found = done.model_extra["lens"]
        values = np.frombuffer(base64.b64decode(found["capture"][0]["data"]), "<f4").reshape(-1, 64)
        scores = 3.0 * values @ direction(4, 0).direction + 0.5
        np.testing.assert_allclose(found["monitors"][0]["values"], scores, atol=1e-4)
        assert min(scores) < 0.5 < max(scores)  # open at some tokens and shut at others
        assert server.engine._batch.sites.keys == set()


def test_models_says_what_there_is(server: LensServer) -> None:
    from openai import NotFoundError

    (model,) = client(server).models.list().data
    assert model.id == "tiny"
    assert client(server).models.retrieve("tiny") == model
    with pytest.raises(NotFoundError, match="There is no model 'other'"):
        client(server).models.retrieve("other")
    assert model.model_extra is not None
    assert model.model_extra["lens"]["vectors"] == [{"name": "v", "layer": 1, "site": "resid_post"}]
    assert post(server, "/v1/nothing", {})[0] == 404


def test_features_steer_and_are_read_as_numpy_has_them(tmp_path: Any) -> None:
    folder = sae_folder(tmp_path / "sae", d_model=64)
    arrays = load_file(folder / "params.safetensors")
    sae = load_sae(folder)

    def opened() -> Catalogue:
        made = replace(catalogue(), saes={"s": sae})
        made.lens.attach_sae("s", sae)
        return made

    lens = llama()
    lens.attach_sae("s", sae)
    by_hand = Add(id="f", layer=1, vector=arrays["w_dec"][3] / np.linalg.norm(arrays["w_dec"][3]), scale=5.0)
    clamp = ClampFeature(id="c", layer=1, sae="s", feature=3, value=4.0)
    with serving(opened) as server:
        asked = {"capture": {"layers": [1]}, "features": {"k": 4}, "monitors": [{"feature": 9, "sae": "s"}]}
        done = ask(server, steering=[{"feature": 3, "scale": 5.0}], lens=asked).choices[0]
        assert done.text == lens.generate("the cat", raw=True, max_tokens=8, interventions=[by_hand])
        clamped = ask(server, steering=[to_json(clamp)]).choices[0].text
        assert clamped == lens.generate("the cat", raw=True, max_tokens=8, interventions=[clamp])
    found = done.model_extra["lens"]
    h = np.frombuffer(base64.b64decode(found["capture"][0]["data"]), "<f4").reshape(-1, 64)
    before = h @ arrays["w_enc"] + arrays["b_enc"]
    active = np.where(before > arrays["threshold"], before, 0.0)
    np.testing.assert_allclose(found["monitors"][0]["values"], active[:, 9], atol=1e-3)
    for row, listed in zip(active, found["features"]["tokens"], strict=True):
        assert [item["feature"] for item in listed] == list(np.argsort(-row, kind="stable")[:4])
        np.testing.assert_allclose([item["activation"] for item in listed], np.sort(row)[::-1][:4], rtol=1e-3)
