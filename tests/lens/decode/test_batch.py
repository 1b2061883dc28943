"""Batches of different prompts: each row is what its prompt gives alone, whoever it shares the batch with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import BatchGeneration, LensModel
from lens_tui.lens.decode.batch_rows import way_of
from lens_tui.records import (
    Ablate,
    Add,
    ArmEnd,
    Intervention,
    LensError,
    NormMatch,
    Positions,
    ProjectOut,
    Request,
    Sampling,
    SteeringVector,
    Token,
)
from tests.lens import tiny
from tests.lens.test_tokens import PLAIN, tokens
from tests.lens.tiny import add

MAKERS = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "gemma4": tiny.gemma4,
    "rwkv7": tiny.rwkv7,
    "lfm2": tiny.lfm2,
    "qwen3_moe": tiny.qwen3_moe,
}
PROMPTS = (tiny.IDS, (3, 4), (9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4), (50,), (11, 12, 13))


def positioned(kind: Any, **extra: Any) -> Add:
    return add(9.0, 3, positions=Positions(kind, **extra))


RECORDS: tuple[tuple[Intervention, ...], ...] = (
    (positioned("prompt"), positioned("indices", indices=(0, -1))),
    (positioned("last"),),
    (positioned("slice", start=2, stop=-2), add(3.0, 4, 0), Ablate(id="z", layer=2, site="mlp_out")),
    (),
    (positioned("generated"), NormMatch(id="n", layer=2, vector=add(1.0, 5, 2).vector, scale=0.4)),
)
MIXED: dict[str, Any] = {"completion_batch_size": 3, "prefill_batch_size": 2, "prefill_step_size": 4}


def run(batch: BatchGeneration) -> tuple[list[Token], list[ArmEnd]]:
    events = list(batch)
    return [item for item in events if isinstance(item, Token)], [item for item in events if isinstance(item, ArmEnd)]


def assert_row_is_alone(lens: LensModel, batch: BatchGeneration, index: int, **options: Any) -> None:
    record = batch.records[index]
    alone = list(lens.stream(record.prompt_ids, sampling=record.sampling, **options))
    assert list(record.token_ids) == [token.token_id for token in alone]
    np.testing.assert_allclose(record.logprobs, [token.logprob for token in alone], atol=2e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_equal_solo_runs_each_under_its_own_interventions(name: str) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    requests = [Request(ids, records) for ids, records in zip(PROMPTS, RECORDS, strict=True)]
    batch = lens.stream_batch(requests, max_tokens=5, **MIXED)
    tokens, ends = run(batch)
    for index, records in enumerate(RECORDS):
        assert_row_is_alone(lens, batch, index, interventions=records)
        mine = [token for token in tokens if token.arm == index]
        assert [token.token_id for token in mine] == list(batch.token_ids[index])
        assert [token.index for token in mine] == list(range(5))
    assert sorted(end.arm for end in ends) == [0, 1, 2, 3, 4]
    assert {end.reason for end in ends} == {"length"}
    plain = lens.stream_batch(PROMPTS, max_tokens=5)
    run(plain)
    pairs = zip(plain.records, batch.records, strict=True)
    steered = [new.index for old, new in pairs if np.abs(np.subtract(old.logprobs, new.logprobs)).max() > 1e-4]
    assert steered == [0, 1, 2, 4]
    assert lens.registry.installed == ()


def test_doses_are_of_the_row_alone_and_never_of_padding() -> None:
    lens = LensModel.from_model(tiny.llama())
    requests = [Request(ids, (add(2.0 + index),)) for index, ids in enumerate(PROMPTS)]
    _, ends = run(lens.stream_batch(requests, max_tokens=4))
    for end in ends:
        alone = lens.stream(PROMPTS[end.arm], max_tokens=4, interventions=[add(2.0 + end.arm)])
        list(alone)
        (dose,), (solo,) = end.doses, alone.dose
        assert dose.asked == pytest.approx(2.0 + end.arm, rel=1e-5)
        assert dose.delivered == pytest.approx(solo.delivered, rel=1e-5)
        if end.arm == 0:  # what ran ahead of the last token is measured too, or not
            assert dose.tokens in (len(PROMPTS[0]) + 3, len(PROMPTS[0]) + 4)


def test_models_wrong_with_padding_are_found_out() -> None:
    assert way_of(LensModel.from_model(tiny.llama()).registry) == "padded"
    assert way_of(LensModel.from_model(tiny.llama(dtype=mx.bfloat16, bits=4)).registry) == "padded"
    assert way_of(LensModel.from_model(tiny.rwkv7()).registry) == "joined"


def test_a_model_that_mlx_lm_cannot_batch_runs_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models.cache import KVCache

    monkeypatch.delattr(KVCache, "merge")
    lens = LensModel.from_model(tiny.llama())
    requests = [Request(ids, records) for ids, records in zip(PROMPTS, RECORDS, strict=True)]
    batch = lens.stream_batch(requests, max_tokens=4, repetition_penalty=1.4)
    run(batch)
    assert way_of(lens.registry) == "alone"
    for index, records in enumerate(RECORDS):
        assert_row_is_alone(lens, batch, index, interventions=records)
    assert {row.batch_rows for row in batch.records} == {(1, 1, 1, 1)}


def test_rows_join_and_leave_while_others_go_on() -> None:
    lens = LensModel.from_model(tiny.llama())
    batch = lens.stream_batch(PROMPTS[:2], max_tokens=12)
    events: Iterator[Any] = iter(batch)
    for _ in range(5):
        next(events)
    assert batch.add(Request(PROMPTS[2], (add(6.0),), Sampling(max_tokens=5))) == 2
    batch.remove(0)
    run(batch)
    left = batch.records[0]
    assert left.reason == "stopped"
    assert 0 < len(left.token_ids) < 12
    assert [row.reason for row in batch.records] == ["stopped", "length", "length"]
    assert_row_is_alone(lens, batch, 1)
    assert_row_is_alone(lens, batch, 2, interventions=(add(6.0),))
    with pytest.raises(LensError, match="has ended"):
        batch.add(Request(PROMPTS[0]))
    with pytest.raises(LensError, match="no prompt 7"):
        batch.remove(7)


def test_sampling_is_each_rows_own_and_seeds_give_what_they_give_alone() -> None:
    lens = LensModel.from_model(tiny.llama())
    settings = (
        Sampling(max_tokens=8, temp=1.2, seed=5),
        Sampling(max_tokens=6, temp=0.8, top_p=0.9, top_k=20, min_p=0.01, seed=6),
        Sampling(max_tokens=7, temp=1.0, repetition_penalty=1.5, seed=5),
        Sampling(max_tokens=9),
    )
    requests = [Request(tiny.IDS, sampling=item) for item in settings]
    batch = lens.stream_batch(requests, completion_batch_size=3)
    run(batch)
    for index, item in enumerate(settings):
        assert batch.records[index].sampling == item
        assert_row_is_alone(lens, batch, index)
    again = lens.stream_batch(requests, prefill_batch_size=1)
    run(again)
    assert again.token_ids == batch.token_ids
    assert len(set(batch.token_ids)) == 4


def test_rows_that_differ_in_their_seed_alone_choose_side_by_side_what_each_chooses_alone() -> None:
    lens = LensModel.from_model(tiny.llama())
    same = [Sampling(max_tokens=5 + at, temp=1.1, top_k=40, min_p=0.01, seed=at) for at in range(4)]
    other = Sampling(max_tokens=3, temp=1.1, seed=9)  # while it is there, rows choose one by one
    batch = lens.stream_batch([Request(tiny.IDS, sampling=item) for item in (*same, other)], completion_batch_size=8)
    with patch.object(mx, "vmap", wraps=mx.vmap) as drawn:
        for event in batch:
            if isinstance(event, Token) and event.arm == 3 and event.index == 5:
                batch.add(Request(tiny.IDS, sampling=same[0]))  # a row that joins starts its own numbers
    assert drawn.call_count > 2
    for index in range(6):
        assert_row_is_alone(lens, batch, index)
    assert batch.token_ids[5] == batch.token_ids[0]
    assert len({ids[:3] for ids in batch.token_ids[:4]}) > 1


def test_top_candidates_are_the_best_of_the_rows_own_distribution() -> None:
    lens = LensModel.from_model(tiny.llama())
    tokens, _ = run(lens.stream_batch(PROMPTS[:2], max_tokens=3, top=4))
    for token in tokens:
        alone = list(lens.stream(PROMPTS[token.arm], max_tokens=3, top=4))[token.index]
        assert [item.token_id for item in token.top] == [item.token_id for item in alone.top]
        assert token.top[0].token_id == token.token_id


def test_stop_texts_end_a_row_and_are_left_out() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    prompts = ["The cat", "A dog sat on"]
    whole = lens.generate_batch(prompts, max_tokens=12, raw=True)
    stop = whole[0][10:13]
    at = whole[0].index(stop)
    batch = lens.stream_batch([Request(prompts[0], stop=("never this", stop)), prompts[1]], max_tokens=12, raw=True)
    tokens, _ = run(batch)
    assert batch.texts == (whole[0][:at], whole[1])
    assert [row.reason for row in batch.records] == ["stop", "length"]
    assert "".join(token.text for token in tokens if token.arm == 0) == whole[0][:at]
    # A stop text that only begins is given back at the end.
    tail = whole[1][-1] + "\u2603"
    assert lens.generate_batch(prompts, max_tokens=12, raw=True, stop=tail)[1] == whole[1]


def test_stop_ids_end_a_row_beside_the_tokenizers_own() -> None:
    lens = LensModel.from_model(tiny.llama())
    ids = [token.token_id for token in lens.stream(tiny.IDS, max_tokens=8)]
    batch = lens.stream_batch([Request(tiny.IDS, stop_ids=(ids[3],)), tiny.IDS], max_tokens=8)
    run(batch)
    assert batch.token_ids == (tuple(ids[: ids.index(ids[3]) + 1]), tuple(ids))
    assert [row.reason for row in batch.records] == ["stop", "length"]


def test_texts_are_those_of_generate_and_the_blocks_around_hold() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    prompts = ["What is money?", "What is gold?"]
    with lens.steer(layer=1, vector=np.ones(64), scale=2.0):
        steered = lens.generate_batch(prompts, max_tokens=6, temperature=0.0)
        alone = [lens.generate(prompt, max_tokens=6, temperature=0.0) for prompt in prompts]
    assert steered == alone
    assert steered != lens.generate_batch(prompts, max_tokens=6, temperature=0.0)


@pytest.mark.parametrize("role", ["user", "assistant", "thinking"])
def test_roles_are_each_rows_own(role: str) -> None:
    made = tokens(PLAIN)
    start, end = made.encode("q")[-1], made.encode("w")[-1]
    wrapped: Any = made.tokenizer
    wrapped._think_start_tokens, wrapped._think_end_tokens = (start,), (end,)
    wrapped._think_start, wrapped._think_end = "q", "w"
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), wrapped)
    after = {40: start, start: 41, 41: 42, 42: end, end: 43, 43: 44}

    def force(ids: mx.array, row: mx.array) -> mx.array:
        return mx.where(mx.arange(row.shape[-1]) == after.get(int(ids[-1]), 40), 1e4, row)

    options: dict[str, Any] = {
        "interventions": [add(20.0, 2, 0, positions=Positions("role", role=role))],
        "max_tokens": 7,
        "logits_processors": [force],
    }
    prompts = ["Hello there, how are you?", "Hi"]
    batch = lens.stream_batch([*prompts, Request("One more", ())], **options)
    run(batch)
    plain = lens.stream_batch(prompts, **{**options, "interventions": []})
    run(plain)
    for index, prompt in enumerate(prompts):
        alone = [token.logprob for token in lens.stream(prompt, **options)]
        np.testing.assert_allclose(batch.records[index].logprobs, alone, atol=2e-4)
        assert np.abs(np.subtract(alone, plain.records[index].logprobs)).max() > 1e-2
        assert batch.token_ids[index] == (40, start, 41, 42, end, 43, 44)
    with pytest.raises(LensError, match="no 'tool' part"):
        lens.generate_batch(prompts, interventions=[add(1.0, positions=Positions("role", role="tool"))])


def test_a_dropped_closed_or_failed_batch_leaves_the_model_as_it_was() -> None:
    lens = LensModel.from_model(tiny.llama())
    batch = lens.stream_batch(PROMPTS, interventions=[add(4.0)], max_tokens=20)
    next(batch)
    assert lens.registry.installed
    batch.close()
    assert {row.reason for row in batch.records} == {"stopped"}
    assert lens.registry.installed == ()
    dropped = lens.stream_batch(PROMPTS, interventions=[add(4.0)], max_tokens=20)
    next(dropped)
    del dropped
    assert lens.registry.installed == ()

    def fail(ctx: Any, h: mx.array) -> None:
        raise RuntimeError("no")

    with lens.hook(1, fail), pytest.raises(LensError, match="failed"):
        lens.generate_batch(PROMPTS, max_tokens=3)
    assert lens.registry.installed == ()


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    lens = LensModel.from_model(tiny.llama())
    out = Positions("indices", (500,))
    with pytest.raises(LensError, match="prompt 1"):
        lens.stream_batch([Request((3, 4)), Request((3, 4), (add(1.0, positions=out),))], max_tokens=4)
    with pytest.raises(LensError, match="not one prompt"):
        lens.generate_batch("hello")
    with pytest.raises(LensError, match="no prompts"):
        lens.generate_batch([])
    with pytest.raises(LensError, match="no option 'tempo'"):
        lens.generate_batch([(1, 2)], tempo=1)
    with pytest.raises(LensError, match="prefill_batch_size"):
        lens.generate_batch([(1, 2)], prefill_batch_size=0)
    with pytest.raises(LensError, match="stop_ids"):
        lens.generate_batch([(1, 2)], stop="x")
    with pytest.raises(LensError, match="no token"):
        lens.generate_batch([Request((1, 2), stop_ids=(10_000,))])
    with pytest.raises(LensError, match="chat messages"):
        lens.generate_batch([Request((1, 2), (add(1.0, positions=Positions("role", role="user")),))])


def test_steering_that_rounding_swallows_is_refused() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    one = SteeringVector.of("one", np.eye(64)[7], 1)
    tiny_push = Add(id="tiny", layer=1, vector=one, scale=1e-20)
    with pytest.raises(LensError, match="prompt 1 moves nothing"):
        lens.generate_batch([Request((1, 2)), Request((3, 4), (tiny_push,))], max_tokens=4)
    projected = ProjectOut(id="p", layer=1, vector=add(1.0).vector)
    batch = lens.stream_batch([Request((1, 2), (projected,)), (3, 4)], max_tokens=3)
    _, ends = run(batch)
    assert next(end for end in ends if end.arm == 0).doses[0].delivered > 0.0
