"""Arms in lock step: each row is what its arm gives alone, with the right KL beside it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import (
    Ablate,
    Arm,
    ArmEnd,
    LensError,
    NormMatch,
    Positions,
    ProjectOut,
    Sampling,
    SteeringVector,
    Token,
)
from tests.lens import tiny
from tests.lens.tiny import add

IDS = list(tiny.IDS)
MAKERS = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "gemma4": tiny.gemma4,
    "rwkv7": tiny.rwkv7,
    "lfm2": tiny.lfm2,
    "qwen3_moe": tiny.qwen3_moe,
}


def vector(seed: int = 2, layer: int = 1) -> SteeringVector:
    return SteeringVector.of(f"v{seed}", np.random.default_rng(seed).normal(size=64), layer)


ARMS = (
    Arm("baseline"),
    Arm("add", (add(6.0),)),
    Arm("two", (add(4.0, 3, 2), add(3.0, 4, 0))),
    Arm("late", (add(9.0, positions=Positions("generated")),)),
    Arm("order", (add(3.0), ProjectOut(id="p", layer=1, vector=vector(3)), add(2.0, 3))),
    Arm("norm", (NormMatch(id="n", layer=2, vector=vector(5, 2), scale=0.5),)),
    Arm("ablate", (Ablate(id="z", layer=1, site="mlp_out", positions=Positions("not_bos")),)),
)


def split(events: list[Token | ArmEnd], arms: int) -> tuple[list[list[Token]], list[ArmEnd]]:
    tokens = [[event for event in events if isinstance(event, Token) and event.arm == arm] for arm in range(arms)]
    return tokens, [event for event in events if isinstance(event, ArmEnd)]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("step", [3, 2048])
def test_greedy_rows_equal_what_each_arm_gives_alone(name: str, step: int) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    comparison = lens.compare(IDS, ARMS, max_tokens=6, prefill_step_size=step)
    tokens, ends = split(list(comparison), len(ARMS))
    assert comparison.arms == tuple(arm.name for arm in ARMS)
    for index, arm in enumerate(ARMS):
        alone = list(lens.stream(IDS, max_tokens=6, interventions=arm.interventions))
        assert [token.token_id for token in tokens[index]] == [token.token_id for token in alone]
        np.testing.assert_allclose(
            [token.logprob for token in tokens[index]], [token.logprob for token in alone], atol=2e-4
        )
        assert [token.index for token in tokens[index]] == list(range(6))
    assert sorted(end.arm for end in ends) == list(range(len(ARMS)))
    assert len({comparison.token_ids[arm] for arm in range(len(ARMS))}) > 3
    assert lens.registry.installed == ()


def test_sampled_rows_draw_from_the_same_random_numbers() -> None:
    lens = LensModel.from_model(tiny.llama())
    sampling = Sampling(max_tokens=10, temp=1.3, seed=11)
    same = lens.compare(IDS, [Arm("a"), Arm("b"), Arm("c", (add(6.0),))], sampling)
    list(same)
    assert same.token_ids[0] == same.token_ids[1] != same.token_ids[2]
    alone = lens.stream(IDS, sampling=sampling)
    assert tuple(token.token_id for token in alone) == same.token_ids[0]


def test_arms_stop_at_different_times_and_each_has_its_kl_to_its_end() -> None:
    model = tiny.llama(layers=2, vocab=8192)
    lens = LensModel.from_model(model, tiny.tokenizer())
    eos = next(iter(lens.tokens.stops))
    counts = {0: 3, 1: 6, 2: 2}  # tokens after which each row is made to end
    calls = {"n": 0}

    def sampler(logprobs: mx.array) -> mx.array:
        calls["n"] += 1
        plain = [5 + row for row in range(3)]
        return mx.array([eos if calls["n"] == counts[row] else plain[row] for row in range(3)])

    arms = [Arm("baseline"), Arm("long", (add(1.0),)), Arm("short", (add(2.0),))]
    events = list(lens.compare("Once upon a time", arms, max_tokens=20, sampler=sampler))
    tokens, ends = split(events, 3)
    assert [len(row) for row in tokens] == [3, 6, 2]
    assert [(end.arm, end.reason, end.n_tokens) for end in ends] == [(2, "stop", 2), (0, "stop", 3), (1, "stop", 6)]
    assert all(token.kl is not None and token.kl > 0 for row in tokens[1:] for token in row)
    assert ends[0].text == lens.tokens.decode([7])
    # The run does not go on for rows that have ended.
    assert calls["n"] <= 7


def test_a_baseline_is_put_in_front_where_there_is_none() -> None:
    lens = LensModel.from_model(tiny.llama())
    comparison = lens.compare(IDS, [Arm("only", (add(5.0),))], max_tokens=3)
    tokens, _ = split(list(comparison), 2)
    assert (comparison.arms, comparison.baseline) == (("baseline", "only"), 0)
    assert [token.token_id for token in tokens[0]] == [token.token_id for token in lens.stream(IDS, max_tokens=3)]
    off = lens.compare(IDS, [Arm("on", (add(5.0),)), Arm("off", (add(5.0, enabled=False),))], max_tokens=1)
    assert (off.arms, off.baseline) == (("on", "off"), 1)


def test_the_baseline_row_keeps_every_bit_beside_steered_rows() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    pairs = []
    for arms in ([Arm("baseline"), Arm("x")], [Arm("baseline"), Arm("x", ARMS[4].interventions)]):
        with lens.capture(range(4)) as captured:
            list(lens.compare(IDS, arms, max_tokens=4))
        pairs.append([np.array(captured[layer][0].astype(mx.float32)) for layer in range(4)])
    for plain, beside in zip(*pairs, strict=True):
        np.testing.assert_array_equal(plain, beside)


def test_the_dial_turns_one_arm_and_leaves_the_others() -> None:
    lens = LensModel.from_model(tiny.llama())
    arms = [Arm("baseline"), Arm("a", (add(1.0),)), Arm("b", (add(2.0),))]
    comparison = lens.compare(IDS, arms, max_tokens=8)
    events: list[Token | ArmEnd] = [next(comparison) for _ in range(3)]
    comparison.dial(1, [add(7.0), Ablate(id="z", layer=3, site="attn_out")])
    events += list(comparison)
    tokens, ends = split(events, 3)
    assert [token.scales for token in tokens[1]] == [(("add2", 1.0),)] * 2 + [(("add2", 7.0),)] * 6
    assert [token.scales for token in tokens[2]] == [(("add2", 2.0),)] * 8
    alone = [token.token_id for token in lens.stream(IDS, max_tokens=8, interventions=arms[2].interventions)]
    assert [token.token_id for token in tokens[2]] == alone
    # From the dial on, arm 1 is what a stream that is turned at the same token gives.
    stream = lens.stream(IDS, max_tokens=8, interventions=arms[1].interventions)
    ids = [next(stream).token_id]
    stream.dial(add(7.0), Ablate(id="z", layer=3, site="attn_out"))
    assert [token.token_id for token in tokens[1]] == ids + [token.token_id for token in stream]
    assert ends[1].doses[0].asked == pytest.approx(7.0, rel=1e-4)
    with pytest.raises(LensError, match="no arm 3"):
        comparison.dial(3, [])


def test_each_arm_has_its_own_dose() -> None:
    lens = LensModel.from_model(tiny.llama())
    arms = [Arm("baseline"), Arm("a", (add(4.0),)), Arm("b", (add(1.0), add(2.0, 3, 2)))]
    with lens.capture([1, 2]) as captured:
        list(lens.compare(IDS, [Arm("baseline")], max_tokens=1))
    h = np.array(captured[1])[0]
    _, ends = split(list(lens.compare(IDS, arms, max_tokens=1)), 3)
    assert ends[0].dose is None
    assert ends[1].dose == pytest.approx((4.0 / np.linalg.norm(h, axis=-1)).mean(), rel=1e-3)
    assert [(dose.layer, round(dose.asked, 3)) for dose in ends[2].doses] == [(1, 1.0), (2, 2.0)]


def test_what_cannot_be_compared_is_refused() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.steer(1, np.ones(64), 1.0), pytest.raises(LensError, match="inside a steer block"):
        lens.compare(IDS, ARMS)
    with pytest.raises(LensError, match="no layer 12"):
        lens.compare(IDS, [Arm("a", (add(1.0, layer=12),))])
    rough = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    weak = rough.compare(IDS, [Arm("baseline"), Arm("weak", (add(1e-9),))], max_tokens=2)
    with pytest.raises(LensError, match=r"arm 'weak' moves nothing"):
        list(weak)
    assert rough.registry.installed == ()


@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, 0), (mx.bfloat16, 4), (mx.bfloat16, 8)])
def test_low_precision_rows_follow_their_solo_runs_closely(dtype: mx.Dtype, bits: int) -> None:
    lens = LensModel.from_model(tiny.llama(dtype=dtype, bits=bits))
    tokens, _ = split(list(lens.compare(IDS, ARMS[:2], max_tokens=1)), 2)
    for row, arm in zip(tokens, ARMS[:2], strict=True):
        alone = next(lens.stream(IDS, max_tokens=1, interventions=arm.interventions))
        assert row[0].logprob == pytest.approx(alone.logprob, abs=0.05)
