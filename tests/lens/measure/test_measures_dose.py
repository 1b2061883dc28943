"""Dose-response and scale search: each number against the measure it is made of, each search against a scan."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens import vectors
from lens_tui.lens.measure import effects
from lens_tui.lens.measure.dose import FeatureProbe, curve, dose_response, knee, scaled
from lens_tui.lens.measure.search import find_scale
from lens_tui.records import Ablate, Add, LensError, NormMatch, ProjectOut, SteeringVector
from tests.lens import numpy_models, tiny
from tests.lens.measure.test_measures import TEXTS, Affine
from tests.lens.numpy_models import log_softmax

VECTOR = SteeringVector.of("v", np.random.default_rng(8).normal(size=64), 1)
ADD = Add(id="a", layer=1, vector=VECTOR, scale=1.0)
PROMPT = TEXTS[0][:5]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_a_dose_response_is_made_of_the_measures(make: Any) -> None:
    lens, sae = LensModel.from_model(make()), Affine()
    found = dose_response(
        lens, PROMPT, [ADD], [8, -4, 0, 2], texts=TEXTS, controls=2, probe=FeatureProbe(sae, 3, 2), max_tokens=12
    )
    assert [point.scale for point in found.points] == [-4, 0, 2, 8]
    plain = list(lens.stream(PROMPT, max_tokens=12))
    assert found.baseline_ids == tuple(token.token_id for token in plain)
    assert found.points[1].token_ids == found.baseline_ids
    for point in found.points:
        plan = scaled([ADD], point.scale)
        with lens.steer(1, VECTOR, point.scale):
            assert point.token_ids == tuple(token.token_id for token in lens.stream(PROMPT, max_tokens=12))
        assert point.delta_loss.delta == pytest.approx(effects.delta_loss(lens, *plan, texts=TEXTS).delta, abs=1e-5)
        for held, ids in ((point.on_baseline, found.baseline_ids), (point.on_own, point.token_ids)):
            alone = effects.divergence(lens, PROMPT, ids, *plan)
            np.testing.assert_allclose(held.forward, alone.forward, atol=1e-5)
            np.testing.assert_allclose(held.reverse, alone.reverse, atol=1e-5)
        both = effects.perplexity(lens, PROMPT, point.token_ids, *plan)
        np.testing.assert_allclose([point.ppl_unsteered, point.ppl_steered], both, rtol=1e-5)
        assert point.read_back == effects.read_back(lens, PROMPT, point.token_ids, sae, 3, 2)
        assert len(point.random_delta) == len(point.random_kl) == 2
        turned = effects.delta_loss(lens, *scaled([ADD], -point.scale), texts=TEXTS).delta
        assert point.flipped_delta == pytest.approx(turned, abs=1e-5)
    own, drawn = found.points[3], effects.controls([ADD], 2)[1]
    for at in range(2):
        other = scaled(drawn[at], 8)
        assert own.random_delta[at] == pytest.approx(effects.delta_loss(lens, *other, texts=TEXTS).delta, abs=1e-5)
        kl = effects.divergence(lens, PROMPT, found.baseline_ids, *other).mean_forward
        assert own.random_kl[at] == pytest.approx(kl, abs=1e-5)
    assert found.points[1].delta_loss.delta == 0.0
    assert found.points[1].on_baseline.max_forward == pytest.approx(0.0, abs=1e-6)
    assert found.curve("kl").values == tuple(point.on_baseline.mean_forward for point in found.points)
    assert {each.name for each in found.curves} == {"delta_loss", "kl", "ppl_unsteered", "distinct_2", "read_back"}
    assert lens.registry.installed == ()


def test_measured_dose_of_each_row() -> None:
    model = tiny.llama()
    found = dose_response(LensModel.from_model(model), PROMPT, [ADD], [2, 8], texts=TEXTS, max_tokens=1)
    norms: list[float] = []

    def keep(layer: int, site: str, x: Any) -> Any:
        if (layer, site) == (1, "resid_post"):
            norms.extend(np.linalg.norm(x, axis=-1))
        return x

    numpy_models.llama(model, tuple(PROMPT), keep)
    for point, scale in zip(found.points, (2, 8), strict=True):
        assert point.dose == pytest.approx(np.mean(scale / np.array(norms)), rel=1e-4)


def test_curves_bend_and_turn_back_where_they_do() -> None:
    scales = [0.0, 1.0, 2.0, 4.0, 8.0]
    assert curve("x", scales, scales, 0.0).knee is None
    steep = curve("x", scales, [0, 0.01, 0.02, 0.1, 4.0], 0.0)
    assert (steep.knee, steep.monotone) == (4.0, True)
    assert knee([(0, 0), (1, 0.9), (2, 0.95), (4, 1.0)]) == 1
    back = curve("x", [-2, -1, 1, 2, 3], [0.1, 1.0, 1.0, 0.4, 2.0], 0.0)
    assert back.reversals == ((-1.0, -2.0), (1.0, 2.0))
    assert not back.monotone
    assert curve("x", [1, 2, 3], [1.0, 0.999, 2.0], 0.0).monotone
    rising = curve("x", [-2, -1, 1, 2], [-2, -1, 1, 2], 0.0, "rise")
    assert rising.monotone
    assert not curve("x", [-2, -1, 1, 2], [3, -1, 1, 2], 0.0, "rise").monotone
    assert not curve("x", [1, 2], [0.5, 0.9], 1.0, "fall").monotone
    for sign in (1.0, -1.0):  # what goes on through 0, whichever way
        assert curve("x", [-2, -1, 1, 2], [-2 * sign, -sign, sign, 2 * sign], 0.0, "through").monotone
        back = curve("x", [-2, -1, 1, 2], [-2 * sign, -sign, 2 * sign, sign], 0.0, "through")
        assert back.reversals == ((1.0, 2.0),)
    assert curve("x", [1, 2], [-1.0, -2.0], 0.0, "through").monotone


def test_what_has_no_dial() -> None:
    with pytest.raises(LensError, match="has a scale that could"):
        scaled([Ablate(id="z", layer=1)], 2.0)
    project = ProjectOut(id="p", layer=1, vector=VECTOR)
    assert scaled([project, ADD], 3.0)[0] is project
    lens = LensModel.from_model(tiny.llama())
    for scales in ([], [float("nan")]):
        with pytest.raises(LensError, match=r"finite scales|scale of the dose-response is nan"):
            dose_response(lens, PROMPT, [ADD], scales, texts=TEXTS)


@pytest.mark.parametrize(("make", "reference"), [(tiny.llama, numpy_models.llama), (tiny.gemma3, numpy_models.gemma3)])
def test_scale_search_ends_on_the_loss_that_numpy_computes(make: Any, reference: Any) -> None:
    model = make()
    lens = LensModel.from_model(model)
    pushed = vectors.from_token(lens, 95, 2)  # a token that no text has: the more of it, the worse the loss
    record = Add(id="t", layer=2, vector=pushed, scale=1.0)
    found = find_scale(lens, record, target=0.3, texts=TEXTS)
    assert found.reached

    def loss(scale: float, texts: list[list[int]]) -> float:
        def push(layer: int, site: str, x: Any) -> Any:
            return x + scale * pushed.direction if (layer, site) == (2, "resid_post") else x

        total, count = 0.0, 0
        for ids in texts:
            logprobs = log_softmax(reference(model, tuple(ids), push))
            total -= float(logprobs[np.arange(len(ids) - 1), ids[1:]].sum())
            count += len(ids) - 1
        return total / count

    chosen, rest = TEXTS[::2], TEXTS[1::2]
    assert found.value == pytest.approx(loss(found.scale, chosen) - loss(0, chosen), abs=1e-4)
    assert found.held_out == pytest.approx(loss(found.scale, rest) - loss(0, rest), abs=1e-4)
    low, high = found.bracket
    assert low <= found.scale <= high
    values = dict(zip(found.curve.scales, found.curve.values, strict=True))
    assert values[low] < 0.3 <= values[high]
    assert abs(found.value - 0.3) <= 0.006 or high / low <= 1.02
    assert found.evaluations == len(values) < 60


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (lambda s: s**1.7, 3),
        (lambda s: 0.02 * s**2 - 0.01 * s, 4),
        (lambda s: 0.0 if s < 7.3 else 10.0, 10),
        (lambda s: float("inf") if s > 7.9 else 0.01 * s, 10),
        (lambda s: 0.1 + 1e-3 * s if s < 7.0 else 0.3 + (s - 7.0), 10),
        (lambda s: np.sin(s) + s / 10, 10),
    ],
)
def test_a_bracket_is_closed_in_few_steps_whatever_the_curve(value: Any, most: int) -> None:
    from lens_tui.lens.measure import search

    goal, tried = value(6.9) if np.isfinite(value(6.9)) and value(6.9) > 0 else 5.0, []

    def evaluate(scales: Any) -> list[float]:
        tried.extend(scales)
        return [value(at) for at in scales]

    seen = {at: value(at) for at in (4.0, 8.0)}
    assert seen[4.0] < goal <= seen[8.0]
    low, high = search._narrow(evaluate, goal, (4.0, 8.0), 0.02, seen)
    assert 4.0 <= low < high <= 8.0
    assert seen[low] < goal <= seen[high]
    assert high / low <= 1.02 or min(abs(seen[at] - goal) for at in (low, high)) <= 0.02 * goal
    assert 0 < len(tried) <= most


def test_the_bracket_does_not_depend_on_how_many_scales_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_tui.lens.measure import search

    def evaluate(scales: Any) -> list[float]:
        return [at / (1 + 0.3 * (at > 5)) for at in scales]

    for first, bracket in ((1.0, (8.0, 16.0)), (3.0, (6.0, 12.0)), (80.0, (5.0, 10.0))):
        for count in (1, 2, 3, 4):
            monkeypatch.setattr(search, "_at_once", lambda count=count: count)
            assert search._bracket(evaluate, 7.0, first, 1000.0, {}) == bracket


def test_scale_search_to_kl_and_to_a_share_of_the_norm() -> None:
    lens = LensModel.from_model(tiny.llama())
    found = find_scale(lens, ADD, quantity="kl", target=0.5, texts=TEXTS[:2], hold_out=False)
    assert (found.held_out, found.reached) == (None, True)
    kls = []
    for text in TEXTS[:2]:
        after = [token.token_id for token in lens.stream(text, raw=True, max_tokens=20)]
        kls.append(effects.divergence(lens, text, after, *scaled([ADD], found.scale), raw=True).mean_forward)
    assert found.value == pytest.approx(np.mean(kls), abs=1e-4)
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    share = find_scale(
        lens, NormMatch(id="n", layer=2, vector=VECTOR, scale=2.0), quantity="relative_norm", target=0.2, texts=TEXTS
    )
    assert share.scale == pytest.approx(0.1, rel=0.03)
    assert share.held_out == pytest.approx(0.2, rel=0.03)


def test_searches_that_cannot_reach() -> None:
    lens = LensModel.from_model(tiny.llama())
    far = find_scale(lens, ADD, target=50.0, texts=TEXTS, start=1.0, limit=6.0)
    assert (far.reached, far.scale, far.bracket) == (False, 6.0, (6.0, 6.0))
    near = find_scale(lens, ADD, quantity="relative_norm", target=1e-9, texts=TEXTS, start=10.0)
    assert not near.reached
    assert near.scale < 0.01
    halved = find_scale(lens, ADD, quantity="relative_norm", target=0.05, texts=TEXTS, start=50.0)
    assert halved.reached
    assert halved.value == pytest.approx(0.05, rel=0.03)
    for arguments, message in (
        ({"quantity": "taste"}, "no quantity 'taste'"),
        ({"target": -1.0}, "positive target"),
        ({"texts": []}, "needs texts"),
    ):
        with pytest.raises(LensError, match=message):
            find_scale(lens, ADD, **{"texts": TEXTS, **arguments})  # type: ignore[arg-type]
