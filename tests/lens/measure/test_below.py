"""What lies below the first steered site is computed once, and what is measured is what whole forwards give."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.forward import forward_rows, pack
from lens_tui.lens.hooks.registry import Resume
from lens_tui.lens.measure import effects, scores
from lens_tui.lens.measure.scores import Below, can_resume, first_site, reaches_behind
from lens_tui.records import Ablate, Add, Intervention, NormMatch, NotFinite, Positions, ProjectOut, SteeringVector
from tests.lens import tiny
from tests.lens.measure.test_measures import TEXTS

MAKERS = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "gemma4": tiny.gemma4,
    "rwkv7": tiny.rwkv7,
    "lfm2": tiny.lfm2,
    "qwen3_moe": tiny.qwen3_moe,
}
VECTOR = SteeringVector.of("v", np.random.default_rng(4).normal(size=64), 1)
LATE = Positions("slice", start=2)
PLANS: tuple[tuple[Intervention, ...], ...] = (
    (Add(id="a", layer=1, vector=VECTOR, scale=4.0),),
    (Add(id="a", layer=1, vector=VECTOR, scale=-2.0), NormMatch(id="n", layer=-1, vector=VECTOR, scale=0.3)),
    (Ablate(id="z", layer=2, site="mlp_out", positions=LATE), ProjectOut(id="p", layer=1, vector=VECTOR)),
    (),
)


def add(layer: int, site: str = "resid_post", scale: float = 1.0) -> Add:
    return Add(id="a", layer=layer, site=site, vector=VECTOR, scale=scale)


def wholly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "can_resume", lambda registry: False)


@pytest.mark.parametrize("name", MAKERS)
def test_measures_are_those_of_whole_forwards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    assert can_resume(lens.registry)
    items = effects.items_of(lens, TEXTS, PLANS)
    found = scores.score(lens, items)
    known = scores.unsteered(lens, items)
    assert known.below is not None
    assert known.below.key == (1, "resid_post")
    losses = scores.score(lens, items, known)
    wholly(monkeypatch)
    assert scores.unsteered(lens, items).below is None
    for here, again, whole in zip(found, losses, scores.score(lens, items), strict=True):
        for one, loss, other in zip(here, again, whole, strict=True):
            for part in ("base", "nll", "forward", "reverse"):
                np.testing.assert_allclose(getattr(one, part), getattr(other, part), atol=2e-5)
            np.testing.assert_allclose(loss.nll, other.nll, atol=2e-5)
            np.testing.assert_allclose(loss.base, other.base, atol=2e-5)
    assert np.abs(found[0][0].nll - found[0][0].base).max() > 0.01
    assert lens.registry.installed == ()


@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, 0), (mx.bfloat16, 4), (mx.float16, 8)])
def test_low_precision_follows_whole_forwards_closely(
    dtype: mx.Dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = LensModel.from_model(tiny.llama(dtype=dtype, bits=bits))
    found = effects.delta_losses(lens, PLANS, texts=TEXTS)
    wholly(monkeypatch)
    whole = effects.delta_losses(lens, PLANS, texts=TEXTS)
    for here, other in zip(found, whole, strict=True):
        np.testing.assert_allclose(here.per_text, other.per_text, atol=0.02)
    assert np.abs(whole[0].per_text).max() > 0.05


def test_layers_below_are_not_computed_again() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    items = effects.items_of(lens, TEXTS, PLANS[:1])
    known = scores.unsteered(lens, items)
    expected = scores.score(lens, items, known)
    # With these weights gone, whatever still used them would have no number.
    nothing = mx.full(model.model.layers[0].mlp.down_proj.weight.shape, float("nan"))
    model.model.layers[0].mlp.down_proj.weight = nothing
    for here, before in zip(scores.score(lens, items, known), expected, strict=True):
        np.testing.assert_array_equal(here[0].nll, before[0].nll)
    with pytest.raises(NotFinite, match="not finite from layer 0 on"):
        scores.score(lens, items)


def test_plans_that_reach_behind_what_is_known_get_whole_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    known = scores.unsteered(lens, effects.items_of(lens, TEXTS, [(add(2),)]))
    deeper = effects.items_of(lens, TEXTS, [(add(1, scale=5.0),), (add(2, "attn_out", 5.0),)])
    found = scores.score(lens, deeper, known)
    wholly(monkeypatch)
    for here, whole in zip(found, scores.score(lens, deeper), strict=True):
        for one, other in zip(here, whole, strict=True):
            np.testing.assert_allclose(one.nll, other.nll, atol=2e-5)
            assert np.abs(one.nll - one.base).max() > 0.01


def test_where_forwards_resume() -> None:
    registry = LensModel.from_model(tiny.llama()).registry

    def site(*plan: Intervention) -> object:
        return first_site(registry, [(), plan])

    assert site(add(2)) == (2, "resid_post")
    assert site(add(-1)) == (3, "resid_post")
    assert site(add(0)) == (0, "resid_post")
    assert site(add(2, "mlp_out")) == site(add(2), add(2, "attn_out")) == site(add(2, "resid_pre")) == (2, "resid_pre")
    assert site(add(3), add(1, scale=0.0)) == (3, "resid_post")
    assert site() is site(add(1, scale=0.0)) is site(add(0, "mlp_out")) is site(add(0, "resid_pre")) is None
    for key, record, behind in (
        ((2, "resid_post"), add(2), False),
        ((2, "resid_post"), add(2, "mlp_out"), True),
        ((2, "resid_post"), add(2, "resid_pre"), True),
        ((2, "resid_pre"), add(2, "resid_pre"), False),
        ((2, "resid_pre"), add(2, "mlp_out"), False),
        ((2, "resid_pre"), add(1), True),
        ((2, "resid_pre"), add(-4), True),
        ((2, "resid_pre"), add(1, scale=0.0), False),
    ):
        assert reaches_behind(registry, [(), (record,)], key) is behind


def test_a_model_that_gives_something_else_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    wrong = scores.spread_over

    def other(*arguments: Any) -> Any:
        found = wrong(*arguments)
        return Resume(found.key, found.hidden * 2.0)

    monkeypatch.setattr(scores, "spread_over", other)
    assert not can_resume(lens.registry)
    assert first_site(lens.registry, [(add(2),)]) is None


def test_more_residuals_than_may_be_kept_are_computed_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    expected = effects.delta_losses(lens, PLANS, texts=TEXTS)
    monkeypatch.setattr(scores, "MAX_BYTES", 4000)
    assert scores.unsteered(lens, effects.items_of(lens, TEXTS, PLANS)).below is None
    for one, other in zip(effects.delta_losses(lens, PLANS, texts=TEXTS), expected, strict=True):
        np.testing.assert_allclose(one.per_text, other.per_text, atol=2e-5)


def test_padding_holds_a_real_residual() -> None:
    rows = [(1, 2, 3), (4, 5)]
    held = Below((1, "resid_post"), {row: mx.arange(len(row) * 2).reshape(-1, 2) + row[0] for row in rows})
    hidden = np.array(held.resume([rows[1], rows[0], rows[1]]).hidden)
    np.testing.assert_array_equal(hidden[0], [[4, 5], [6, 7], [6, 7]])
    np.testing.assert_array_equal(hidden[1], [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(hidden[2], hidden[0])


def test_a_forward_of_several_texts_resumes_as_each_would_alone() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    rows = [tuple(ids) for ids in TEXTS]
    key = (2, "resid_pre")
    held = Below(key, {row: lens.residuals(list(row), 2, site="resid_pre") for row in rows})
    logits = forward_rows(lens, rows, [(add(2, scale=3.0),)], resume=held.resume(rows))
    with lens.intervene(add(2, scale=3.0)):
        for at, row in enumerate(rows):
            alone = np.array(lens.forward(list(row))[0])
            np.testing.assert_allclose(np.array(logits[at, : len(row)]), alone, atol=1e-4)


def test_texts_are_packed_at_the_least_cost() -> None:
    random = np.random.default_rng(0)
    for overhead in (0, 3, 40):
        for _ in range(20):
            count = int(random.integers(1, 8))
            lengths, rows = random.integers(1, 40, count).tolist(), random.integers(1, 5, count).tolist()

            found = pack(lengths, rows, most_rows=6, most_tokens=90, overhead=overhead)
            assert sorted(itertools.chain(*found)) == list(range(count))
            ways = (cuts(sorted(range(count), key=lambda at: lengths[at]), mask) for mask in range(2 ** (count - 1)))
            costs = [cost(way, lengths, rows, overhead) for way in [found, *ways]]
            assert costs[0] == min(costs) < FORBIDDEN


FORBIDDEN = 10**9


def cost(batches: list[list[int]], lengths: list[int], rows: list[int], overhead: int) -> int:
    """Tokens that batches cost, of at most 6 rows and 90 tokens unless a single text has more."""
    total = 0
    for batch in batches:
        count, longest = sum(rows[at] for at in batch), max(lengths[at] for at in batch)
        if len(batch) > 1 and (count > 6 or count * longest > 90):
            return FORBIDDEN
        total += overhead + count * longest
    return total


def cuts(order: list[int], mask: int) -> list[list[int]]:
    """The order cut wherever the mask has a bit."""
    batches: list[list[int]] = [[order[0]]]
    for place, at in enumerate(order[1:]):
        if mask >> place & 1:
            batches.append([at])
        else:
            batches[-1].append(at)
    return batches
