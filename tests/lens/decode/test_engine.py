"""vllm-mlx as the scheduler of batches: what comes out is what the built-in way gives."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Add, LensError, Positions, Request, Sampling, SteeringVector, Token
from tests.lens import tiny

HERE = find_spec("vllm_mlx") is not None
needs_engine = pytest.mark.skipif(not HERE, reason="vllm-mlx is not installed")
PROMPTS = ("The cat sat on", "A dog", "Once upon a time there was a small house and")


def add(scale: float, **extra: Any) -> Add:
    vector = SteeringVector.of("v", np.random.default_rng(2).normal(size=64), 1)
    return Add(id="add", layer=1, vector=vector, scale=scale, **extra)


def model(kind: Any = tiny.llama) -> LensModel:
    return LensModel.from_model(kind(layers=2, vocab=8192), tiny.tokenizer(), use_engine="vllm-mlx")


def test_an_engine_that_is_not_there_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_tui.lens.decode import batch_start

    monkeypatch.setattr(batch_start, "find_spec", lambda name: None)
    with pytest.raises(LensError, match="not installed") as refused:
        LensModel.from_model(tiny.llama(), use_engine="vllm-mlx")
    assert "--no-deps vllm-mlx" in str(refused.value)
    with pytest.raises(LensError, match="no engine 'vllm'"):
        LensModel.from_model(tiny.llama(), use_engine="vllm")  # type: ignore[arg-type]
    assert LensModel.from_model(tiny.llama(), use_engine=True).engine == "built-in"


@needs_engine
def test_rows_equal_solo_runs_under_their_own_interventions_and_sampling() -> None:
    lens = model()
    requests = [
        Request(PROMPTS[0]),
        Request(PROMPTS[1], (add(6.0),)),
        Request(PROMPTS[2], (add(9.0, positions=Positions("generated")),)),
        Request(PROMPTS[0], (add(9.0, positions=Positions("indices", indices=(1, -1))),)),
        Request(PROMPTS[1], sampling=Sampling(max_tokens=7, temp=1.1, top_p=0.9, seed=4, repetition_penalty=1.3)),
    ]
    batch = lens.stream_batch(requests, max_tokens=6, raw=True, top=2, completion_batch_size=3)
    tokens = [event for event in batch if isinstance(event, Token)]
    for row, request in zip(batch.records, requests, strict=True):
        alone = lens.stream(request.prompt, sampling=row.sampling, interventions=request.interventions, raw=True)
        wanted = list(alone)
        assert list(row.token_ids) == [token.token_id for token in wanted]
        assert row.text == alone.text
        np.testing.assert_allclose(row.logprobs, [token.logprob for token in wanted], atol=2e-4)
        assert len(row.doses) == len(request.interventions or ())
        assert [item.positions for item in batch.steered(row.index)] == [item.positions for item in alone.steered]
    assert max(max(row.batch_rows) for row in batch.records) > 1
    assert {len(token.top) for token in tokens} == {2}
    assert lens.registry.installed == ()


@needs_engine
def test_steered_and_plain_prompts_never_share_what_the_engine_keeps() -> None:
    lens = model()
    ids = [int(token) for token in np.random.default_rng(0).integers(3, 8000, size=200)]
    longer = [*ids, *range(100, 120)]
    plain = LensModel.from_model(lens.model, tiny.tokenizer())
    plain.prefixes.enabled = False
    for prompt, records in ((ids, ()), (longer, (add(6.0),)), (longer, ()), (ids, (add(6.0),))):
        batch = lens.stream_batch([prompt], interventions=records, max_tokens=4)
        list(batch)
        wanted = list(plain.stream(prompt, interventions=records, max_tokens=4))
        np.testing.assert_allclose(batch.records[0].logprobs, [token.logprob for token in wanted], atol=2e-4)


@needs_engine
def test_stops_blocks_and_leaving_work_as_in_the_built_in_way() -> None:
    lens = model()
    builtin = LensModel.from_model(lens.model, tiny.tokenizer())
    with lens.steer(layer=0, vector=np.ones(64), scale=2.0):
        steered = lens.generate_batch(PROMPTS, max_tokens=6, raw=True)
    with builtin.steer(layer=0, vector=np.ones(64), scale=2.0):
        assert steered == builtin.generate_batch(PROMPTS, max_tokens=6, raw=True)
    whole = builtin.generate_batch(PROMPTS, max_tokens=9, raw=True)
    stop = whole[0][8:11]
    assert lens.generate_batch([Request(PROMPTS[0], stop=(stop,)), PROMPTS[1]], max_tokens=9, raw=True) == [
        whole[0][: whole[0].index(stop)],
        whole[1],
    ]
    batch = lens.stream_batch(PROMPTS, max_tokens=9, raw=True)
    next(batch)
    batch.remove(0)
    late = batch.add(Request(PROMPTS[0], (add(5.0),)))
    list(batch)
    assert [row.reason for row in batch.records] == ["stopped", "length", "length", "length"]
    assert batch.texts[late] == builtin.generate(PROMPTS[0], interventions=[add(5.0)], max_tokens=9, raw=True)


@needs_engine
def test_the_bundled_model_gives_the_same_texts() -> None:
    lens = LensModel("demo", use_engine="vllm-mlx")
    builtin = LensModel.from_model(lens.model, lens.tokenizer)
    wanted = [builtin.generate(prompt, max_tokens=12, temperature=0.0) for prompt in PROMPTS]
    assert lens.generate_batch(PROMPTS, max_tokens=12, temperature=0.0) == wanted
