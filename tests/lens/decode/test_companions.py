"""The KL of a comparison: steered and plain model on the arm's own tokens, held against forwards written out here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.lens.decode.generation import against_plain
from lens_tui.lens.decode.sampling import kl
from lens_tui.lens.measure import effects
from lens_tui.records import Ablate, Add, Arm, Intervention, Positions, SteeringVector, Token
from tests.lens import numpy_models, tiny
from tests.lens.hooks.test_steered import forced, thoughtful
from tests.lens.numpy_models import Array, log_softmax

IDS = list(tiny.IDS)
LONG = [1, *np.random.default_rng(8).integers(2, 97, 44).tolist()]
VECTOR = SteeringVector.of("v", np.random.default_rng(2).normal(size=64), 1)
MAKERS = {"llama": tiny.llama, "gemma3": tiny.gemma3, "rwkv7": tiny.rwkv7, "lfm2": tiny.lfm2, "moe": tiny.qwen3_moe}


def add(scale: float, **extra: Any) -> Add:
    return Add(id="add", layer=1, vector=VECTOR, scale=scale, **extra)


def divergence(p: Array, q: Array) -> Array:
    out: Array = (np.exp(p) * (p - q)).sum(axis=-1)
    return out


def values(tokens: Sequence[Token], name: str) -> Array:
    return np.array([getattr(token, name) for token in tokens], dtype=np.float64)


def rows(events: Sequence[object], arms: int) -> list[list[Token]]:
    return [[event for event in events if isinstance(event, Token) and event.arm == arm] for arm in range(arms)]


def by_numpy(reference: Any, model: Any, n_prompt: int, tokens: Sequence[Token], prompt: list[int]) -> None:
    """Hold an arm's tokens against float64 forwards of its own text; each position under the scale it was read with."""
    ids = (*prompt, *(token.token_id for token in tokens[:-1]))
    scales = [dict(token.scales).get("add", 0.0) for token in tokens]
    at = np.array([scales[max(0, place - n_prompt + 1)] for place in range(len(ids))])

    def steered(layer: int, site: str, x: Array) -> Array:
        moved: Array = x + at[:, None] * VECTOR.direction if (layer, site) == (1, "resid_post") else x
        return moved

    plain, arm = (log_softmax(reference(model, ids, edit))[n_prompt - 1 :] for edit in (lambda _l, _s, x: x, steered))
    chosen = np.arange(len(tokens)), [token.token_id for token in tokens]
    np.testing.assert_allclose(values(tokens, "kl"), divergence(arm, plain), atol=1e-4)
    np.testing.assert_allclose(values(tokens, "reverse_kl"), divergence(plain, arm), atol=1e-4)
    np.testing.assert_allclose(values(tokens, "plain_logprob"), plain[chosen], atol=1e-4)
    np.testing.assert_allclose(values(tokens, "logprob"), arm[chosen], atol=1e-4)


@pytest.mark.parametrize("prompt", [IDS, LONG, [1]], ids=["short", "long", "one"])
@pytest.mark.parametrize(("make", "reference"), [(tiny.llama, numpy_models.llama), (tiny.gemma3, numpy_models.gemma3)])
def test_kl_is_of_both_models_on_the_arms_own_tokens(make: Any, reference: Any, prompt: list[int]) -> None:
    model = make()
    lens = LensModel.from_model(model)
    arms = [Arm("baseline"), Arm("one", (add(12.0),)), Arm("other", (add(-20.0),))]
    for step in (2048, 7):  # the second time over prefixes that were kept, where the prompt is long enough
        run = lens.compare(prompt, arms, max_tokens=9, temp=1.5, seed=4, prefill_step_size=step)
        tokens = rows(list(run), 3)
        assert len(set(run.token_ids)) > 1
        for row in tokens:
            by_numpy(reference, model, len(prompt), row, prompt)
        assert all(token.kl == 0.0 and token.plain_logprob == token.logprob for token in tokens[0])
        assert max(token.kl or 0.0 for token in tokens[2]) > 0.1
        assert run.batch_rows == 5


@pytest.mark.parametrize("name", MAKERS)
def test_lanes_agree_with_divergence(name: str) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    late = (Ablate(id="z", layer=1, site="mlp_out", positions=Positions("generated")), add(4.0))
    arms = [Arm("baseline"), Arm("add", (add(6.0),)), Arm("two", late), Arm("off", (add(6.0, enabled=False),))]
    run = lens.compare(IDS, arms, max_tokens=8, temp=1.0, seed=3)
    tokens = rows(list(run), 4)
    for row, arm in zip(tokens, arms, strict=True):
        held = effects.divergence(lens, IDS, [token.token_id for token in row], *arm.interventions)
        np.testing.assert_allclose(values(row, "kl"), held.reverse, atol=1e-3)
        np.testing.assert_allclose(values(row, "reverse_kl"), held.forward, atol=1e-3)
    assert run.batch_rows == 6  # what does nothing needs no companion
    assert {token.kl for token in tokens[3]} == {0.0}


@pytest.mark.parametrize("dtype", [(mx.bfloat16, 0), (mx.bfloat16, 4), (mx.bfloat16, 8)], ids=["bf16", "4", "8"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_in_low_precision_it_differs_by_the_rounding_of_the_dtype(make: Any, dtype: tuple[Any, int]) -> None:
    """Rounding that moves each log-probability by at most e moves the KL by at most 2e + (exp(e) - 1) E|log p - log q|.

    e is measured: the same tokens over a cache, one by one, against all at once. A batch rounds differently from one
    row by as much again; 1e-5 is for the float32 sums over the vocabulary.
    """
    lens = LensModel.from_model(make(dtype=dtype[0], bits=dtype[1]))
    run = lens.compare(IDS, [Arm("baseline"), Arm("add", (add(6.0),))], max_tokens=8, temp=1.0, seed=3)
    row = rows(list(run), 2)[1]
    ids = [*IDS, *run.token_ids[1][:-1]]
    whole, rounding = [], 0.0
    for items in ((), (add(6.0),)):
        with lens.intervene(*items):
            whole.append(last(lens.forward(ids), 8))
            cache = make_prompt_cache(lens.model)
            parts = [lens.forward(part, cache)[:, -1:] for part in (ids[:8], *([token] for token in ids[8:]))]
            rounding = max(rounding, float(np.abs(last(mx.concatenate(parts, axis=1), 8) - whole[-1]).max()))
    expected, size = divergence(whole[1], whole[0]), (np.exp(whole[1]) * np.abs(whole[1] - whole[0])).sum(axis=-1)
    e = 2 * rounding + 1e-5
    bound = 2 * e + (np.exp(e) - 1) * size
    assert (np.abs(values(row, "kl") - expected) <= bound).all()
    assert expected.max() > 0.05


def last(logits: mx.array, count: int) -> Array:
    return log_softmax(np.array(logits.astype(mx.float32), dtype=np.float64)[0, -count:])


def test_a_dialled_arm_is_compared_under_what_held_at_each_token() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    arms = [Arm("baseline"), Arm("a", (add(2.0),)), Arm("zero", (add(0.0),))]
    run = lens.compare(IDS, arms, max_tokens=12, temp=1.0, seed=3)
    events: list[object] = []
    dials: dict[int, list[tuple[int, list[Intervention]]]] = {
        2: [(1, [add(8.0)]), (0, [add(5.0)])],  # the baseline too: from then on it is no plain row
        5: [(1, []), (2, [add(-6.0)])],
        8: [(0, [add(0.0)]), (2, [])],
    }
    for event in run:
        events.append(event)
        if isinstance(event, Token) and event.arm == 2:
            for arm, items in dials.get(event.index, ()):
                run.dial(arm, items)
    tokens = rows(events, 3)
    for row in tokens:
        by_numpy(numpy_models.llama, model, len(IDS), row, IDS)
    assert [token.kl == 0.0 for token in tokens[2]] == [True] * 7 + [False] * 5
    assert all(token.kl for token in tokens[1][7:])  # what was steered stays in the cache
    assert run.batch_rows == 6


def test_an_arm_with_no_plain_row_to_go_from_has_no_kl() -> None:
    lens = LensModel.from_model(tiny.llama())

    def turn(done: int, total: int) -> None:
        if done == 5:
            run.dial(0, [add(3.0)])  # in the midst of the prompt: no row is plain any more

    run = lens.compare(IDS, [Arm("baseline"), Arm("a", (add(2.0),))], max_tokens=3, prefill_step_size=5, progress=turn)
    assert [token.kl for row in rows(list(run), 2) for token in row] == [None] * 6


def test_without_kl_there_are_no_companions_and_the_same_text() -> None:
    lens = LensModel.from_model(tiny.llama())
    arms = [Arm("baseline"), Arm("a", (add(4.0),))]
    seen: list[int] = []

    def sampler(logprobs: mx.array) -> mx.array:
        seen.append(logprobs.shape[0])
        return mx.argmax(logprobs, axis=-1)

    run = lens.compare(IDS, arms, max_tokens=6, kl=False)
    without = rows(list(run), 2)
    assert run.batch_rows == 2
    fields = {(token.kl, token.reverse_kl, token.plain_logprob) for row in without for token in row}
    assert fields == {(None, None, None)}
    options: dict[str, Any] = {"repetition_penalty": 1.3}
    plain, beside = (lens.compare(IDS, arms, max_tokens=6, kl=kl, sampler=sampler, **options) for kl in (False, True))
    list(plain), list(beside)
    assert plain.token_ids == beside.token_ids
    assert set(seen) == {2}  # companions are fed, never sampled


def test_captures_and_doses_are_of_the_arms_alone() -> None:
    lens = LensModel.from_model(tiny.llama())
    found = []
    for with_kl in (False, True):
        with lens.capture([1, 2]) as captured:
            run = lens.compare(IDS, [Arm("baseline"), Arm("a", (add(4.0),))], max_tokens=5, kl=with_kl)
            list(run)
        found.append(([np.array(captured[layer]) for layer in (1, 2)], run.doses(1), run.steered(1)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one.shape == other.shape == (2, len(IDS) + 4, 64)
        np.testing.assert_allclose(one, other, atol=1e-4)
    (alone,), (beside,) = found[0][1], found[1][1]
    assert alone.tokens == beside.tokens
    assert alone.asked == pytest.approx(beside.asked)
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("options", [{"max_kv_size": 8}, {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 4}])
def test_companions_have_the_kind_of_cache_that_the_arms_have(options: dict[str, Any]) -> None:
    lens = LensModel.from_model(tiny.llama(heads=2))
    arms = [Arm("baseline"), Arm("weightless", (add(1e-6),))]
    tokens = rows(list(lens.compare(IDS, arms, max_tokens=12, **options)), 2)
    assert max(token.kl or 0.0 for token in tokens[1]) < 1e-5


def test_kl_where_a_token_cannot_be_chosen_and_of_no_distribution() -> None:
    table = mx.log(mx.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]))
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(np.array(kl(table, table[:1]))[:2], [0.0, expected], atol=1e-6)
    assert float(kl(table[2], table[0])) == np.inf
    nothing = mx.full((1, 3), float("nan"))
    assert np.isnan(np.array(against_plain(nothing, nothing, mx.array([0])))).all()
    far = mx.array([[-200.0, 0.0], [-float("inf"), 0.0]])
    assert float(kl(far[0], far[1])) == 0.0  # what is less likely than float32 can say adds nothing
    assert np.isnan(float(kl(nothing[0], table[0])))
    assert np.isnan(float(kl(table[0], nothing[0])))


def test_companions_of_arms_that_are_steered_while_they_think() -> None:
    lens = thoughtful()
    start, end = (lens.tokens.encode(word)[-1] for word in "qw")
    script = [40, start, 41, 42, 45, end, 43, 44]
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 0)

    def push(positions: Positions) -> Add:
        return Add(id="push", layer=0, vector=vector, scale=9.0, positions=positions)

    thinking = push(Positions("role", role="thinking"))
    run = lens.compare("Hi", [Arm("a"), Arm("b", (thinking,)), Arm("c")], max_tokens=8, sampler=forced(*script))
    events: list[object] = []
    for event in run:
        events.append(event)
        if isinstance(event, Token) and (event.arm, event.index) == (2, 2):
            run.dial(2, [thinking])  # in the midst of a thought; one step is always under way
    tokens = rows(events, 3)
    n_prompt = len(run.prompt_ids)
    for row, first in ((tokens[1], 2), (tokens[2], 3)):
        pushed = push(Positions("slice", start=n_prompt + first, stop=n_prompt + 5))
        held = effects.divergence(lens, run.prompt_ids, script, pushed)
        np.testing.assert_allclose(values(row, "kl"), held.reverse, atol=1e-4)
        # Rows of a batch may round differently by their place in it.
        assert (values(row, "kl") > 1e-4).tolist() == [False] * (first + 1) + [True] * (7 - first)
    assert {token.kl for token in tokens[0]} == {0.0}
