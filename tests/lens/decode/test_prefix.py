"""Prefixes kept and forked: what comes out is, bit for bit, what comes out without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.hooks.registry import Registry
from lens_tui.records import Add, Arm, ClampFeature, Positions, Request, Token
from tests.lens import tiny
from tests.lens.tiny import add

MAKERS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,  # a sliding window of 4
    "gemma4": tiny.gemma4,
    "rwkv7": tiny.rwkv7,  # recurrent
    "lfm2": tiny.lfm2,  # convolutions and attention
    "falcon_h1": lambda: falcon_h1(),  # state space and attention in each block
    "quantised": lambda: tiny.llama(bits=4),
}
PROMPT = (*tiny.IDS, 3, 4, 5, 6)


def falcon_h1() -> Any:
    model = tiny._model(
        "falcon_h1",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=tiny.VOCAB,
        mamba_d_ssm=64,
        mamba_d_state=16,
        mamba_d_head=16,
        mamba_n_heads=4,
        mamba_n_groups=1,
        mamba_d_conv=4,
        mamba_chunk_size=16,
        tie_word_embeddings=False,
    )
    return tiny.settle(model, 8)


def generated(scale: float, seed: int = 2) -> Add:
    return add(scale, seed, positions=Positions("generated"))


def model(name: str = "llama", *, keep: bool = True) -> LensModel:
    mx.random.seed(0)  # some of the models' parameters keep what they were made with
    lens = LensModel.from_model(MAKERS[name]())
    lens.prefixes.min_tokens = 2
    lens.prefixes.enabled = keep
    return lens


@pytest.mark.parametrize("where", ["generated", "all from layer 2 on", "all"])
@pytest.mark.parametrize(("name", "length"), [("llama", 600), ("gemma3", 300), ("lfm2", 300), ("quantised", 150)])
def test_a_long_prompt_goes_through_once_for_eight_arms_and_their_companions(
    name: str, length: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = model(name)
    prompt = [2 + at * 7 % (tiny.VOCAB - 3) for at in range(length)]
    layer, positions = (0 if where == "all" else 2), Positions("generated" if where == "generated" else "all")
    arms = [Arm("baseline")] + [Arm(f"{at}", (add(3.0 + at, at, layer, positions=positions),)) for at in range(1, 8)]
    list(lens.compare(tiny.IDS, arms, max_tokens=2))  # what is found out about the model once
    lens.prefixes.clear()
    seen: list[tuple[int, int]] = []
    forward = Registry.forward

    def watched(self: Registry, run: Any, ids: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        seen.append(ids.shape)  # type: ignore[arg-type]
        return forward(self, run, ids, *args, **kwargs)

    monkeypatch.setattr(Registry, "forward", watched)
    run = lens.compare(prompt, arms, max_tokens=3, prefill_step_size=128)
    tokens = [event for event in run if isinstance(event, Token)]
    assert len(tokens) == 3 * 8
    assert all(token.kl is not None for token in tokens)
    pieces, steps = [shape for shape in seen if shape[1] > 1], [shape for shape in seen if shape[1] == 1]
    assert sum(tokens for _, tokens in pieces) == length - 1
    assert {rows for rows, _ in pieces} == {8 if where == "all" else 1}
    assert steps == [(15, 1)] * 3  # eight arms, and a companion of each that is steered


@contextmanager
def counted(lens: LensModel) -> Iterator[list[int]]:
    """How many tokens (rows times length) of forwards longer than one token go through the model."""
    seen: list[int] = []
    kind: Any = type(lens.model)
    call = kind.__call__

    def watch(self: Any, inputs: mx.array, *args: Any, **kwargs: Any) -> Any:
        if inputs.shape[1] > 1:
            seen.append(int(inputs.size))
        return call(self, inputs, *args, **kwargs)

    kind.__call__ = watch
    try:
        yield seen
    finally:
        kind.__call__ = call


def told(lens: LensModel, ids: Any, *records: Any, max_tokens: int = 5, **options: Any) -> list[tuple[int, float]]:
    tokens = lens.stream(ids, interventions=records, max_tokens=max_tokens, **options)
    return [(token.token_id, token.logprob) for token in tokens]


@pytest.mark.parametrize("name", MAKERS)
def test_a_prompt_run_again_is_bitwise_the_same_and_not_computed_again(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    records: tuple[tuple[Any, ...], ...] = (
        (),
        (add(4.0),),
        (generated(5.0),),
        (add(3.0, positions=Positions("prompt")),),
    )
    for items in records:
        first = told(lens, PROMPT, *items)
        with counted(lens) as seen:
            again = told(lens, PROMPT, *items)
        assert seen == []
        assert first == again == told(fresh, PROMPT, *items)
    assert len({tuple(told(fresh, PROMPT, *items)) for items in records}) == 4


@pytest.mark.parametrize("name", MAKERS)
def test_a_longer_prompt_goes_on_from_what_is_kept(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    longer = (*PROMPT, 70, 71, 72, 73, 74)
    for items in ((), (add(4.0),), (generated(5.0),)):
        told(lens, PROMPT, *items)
        with counted(lens) as seen:
            got = told(lens, longer, *items)
        assert sum(seen) == len(longer) - 1 - (len(PROMPT) - 1) or sum(seen) == 0  # kept by the plain run before
        wanted = told(fresh, longer, *items)
        assert [token for token, _ in got] == [token for token, _ in wanted]
        np.testing.assert_allclose([p for _, p in got], [p for _, p in wanted], atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_arms_fork_one_prefix(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    arms = [Arm("plain"), Arm("one", (generated(4.0),)), Arm("two", (generated(7.0, 3),))]
    with counted(lens) as seen:
        comparison = lens.compare(PROMPT, arms, max_tokens=5)
        tokens = [event for event in comparison if isinstance(event, Token)]
    assert sum(seen) == len(PROMPT) - 1  # once, not once an arm
    for index, arm in enumerate(arms):
        alone = told(fresh, PROMPT, *arm.interventions)
        mine = [(token.token_id, token.logprob) for token in tokens if token.arm == index]
        assert [token for token, _ in mine] == [token for token, _ in alone]
        np.testing.assert_allclose([p for _, p in mine], [p for _, p in alone], atol=1e-4)
    assert len(set(comparison.token_ids)) > 1 or len({token.logprob for token in tokens if token.index == 1}) == 3


@pytest.mark.parametrize("name", MAKERS)
def test_layers_before_the_first_steered_one_are_computed_once(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    arms = [
        Arm("plain"),
        Arm("one", (add(5.0, layer=1),)),
        Arm("two", (add(4.0, 3, 2), add(3.0, 4, 1, positions=Positions("prompt")))),
        Arm("bos", (add(6.0, 5, 1, positions=Positions("not_bos")),)),
    ]
    with counted(lens) as seen:
        comparison = lens.compare(PROMPT, arms, max_tokens=4, prefill_step_size=5)
        events = list(comparison)
    assert seen == [6, 12, 5, 5]  # the proof that it is right, then chunks of one row and not of four
    alone = [told(fresh, PROMPT, *arm.interventions, max_tokens=4) for arm in arms]
    for index, wanted in enumerate(alone):
        mine = [item for item in events if isinstance(item, Token) and item.arm == index]
        assert [token.token_id for token in mine] == [token for token, _ in wanted]
        np.testing.assert_allclose([token.logprob for token in mine], [p for _, p in wanted], atol=2e-4)
    again = lens.compare(PROMPT, arms, max_tokens=4)
    list(again)
    assert again.reused == len(PROMPT) - 1
    assert again.token_ids == comparison.token_ids


def test_a_model_whose_layers_do_not_take_more_rows_half_way_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import llama

    call: Any = llama.TransformerBlock.__call__
    first: list[int] = []

    def strict(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if cache is not None and self is lens.model.model.layers[0]:
            first[:] = [x.shape[0]]
        if cache is not None and first and x.shape[0] != first[0]:
            raise ValueError("another number of rows")
        out: mx.array = call(self, x, mask, cache)
        return out

    lens, fresh = model(), model(keep=False)
    monkeypatch.setattr(llama.TransformerBlock, "__call__", strict)
    arms = [Arm("plain"), Arm("one", (add(5.0, layer=2),))]
    comparison = lens.compare(PROMPT, arms, max_tokens=3)
    with counted(lens) as seen:
        list(comparison)
    assert seen == [6, 2 * (len(PROMPT) - 1)]  # the proof fails, and both rows go the whole way
    monkeypatch.undo()
    assert comparison.token_ids[1] == tuple(token for token, _ in told(fresh, PROMPT, add(5.0, layer=2), max_tokens=3))


def test_a_dial_turned_while_rows_fork_begins_the_prompt_again() -> None:
    lens, fresh = model(), model(keep=False)
    arms = [Arm("plain"), Arm("late", (add(5.0, layer=2),))]
    turned: list[int] = []

    def turn(done: int, total: int) -> None:
        if done == 5:
            turned.append(done)
            if len(turned) == 1:
                comparison.dial(1, [add(5.0, 3, 0)])

    comparison = lens.compare(PROMPT, arms, max_tokens=3, prefill_step_size=5, progress=turn)
    tokens = [event for event in comparison if isinstance(event, Token) and event.arm == 1]
    wanted = told(fresh, PROMPT, add(5.0, 3, 0), max_tokens=3)
    assert [token.token_id for token in tokens] == [token for token, _ in wanted]
    np.testing.assert_allclose([token.logprob for token in tokens], [p for _, p in wanted], atol=1e-4)
    assert turned == [5, 5]


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_the_plain_part_before_the_first_steered_position_is_shared(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    told(lens, PROMPT[:9])  # keeps 8 plain tokens
    late = add(9.0, positions=Positions("slice", start=8))
    with counted(lens) as seen:
        got = told(lens, PROMPT, late)
    assert sum(seen) == len(PROMPT) - 1 - 8
    wanted = told(fresh, PROMPT, late)
    np.testing.assert_allclose([p for _, p in got], [p for _, p in wanted], atol=1e-4)
    assert abs(got[0][1] - told(fresh, PROMPT)[0][1]) > 1e-3


@pytest.mark.parametrize("name", ["llama", "rwkv7"])
def test_plain_and_steered_caches_are_never_mixed(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    runs = [
        (PROMPT, ()),
        (PROMPT, (add(6.0),)),
        (PROMPT, (add(6.0, 3),)),
        (PROMPT, (add(6.5),)),
        ((*PROMPT, 7, 8), ()),
        ((*PROMPT, 7, 8), (add(6.0),)),
        ((*PROMPT, 7, 8), (add(6.0, positions=Positions("indices", indices=(-2,))),)),
        ((*PROMPT, 7, 8, 9), (add(6.0, positions=Positions("indices", indices=(-2,))),)),
        (PROMPT, ()),
    ]
    for ids, items in runs:
        wanted = told(fresh, ids, *items)
        np.testing.assert_allclose([p for _, p in told(lens, ids, *items)], [p for _, p in wanted], atol=1e-4)


def test_rows_filled_together_are_kept_one_by_one() -> None:
    lens, fresh = model(), model(keep=False)
    arms = [Arm("plain"), Arm("add", (add(4.0),)), Arm("other", (add(4.0, 3),))]
    list(lens.compare(PROMPT, arms, max_tokens=3))
    alone = [told(fresh, PROMPT, *arm.interventions) for arm in arms]
    with counted(lens) as seen:
        for arm, wanted in zip(arms, alone, strict=True):
            got = told(lens, PROMPT, *arm.interventions)
            np.testing.assert_allclose([p for _, p in got], [p for _, p in wanted], atol=1e-4)
        again = lens.compare(PROMPT, arms, max_tokens=3)
        list(again)
    assert seen == []
    assert again.reused == len(PROMPT) - 1


def test_doses_do_not_depend_on_what_was_kept() -> None:
    lens, fresh = model(), model(keep=False)
    item = add(4.0, positions=Positions("prompt"))
    doses = []
    for made in (fresh, lens, lens):
        run = made.stream(PROMPT, interventions=[item], max_tokens=3)
        list(run)
        doses.append(run.dose[0])
    assert run.reused == len(PROMPT) - 1
    for dose in doses:
        assert dose.tokens == len(PROMPT) - 1
        assert dose.asked == pytest.approx(4.0, rel=1e-5)
        assert dose.relative == pytest.approx(doses[0].relative, rel=1e-5)


def test_captures_see_the_whole_prompt_and_hooks_every_forward() -> None:
    lens = model()
    told(lens, PROMPT)
    with lens.capture(1) as captured:
        told(lens, PROMPT, max_tokens=3)
    assert captured[1].shape[1] == len(PROMPT) + 2
    lengths: list[int] = []
    for _ in range(2):
        with lens.hook(1, lambda ctx, h: lengths.append(h.shape[1])):
            list(lens.stream(PROMPT, max_tokens=2))
    assert lengths.count(len(PROMPT) - 1) == 2


def test_other_weights_and_another_sae_make_what_is_kept_void() -> None:
    class Source:
        d_model, d_sae = 64, 4
        W_dec = mx.ones((4, 64))

        def __init__(self, size: float) -> None:
            self.size = size

    lens, fresh = model(), model(keep=False)
    told(lens, PROMPT)
    for made in (lens, fresh):
        weight = made.model.model.layers[0].mlp.down_proj.weight
        made.model.model.layers[0].mlp.down_proj.weight = weight * 3.0
    assert told(lens, PROMPT) == told(fresh, PROMPT)
    told(lens, PROMPT)
    assert len(lens.prefixes) > 0
    source: Any = Source(1.0)
    lens.attach_sae("s", source)
    assert len(lens.prefixes) == 0
    assert ClampFeature.mode == "clamp_feature"


def test_it_keeps_within_its_bounds_and_closes_empty() -> None:
    lens = model()
    lens.prefixes.max_entries = 3
    lens.prefixes.clear()
    for first in range(1, 8):
        told(lens, (first, *PROMPT), max_tokens=1)
    assert len(lens.prefixes) == 3
    assert lens.prefixes.nbytes > 0
    lens.prefixes.min_tokens = 100
    told(lens, (50, *PROMPT), max_tokens=1)
    assert len(lens.prefixes) == 3
    lens.close()
    assert (len(lens.prefixes), lens.prefixes.nbytes) == (0, 0)


def test_one_rows_float32_stream_is_not_kept_as_the_others() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    lens.prefixes.min_tokens = 2
    plain = told(LensModel.from_model(tiny.llama(dtype=mx.bfloat16)), PROMPT)
    list(lens.compare(PROMPT, [Arm("plain"), Arm("precise", (add(1.0, layer=0, precision="float32"),))], max_tokens=2))
    assert told(lens, PROMPT) == plain


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_computes_what_its_prompts_share_once(name: str) -> None:
    lens, fresh = model(name), model(name, keep=False)
    lens.prefixes.min_tokens = 8
    requests = [
        Request((*PROMPT, 70, 71)),
        Request((*PROMPT, 72), (generated(5.0),)),
        Request((*PROMPT, 73, 74, 75), (add(4.0),)),
        Request((*PROMPT, 76, 77), (add(4.0),)),
    ]
    first = lens.stream_batch(requests, max_tokens=4)
    list(first)
    assert [row.reused for row in first.records] == [len(PROMPT)] * 4
    for row, request in zip(first.records, requests, strict=True):
        wanted = told(fresh, request.prompt, *(request.interventions or ()), max_tokens=4)
        np.testing.assert_allclose(row.logprobs, [p for _, p in wanted], atol=1e-4)
        for dose in row.doses:
            assert dose.asked == pytest.approx(4.0 if row.index > 1 else 5.0, rel=1e-4)
