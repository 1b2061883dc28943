"""Blind judgements: kept with their run, counted with the interval that inverts the score test."""

from __future__ import annotations

import math

import pytest

from lens_tui.records import Add, Arm, LensError, Sampling, SteeringVector
from lens_tui.records.judgements import Z95, Judgement, JudgementStore, tally, wilson
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.records.run_store import RunStore

VECTOR = SteeringVector.of("v", [1.0, 2.0, 3.0], 2)


def steered(name: str, scale: float) -> Arm:
    return Arm(name, (Add(id="a", layer=2, vector=VECTOR, scale=scale),))


def score_bound(share: float, trials: int, sign: int) -> float:
    """The share farthest from the observed one that a score test at 5 % does not reject, by bisection."""
    inside, outside = share, 1.0 if sign > 0 else 0.0
    for _ in range(200):
        middle = (inside + outside) / 2
        error = math.sqrt(middle * (1 - middle) / trials)
        if abs(share - middle) <= Z95 * error:
            inside = middle
        else:
            outside = middle
    return inside


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (1, 2), (3, 10), (9, 10), (0, 25), (400, 1000)])
def test_the_interval_is_the_one_of_the_score_test(successes: int, trials: int) -> None:
    low, high = wilson(successes, trials)
    assert low == pytest.approx(score_bound(successes / trials, trials, -1), abs=1e-9)
    assert high == pytest.approx(score_bound(successes / trials, trials, 1), abs=1e-9)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_of_nothing_nothing_is_known_and_nonsense_is_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for successes, trials in ((2, 1), (-1, 3)):
        with pytest.raises(LensError, match="not a share"):
            wilson(successes, trials)


def run(prompt: str, seed: int, *arms: Arm, model: str = "m") -> RunRecord:
    return RunRecord(model, prompt, tuple(map(ArmRecord, arms)), Sampling(seed=seed))


def test_the_same_arms_are_counted_together_whatever_their_order_prompt_or_seed() -> None:
    base, weak, strong = Arm("baseline"), steered("x", 1.0), steered("x", 9.0)
    judged = [
        (run("p", 1, base, weak), Judgement(1, (1, 0), 1)),
        (run("q", 1, weak, base), Judgement(2, (0, 1), 0)),
        (run("q", 2, base, weak), Judgement(3, (0, 1), None)),
        (run("q", 3, base, weak), Judgement(4, (0, 1), 0)),
        (run("q", 3, base, strong), Judgement(5, (0, 1), 1)),
        (run("q", 3, base, weak, model="n"), Judgement(6, (0, 1), 1)),
    ]
    first, *others = tally(judged)
    assert (first.model, first.judged, first.ties, first.prompts, first.seeds) == ("m", 4, 1, 2, 3)
    assert first.runs == (1, 2, 3, 4)
    assert {arm.name: (arm.preferred, arm.share) for arm in first.arms} == {"x": (2, 2 / 3), "baseline": (1, 1 / 3)}
    assert [(arm.low, arm.high) for arm in first.arms if arm.name == "x"] == [wilson(2, 3)]
    assert first.chance == 0.5
    assert [(other.model, other.judged) for other in others] == [("m", 1), ("n", 1)]


def test_judgements_are_kept_taken_back_and_go_with_their_run() -> None:
    store = RunStore(":memory:")
    kept = JudgementStore(store)
    number = store.begin("m", "p", [Arm("baseline"), steered("x", 1.0)], Sampling())
    one, two = kept.add(number, (1, 0), 1), kept.add(number, (0, 1), None)
    assert [(item.id, item.run, item.shown, item.chosen) for item in kept.list(number)] == [
        (one, number, (1, 0), 1),
        (two, number, (0, 1), None),
    ]
    with pytest.raises(LensError, match="not among those shown"):
        kept.add(number, (0, 1), 2)
    kept.remove(one)
    assert [item.id for item in kept.list()] == [two]
    with store.store.write() as connection:
        connection.execute("DELETE FROM run WHERE id = ?", (number,))
    assert kept.list() == []
