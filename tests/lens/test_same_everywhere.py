"""One question has one answer: whatever the path, the chunk, the spelling or the company a steering is run in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, delta_loss, divergence, find_scale
from lens_tui.lens import room
from lens_tui.records import (
    Add,
    Arm,
    ArmEnd,
    ClampFeature,
    Dose,
    LensError,
    NormMatch,
    Positions,
    Request,
    SteeringVector,
)

from . import tiny
from .numpy_models import llama

BOS = 3
VECTOR = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 1)
RANDOM = np.random.default_rng(7)


def packed(length: int) -> list[int]:
    """A prompt with BOS at its beginning, in its middle and near its end, as packed documents have it."""
    ids = [int(token) for token in RANDOM.integers(4, tiny.VOCAB, size=length)]
    for at in (0, length // 2, length - 2):
        ids[at] = BOS
    return ids


def with_bos(dtype: mx.Dtype = mx.float32) -> LensModel:
    lens = LensModel.from_model(tiny.llama(dtype=dtype))
    lens.registry.bos = BOS
    return lens


def push(positions: Positions, **more: Any) -> Add:
    return Add(id="a", layer=1, vector=VECTOR, scale=6.0, positions=positions, **more)


def by_hand(lens: LensModel, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """Log-probabilities of the next token by numpy, every token but BOS moved."""
    keep = np.array([token != BOS for token in ids])

    def change(layer: int, site: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x + 6.0 * keep[:, None] * VECTOR.direction if (layer, site) == (1, "resid_post") else x

    logits = llama(lens.model, tuple(ids), change)[-1]
    found: np.ndarray[Any, Any] = logits - np.logaddexp.reduce(logits)
    return found


PATHS: dict[str, Callable[[LensModel, list[int], Add], tuple[int, float]]] = {
    "forward": lambda lens, ids, add: _of_forward(lens, ids, add),
    "stream": lambda lens, ids, add: _first(lens.stream(ids, interventions=[add], max_tokens=1)),
    "chunks": lambda lens, ids, add: _first(lens.stream(ids, interventions=[add], max_tokens=1, prefill_step_size=4)),
    "compare": lambda lens, ids, add: _first(
        event for event in lens.compare(ids, [Arm("a", (add,))], max_tokens=1) if getattr(event, "arm", 0) == 1
    ),
    "batch": lambda lens, ids, add: _first(
        event
        for event in lens.stream_batch([ids, ids[:5]], interventions=[add], max_tokens=1)
        if getattr(event, "arm", 1) == 0
    ),
}


def _of_forward(lens: LensModel, ids: list[int], add: Add) -> tuple[int, float]:
    with lens.intervene(add):
        logits = np.array(lens.forward(ids))[0, -1].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits)
    return int(logprobs.argmax()), float(logprobs.max())


def _first(events: Any) -> tuple[int, float]:
    token = next(iter(events))
    return token.token_id, token.logprob


@pytest.mark.parametrize("length", [9, 41])
@pytest.mark.parametrize("path", PATHS)
def test_not_bos_leaves_every_bos_alone_on_every_path(path: str, length: int) -> None:
    lens, ids = with_bos(), packed(length)
    expected = by_hand(lens, ids)
    token, logprob = PATHS[path](lens, ids, push(Positions("not_bos")))
    assert token == int(expected.argmax())
    assert logprob == pytest.approx(float(expected.max()), abs=1e-3)


def test_a_bos_that_is_generated_is_left_alone_listed_and_counted_so() -> None:
    lens, ids = with_bos(), packed(41)
    script = iter([10, BOS, 11, 12, 13])
    with lens.capture(1) as captured:
        run = lens.stream(
            ids,
            interventions=[push(Positions("not_bos"))],
            sampler=lambda logprobs: mx.array([next(script)] * logprobs.shape[0]),
            max_tokens=4,
        )
        assert [token.token_id for token in run] == [10, BOS, 11, 12]
    whole = [*ids, 10, BOS, 11]
    plain = np.array(lens.residuals(whole, 1))
    moved = np.linalg.norm(np.array(captured[1])[0] - plain, axis=-1)
    (listed,) = run.steered
    touched = [at for at, token in enumerate(whole) if token != BOS]
    assert list(listed.positions) == touched
    # Behind layer 1 itself only the tokens that are touched there differ.
    assert np.flatnonzero(moved > 1e-2).tolist() == touched
    assert run.dose[0].tokens == len(touched)


@pytest.mark.parametrize("kind", ["generated", "last"])
def test_a_loss_is_the_one_that_delta_loss_measures(kind: Any) -> None:
    lens, add = LensModel.from_model(tiny.llama()), push(Positions(kind))
    ids = packed(12)
    with lens.intervene(add):
        steered = lens.loss(ids)
    found = delta_loss(lens, add, texts=[ids])
    assert steered == pytest.approx(found.steered, abs=1e-5)
    assert lens.loss(ids) == pytest.approx(found.base, abs=1e-5)
    assert abs(steered - found.base) > 1e-3


@pytest.mark.parametrize(
    "positions", [Positions("indices", (11,)), Positions("slice", start=11), Positions("prompt")], ids=lambda p: p.kind
)
def test_a_measure_that_no_scored_token_can_tell_of_is_refused(positions: Positions) -> None:
    lens, ids, add = LensModel.from_model(tiny.llama()), packed(12), push(positions)
    with lens.intervene(add), pytest.raises(LensError, match="no token that a scored one follows"):
        lens.loss(ids)
    with pytest.raises(LensError, match="no token that a scored one follows"):
        delta_loss(lens, add, texts=[ids])
    if positions.kind != "prompt":
        with pytest.raises(LensError, match="no token that a scored one follows"):
            divergence(lens, ids[:6], ids[6:], add)


def test_the_share_of_a_search_counts_the_tokens_that_a_loss_counts() -> None:
    lens, ids = LensModel.from_model(tiny.llama()), packed(12)
    record = NormMatch(id="a", layer=1, vector=VECTOR, scale=1.0, positions=Positions("generated"))
    found = find_scale(lens, record, quantity="relative_norm", target=0.2, texts=[ids], start=0.05)
    assert found.scale == pytest.approx(0.2, rel=0.05)
    with lens.intervene(push(Positions("generated"))) as held:
        lens.loss(ids)
    assert held.interventions


def _doses(lens: LensModel, prompts: Sequence[list[int]], plans: Sequence[Any], counts: Sequence[int]) -> Any:
    alone, together = [], []
    for prompt, plan, count in zip(prompts, plans, counts, strict=True):
        run = lens.stream(prompt, interventions=plan, max_tokens=count)
        for _ in run:
            pass
        alone.append(run.dose)
    requests = [
        Request(prompt, interventions=plan, sampling=lens_sampling(count))
        for prompt, plan, count in zip(prompts, plans, counts, strict=True)
    ]
    for event in (batch := lens.stream_batch(requests)):
        if isinstance(event, ArmEnd):
            together.append((event.arm, event.doses))
    assert [row.doses for row in batch.records] == [dose for _, dose in sorted(together)]
    return alone, [row.doses for row in batch.records]


def lens_sampling(count: int) -> Any:
    from lens_tui.records import Sampling

    return Sampling(max_tokens=count, temp=0.0)


def _close(left: Sequence[Dose], right: Sequence[Dose]) -> None:
    assert [(dose.layer, dose.site, dose.tokens) for dose in left] == [
        (dose.layer, dose.site, dose.tokens) for dose in right
    ]
    for one, other in zip(left, right, strict=True):
        for name in ("asked", "delivered", "relative"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)


def test_doses_of_a_batch_are_those_of_each_prompt_alone() -> None:
    lens = with_bos()
    matched = NormMatch(id="n", layer=1, vector=VECTOR, scale=0.3)
    late = NormMatch(id="l", layer=2, vector=VECTOR, scale=0.3, positions=Positions("indices", (24, 25)))
    prompts = [packed(9), packed(40), packed(9), packed(6)]
    plans = [(matched,), (matched,), (late, matched), ()]
    alone, together = _doses(lens, prompts, plans, [4, 30, 30, 12])
    assert together[3] == () == alone[3]
    for left, right in zip(alone, together, strict=True):
        _close(left, right)
    # Nine tokens of the prompt and the three generated ones that went in; from the prompt's last on, 16 steps.
    assert [alone[0][0].tokens, alone[1][0].tokens, alone[2][0].tokens] == [12, 39 + 16, 8 + 16]
    assert alone[2][1].tokens == 2


def test_the_dose_of_an_arm_is_of_its_own_tokens() -> None:
    lens, ids = LensModel.from_model(tiny.llama()), packed(9)
    matched = NormMatch(id="n", layer=1, vector=VECTOR, scale=0.3)
    ends = [event for event in lens.compare(ids, [Arm("a", (matched,))], max_tokens=5) if isinstance(event, ArmEnd)]
    assert ends[1].doses[0].tokens == 9 + 4


def test_the_dose_of_an_arm_that_has_ended_is_not_of_the_steps_after_its_end() -> None:
    lens, ids = LensModel.from_model(tiny.llama()), packed(9)
    matched = NormMatch(id="n", layer=1, vector=VECTOR, scale=0.3)
    alone = list(lens.stream(ids, interventions=[matched], max_tokens=8, temp=0.0))
    stop = alone[2].token_id
    run = lens.compare(ids, [Arm("a", (matched,))], max_tokens=8, stop_ids=[stop])
    ended = next(event for event in run if isinstance(event, ArmEnd) and event.arm == 1)
    for _ in run:
        pass
    first = next(at for at, token in enumerate(alone) if token.token_id == stop)
    assert run.doses(1) == ended.doses
    assert ended.doses[0].tokens == 9 + first


class _SAE:
    """Features are the residual's own axes, times a factor."""

    d_model = 64

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def encode(self, residual: mx.array) -> mx.array:
        return residual * self.factor

    def decode(self, activations: mx.array) -> mx.array:
        return activations / self.factor


def test_another_sae_of_the_same_name_takes_effect_in_blocks_and_runs_that_are_up() -> None:
    lens, ids = LensModel.from_model(tiny.llama()), packed(40)
    record = ClampFeature(id="c", layer=1, sae="s", feature=2, value=40.0)

    def read() -> tuple[float, float]:
        return lens.loss(ids), float(np.array(lens.residuals(ids, 1, steered=True))[5, 2])

    lens.attach_sae("s", _SAE(1.0))
    with lens.intervene(record):
        first = read()
        cache = _cache(lens, ids)
        lens.attach_sae("s", _SAE(0.5))
        second = read()
        with pytest.raises(LensError, match="other interventions"):
            lens.forward(ids[:2], cache=cache)
    assert first[1] == pytest.approx(40.0, abs=1e-3)
    assert second[1] == pytest.approx(80.0, abs=1e-3)
    with lens.intervene(record):
        assert read() == second
    run = lens.stream(ids, interventions=[record], max_tokens=6)
    for _ in range(2):
        next(run)
    lens.attach_sae("s", _SAE(1.0))
    versions = [token.version for token in run]
    assert max(versions) == 1


def _cache(lens: LensModel, ids: list[int]) -> Any:
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(lens.model)
    lens.forward(ids, cache=cache)
    return cache


@pytest.mark.parametrize("records", [1, 2])
def test_all_and_a_slice_of_everything_are_the_same_numbers_in_bf16(records: int) -> None:
    lens, ids = LensModel.from_model(tiny.llama(dtype=mx.bfloat16)), packed(40)
    read = []
    plain = np.array(lens.residuals(ids, 1).astype(mx.float32))
    for positions in (Positions(), Positions("slice", start=0)):
        several = [Add(id=str(at), layer=1, vector=VECTOR, scale=0.37, positions=positions) for at in range(records)]
        with lens.intervene(*several):
            read.append(lens.residuals(ids, 1, steered=True).astype(mx.float32))
    np.testing.assert_array_equal(np.array(read[0]), np.array(read[1]))
    # And that number is the exact one, rounded once.
    exact = mx.array(plain + sum([np.float32(0.37) * VECTOR.direction] * records))
    np.testing.assert_array_equal(np.array(read[0]), np.array(exact.astype(mx.bfloat16).astype(mx.float32)))


@pytest.mark.parametrize("arms", [0, 2])
def test_a_prompt_goes_in_in_pieces_and_a_stop_waits_for_one_of_them(
    arms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens, ids = with_bos(), packed(100)
    layers: Any = lens.model.model.layers
    work = sum(module["weight"].size for layer in layers for _, module in layer.named_modules() if "weight" in module)
    assert room.work_of(lens.registry) == work
    # A piece is as many tokens as the budget has multiplications for, a power of two.
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 2 * work * 20.0))
    assert (room.piece_of(lens.registry, 1), room.piece_of(lens.registry, 3)) == (16, 16)
    told: list[int] = []

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        told.append(done)
        if done > 40:
            raise Stop

    named = [Arm(str(at), (push(Positions(), site="resid_pre"),)) for at in range(arms)]
    with pytest.raises(Stop):
        list(lens.compare(ids, named, max_tokens=2, progress=stop))
    assert told[-1] <= 40 + 16
    assert max(after - before for before, after in itertools.pairwise(told)) <= 16
    assert lens.registry.installed == ()
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1e15))
    whole = [item.logprob for item in lens.compare(ids, named, max_tokens=2) if hasattr(item, "logprob")]
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))
    lens.prefixes.clear()
    cut = [item.logprob for item in lens.compare(ids, named, max_tokens=2) if hasattr(item, "logprob")]
    np.testing.assert_allclose(cut, whole, atol=1e-3)
