"""Measures against their definitions written out in numpy, on forwards written out in numpy where float32 allows."""

from __future__ import annotations

import zlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.measure import effects
from lens_tui.lens.measure.effects import FEW_TEXTS, LOSS_TEXTS
from lens_tui.records import (
    Ablate,
    Add,
    ClampFeature,
    Intervention,
    LensError,
    NormMatch,
    Positions,
    ProjectOut,
    SteeringVector,
)
from lens_tui.records.measures import distinct
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, log_softmax

random = np.random.default_rng(3)
TEXTS = [[1, *random.integers(10, 90, count).tolist()] for count in (9, 4, 12, 6)]
VECTOR = SteeringVector.of("v", random.normal(size=64), 1)
ADD = Add(id="a", layer=1, vector=VECTOR, scale=6.0)
MATCH = NormMatch(id="n", layer=2, vector=VECTOR, scale=-0.5)
MAKERS = [(tiny.llama, numpy_models.llama), (tiny.gemma3, numpy_models.gemma3)]


def as_array(logits: mx.array) -> Array:
    values: Array = np.array(logits.astype(mx.float32), dtype=np.float64)[0]
    return values


def steered(layer: int, site: str, x: Array) -> Array:
    if site != "resid_post":
        return x
    d = VECTOR.direction.astype(np.float64)
    if layer == 1:
        return x + 6.0 * d
    return x - 0.5 * np.linalg.norm(x, axis=-1, keepdims=True) * d if layer == 2 else x


def numpy_scores(reference: Any, model: Any, ids: list[int], start: int = 1) -> tuple[Array, Array, Array, Array]:
    plain = log_softmax(reference(model, tuple(ids)))[start - 1 : -1]
    other = log_softmax(reference(model, tuple(ids), steered))[start - 1 : -1]
    at = np.arange(len(plain)), ids[start:]
    forward, reverse = (np.exp(plain) * (plain - other)).sum(-1), (np.exp(other) * (other - plain)).sum(-1)
    return -plain[at], -other[at], forward, reverse


@pytest.mark.parametrize(("make", "reference"), MAKERS)
def test_delta_loss_and_its_interval(make: Any, reference: Any) -> None:
    model = make()
    lens = LensModel.from_model(model)
    found = effects.delta_loss(lens, ADD, MATCH, texts=TEXTS, seed=5)
    each = [numpy_scores(reference, model, ids) for ids in TEXTS]
    base, after = np.concatenate([e[0] for e in each]), np.concatenate([e[1] for e in each])
    assert found.base == pytest.approx(base.mean(), rel=1e-5)
    assert found.steered == pytest.approx(after.mean(), rel=1e-5)
    assert found.delta == pytest.approx(after.mean() - base.mean(), abs=1e-5)
    assert (found.n_texts, found.n_tokens) == (4, sum(len(ids) - 1 for ids in TEXTS))
    np.testing.assert_allclose(found.per_text, [(e[1] - e[0]).mean() for e in each], atol=1e-5)
    draws = []
    generator = np.random.default_rng(5)
    for picked in generator.integers(0, 4, (2000, 4)):
        differences = np.concatenate([each[at][1] - each[at][0] for at in picked])
        draws.append(differences.mean())
    np.testing.assert_allclose([found.low, found.high], np.quantile(draws, [0.025, 0.975]), atol=1e-5)
    assert found.low <= found.delta <= found.high


@pytest.mark.parametrize(("make", "reference"), MAKERS)
def test_kl_both_ways_and_perplexity_of_the_continuation_alone(make: Any, reference: Any) -> None:
    model = make()
    lens = LensModel.from_model(model)
    prompt, after = TEXTS[0][:4], TEXTS[2]
    base, nll, forward, reverse = numpy_scores(reference, model, prompt + after, start=4)
    found = effects.divergence(lens, prompt, after, ADD, MATCH)
    np.testing.assert_allclose(found.forward, forward, atol=1e-5)
    np.testing.assert_allclose(found.reverse, reverse, atol=1e-5)
    assert found.mean_forward == pytest.approx(forward[:20].mean(), abs=1e-5)
    assert (found.max_forward, found.max_reverse) == (max(found.forward), max(found.reverse))
    unsteered, own = effects.perplexity(lens, prompt, after, ADD, MATCH)
    assert unsteered == pytest.approx(np.exp(base.mean()), rel=1e-5)
    assert own == pytest.approx(np.exp(nll.mean()), rel=1e-5)


@pytest.mark.parametrize("bits", [0, 4])
def test_low_precision_equals_one_text_at_a_time(bits: int) -> None:
    lens = LensModel.from_model(tiny.llama(bits=bits, dtype=mx.bfloat16))
    found = effects.delta_loss(lens, ADD, texts=TEXTS)
    losses = []
    for scale in (0.0, 6.0):
        with lens.steer(1, VECTOR, scale):
            losses.append([lens.loss(ids) for ids in TEXTS])
    expected = np.array(losses[1]) - np.array(losses[0])
    np.testing.assert_allclose(found.per_text, expected, atol=0.02)
    assert np.abs(expected).max() > 0.1
    prompt, after = TEXTS[0][:4], TEXTS[2]
    plain = log_softmax(as_array(lens.forward(prompt + after)))[3:-1]
    with lens.intervene(ADD):
        other = log_softmax(as_array(lens.forward(prompt + after)))[3:-1]
    kl = effects.divergence(lens, prompt, after, ADD)
    np.testing.assert_allclose(kl.forward, (np.exp(plain) * (plain - other)).sum(-1), rtol=0.05, atol=0.01)
    np.testing.assert_allclose(kl.reverse, (np.exp(other) * (other - plain)).sum(-1), rtol=0.05, atol=0.01)
    assert kl.max_forward > 0.1


def test_many_steerings_share_batches_and_blocks_around_the_call_do_not_count() -> None:
    lens = LensModel.from_model(tiny.llama())
    plans = [(Add(id="a", layer=1, vector=VECTOR, scale=float(scale)),) for scale in range(1, 41)]
    together = effects.delta_losses(lens, plans, texts=TEXTS)
    with lens.steer(0, np.ones(64), 9.0):
        alone = [effects.delta_loss(lens, *plan, texts=TEXTS) for plan in (plans[0], plans[39])]
        lens.forward(TEXTS[0])
    assert together[0].delta == pytest.approx(alone[0].delta, abs=1e-5)
    assert together[39].delta == pytest.approx(alone[1].delta, abs=1e-5)
    assert lens.registry.installed == ()


def test_positions_hold_in_batches_of_different_prompts() -> None:
    lens = LensModel.from_model(tiny.llama())
    generated = Add(id="a", layer=1, vector=VECTOR, scale=6.0, positions=Positions("generated"))
    for prompt, after in ((TEXTS[0][:4], TEXTS[2]), (TEXTS[1], TEXTS[3])):
        from_end = Add(id="a", layer=1, vector=VECTOR, scale=6.0, positions=Positions("slice", start=len(prompt) - 1))
        np.testing.assert_allclose(
            effects.divergence(lens, prompt, after, generated).forward,
            effects.divergence(lens, prompt, after, from_end).forward,
            atol=1e-6,
        )
    with pytest.raises(LensError, match="touches no token"):
        effects.delta_loss(
            lens, Add(id="a", layer=1, vector=VECTOR, scale=6.0, positions=Positions("prompt")), texts=TEXTS
        )


class Affine:
    """An SAE that is one matrix and a threshold."""

    d_model = 64

    def __init__(self) -> None:
        self.w = np.random.default_rng(1).normal(size=(64, 12)).astype(np.float32)

    def encode(self, residual: mx.array) -> mx.array:
        return mx.maximum(residual.astype(mx.float32) @ mx.array(self.w) - 1.0, 0)

    def decode(self, activations: mx.array) -> mx.array:
        return activations @ mx.array(self.w).T


def test_read_back_is_with_steering_off() -> None:
    model = tiny.llama()
    lens, sae = LensModel.from_model(model), Affine()
    seen: dict[int, Array] = {}

    def keep(layer: int, site: str, x: Array) -> Array:
        if site == "resid_post":
            seen[layer] = x
        return x

    prompt, after = TEXTS[0][:4], TEXTS[2]
    numpy_models.llama(model, tuple(prompt + after), keep)
    expected = np.maximum(seen[2][4:] @ sae.w[:, 5] - 1.0, 0)
    with lens.steer(1, VECTOR, 20.0):
        found = effects.read_back(lens, prompt, after, sae, 5, 2)
        lens.forward(prompt)
    np.testing.assert_allclose(found.per_token, expected, atol=1e-4)
    np.testing.assert_allclose([found.mean, found.max], [expected.mean(), expected.max()], atol=1e-4)
    with pytest.raises(LensError, match="no feature 12"):
        effects.read_back(lens, prompt, after, sae, 12, 2)


def test_controls_keep_length_and_place() -> None:
    flipped, drawn = effects.controls([ADD, MATCH], k=3, seed=1)
    assert flipped is not None
    assert [getattr(record, "scale", None) for record in flipped] == [-6.0, 0.5]
    assert len(drawn) == 3
    directions = [record.vector.direction for plan in drawn for record in plan if isinstance(record, Add | NormMatch)]
    assert len(directions) == 6
    for direction in directions:
        assert np.linalg.norm(direction) == pytest.approx(1.0, abs=1e-6)
        assert abs(float(direction @ VECTOR.direction)) < 0.6
    assert [(record.layer, record.id) for record in drawn[0]] == [(1, "a"), (2, "n")]
    again = effects.controls([ADD, MATCH], k=3, seed=1)[1]
    assert all(
        a.vector.direction.tobytes() == b.vector.direction.tobytes()  # type: ignore[attr-defined]
        for left, right in zip(drawn, again, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert effects.controls([ProjectOut(id="p", layer=1, vector=VECTOR)], k=1)[0] is None
    assert effects.controls([ClampFeature(id="c", layer=1, sae="s", feature=1, value=2.0)], k=0) == (None, [])
    with pytest.raises(LensError, match="no direction"):
        effects.controls([Ablate(id="z", layer=1)], k=1)


def test_controlled_measures_the_same_thing_under_each() -> None:
    lens = LensModel.from_model(tiny.llama())

    def measure(plan: tuple[Intervention, ...]) -> float:
        return effects.delta_loss(lens, *plan, texts=TEXTS).delta

    found = effects.controlled(measure, [ADD], k=2, seed=0)
    flipped, drawn = effects.controls([ADD], 2, 0)
    assert flipped is not None
    assert (found.effect, found.flipped) == (measure((ADD,)), measure(flipped))
    assert found.random == tuple(measure(plan) for plan in drawn)
    assert found.excess == pytest.approx(found.effect - np.mean(found.random))


def by_brute_force(ids: list[int]) -> tuple[int, int]:
    n = len(ids)
    longest = max(
        (
            size
            for size in range(1, n)
            for a in range(n)
            for b in range(a + 1, n - size + 1)
            if ids[a : a + size] == ids[b : b + size]
        ),
        default=0,
    )
    run = 0
    for start in range(n):
        for period in range(1, n):
            for end in range(start + 2 * period, n + 1):
                if all(ids[at] == ids[at - period] for at in range(start + period, end)):
                    run = max(run, end - start)
    return longest, run


def test_repetition_by_brute_force() -> None:
    cases = [[], [1], [1, 2, 3], [1, 1], [1, 2, 1, 2, 1], [5, 1, 2, 3, 1, 2, 3, 1, 9, 1, 2]]
    cases += [np.random.default_rng(n).integers(0, 3, 14).tolist() for n in range(12)]
    for ids in cases:
        assert (effects.longest_repeat(ids), effects.repeat_run(ids)) == by_brute_force(ids), ids
    found = effects.degeneration([1, 2, 1, 2, 1, 7], "ab ab ab")
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (3 / 6, 3 / 5, 3 / 4)
    assert distinct([1], 2) is None
    text = "la la " * 50
    assert effects.ratio(text) == len(text) / len(zlib.compress(text.encode(), 9))
    assert (effects.ratio(""), effects.ratio(text) > 10) == (1.0, True)


def test_texts_that_cannot_be_scored() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="none can be scored"):
        effects.delta_loss(lens, ADD, texts=[[1]])
    with pytest.raises(LensError, match="at least one text"):
        effects.delta_loss(lens, ADD, texts=[])
    with pytest.raises(LensError, match="has no tokens"):
        effects.divergence(lens, [1, 2], [], ADD)
    with pytest.raises(LensError, match="The continuation is a text"):
        effects.divergence(lens, [1, 2], " and so on", ADD)  # type: ignore[arg-type]
    with pytest.raises(LensError, match="no token 97"):
        effects.divergence(lens, [1, 2], [97], ADD)


def test_the_texts_of_the_library_are_64_and_differ() -> None:
    assert len(set(LOSS_TEXTS)) == len(LOSS_TEXTS) == 64
    assert all(20 < len(text) < 200 for text in LOSS_TEXTS)
    assert LOSS_TEXTS[:16] == FEW_TEXTS
    lens = LensModel.from_model(tiny.llama(vocab=8192, layers=2), tiny.tokenizer())
    found = effects.delta_loss(lens, Add(id="a", layer=1, vector=VECTOR, scale=6.0))
    assert found.n_texts == 64
    assert found.n_tokens > 1000
