"""Dose-response and scale search as jobs: the library's numbers, in pieces that can be heard of and stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureProbe, LensModel, behaviour, dose_response, find_scale, load_sae
from lens_tui.lens.measure import effects
from lens_tui.lens.measure.effects import LOSS_TEXTS
from lens_tui.records import Add, Arm, LensError, Positions, Sampling, SteeringVector
from lens_tui.records.corpus import read_questions
from lens_tui.tasks import make_vectors
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Control
from tests.folders import D_MODEL
from tests.worker.drive import PATIENCE, Driver, of, only

PROMPT = "Once upon a time"
VECTOR = SteeringVector.of("v", np.cos(np.arange(D_MODEL)), 1)
ADD = Add(id="a", layer=1, vector=VECTOR, scale=1.0)
SCALES = (-4.0, 0.0, 2.0, 8.0)
FEW = 6, 3


def test_the_scales_are_taken_from_0_outwards() -> None:
    assert make_vectors.blocks((4, -4, 0, 1, -1), 2) == [[0, 1], [-1, 4], [-4]]
    assert make_vectors.blocks((2, 2.0), 6) == [[2]]


def test_a_dose_in_pieces_is_the_librarys_in_one(loaded: Driver, tiny: Path, sae: Path) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae))), ev.SAELoaded).info
    job = jobs.MeasureDose(PROMPT, (ADD,), SCALES, 2, info.id, 3, *FEW, seed=5)
    events = loaded.done(job)
    heard = of(events, ev.DoseMeasured)
    assert [(event.done, event.total) for event in heard] == [(2, 4), (4, 4)]
    assert [point.scale for point in heard[0].response.points] == [0.0, 2.0]
    found = heard[-1].response
    lens = LensModel(str(tiny))
    probe = FeatureProbe(load_sae(sae), 3, info.layer)
    whole = dose_response(
        lens, PROMPT, [ADD], SCALES, texts=LOSS_TEXTS[:3], controls=2, probe=probe, max_tokens=6, seed=5
    )
    assert [point.scale for point in found.points] == sorted(SCALES)
    assert found.baseline_ids == whole.baseline_ids
    for ours, theirs in zip(found.points, whole.points, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.delta_loss.delta == pytest.approx(theirs.delta_loss.delta, abs=1e-5)
        assert (ours.delta_loss.low, ours.delta_loss.high) == pytest.approx(
            (theirs.delta_loss.low, theirs.delta_loss.high), abs=1e-5
        )
        assert ours.random_delta == pytest.approx(theirs.random_delta, abs=1e-5)
        assert ours.random_kl == pytest.approx(theirs.random_kl, abs=1e-5)
        assert ours.on_baseline.mean_forward == pytest.approx(theirs.on_baseline.mean_forward, abs=1e-5)
        assert ours.read_back is not None
        assert theirs.read_back is not None
        assert ours.read_back.mean == pytest.approx(theirs.read_back.mean, rel=1e-4)
    assert [curve.name for curve in found.curves] == [curve.name for curve in whole.curves]
    for mine, other in zip(found.curves, whole.curves, strict=True):
        assert mine.scales == other.scales
        assert mine.values == pytest.approx(other.values, abs=1e-4)
        assert (mine.knee, mine.reversals) == (other.knee, other.reversals)
    progress = [(event.done, event.total) for event in of(events, ev.Progress) if event.stage == "scales"]
    assert progress == [(0, 4), (2, 4), (4, 4)]


QUESTIONS = Path(__file__).parents[2] / "examples" / "cooking_or_play.jsonl"


def test_behaviour_is_measured_and_searched_for_as_the_verbs_do(loaded: Driver, tiny: Path) -> None:
    lens, questions = LensModel(str(tiny)), read_questions(QUESTIONS)
    job = jobs.MeasureDose(PROMPT, (ADD,), SCALES, 1, "", 0, *FEW, questions=str(QUESTIONS))
    found = of(loaded.done(job), ev.DoseMeasured)[-1].response
    asked = behaviour(lens, questions, [ADD], sorted(SCALES))
    assert found.baseline_behaviour is not None
    assert found.baseline_behaviour.difference == pytest.approx(asked.plain.difference, abs=1e-4)
    for ours, theirs in zip(found.points, asked.points, strict=True):
        assert ours.behaviour is not None
        for name in ("difference", "low", "high", "share", "chosen", "n"):
            assert getattr(ours.behaviour, name) == pytest.approx(getattr(theirs.behaviour, name), abs=1e-4)
    assert found.curve("behaviour").values == pytest.approx(
        [point.behaviour.difference for point in asked.points], abs=1e-4
    )
    slope = asked.points[-1].behaviour.difference - asked.plain.difference
    wanted = jobs.FindScale((ADD,), "behaviour", slope / 2, str(QUESTIONS))
    search = only(loaded.done(wanted), ev.ScaleFound).search
    expected = make_vectors.find(lens, [ADD], "behaviour", slope / 2, questions=questions)
    assert (search.scale, search.value, search.held_out) == pytest.approx(
        (expected.scale, expected.value, expected.held_out), rel=1e-3
    )


def test_a_file_that_is_not_of_questions_is_refused_before_anything_is_measured(loaded: Driver, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"text": "a", "label": 1}')
    for job in (
        jobs.MeasureDose(PROMPT, (ADD,), SCALES, 0, "", 0, *FEW, questions=str(file)),
        jobs.FindScale((ADD,), "behaviour", 1.0, str(file)),
    ):
        assert "labels.jsonl, question 1 has not all of question" in loaded.failed(job).message
    assert "searched for by questions" in loaded.failed(jobs.FindScale((ADD,), "behaviour", 1.0)).message


def test_a_dose_is_stopped_between_two_forwards_and_keeps_what_it_has(loaded: Driver) -> None:
    scales = tuple(float(scale) for scale in range(24))
    job = loaded.worker.submit(jobs.MeasureDose(PROMPT, (ADD,), scales, 1, "", 0, *FEW))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.DoseMeasured):
            loaded.worker.stop(job)

    events = loaded.follow(job, look)
    assert events[-1] == ev.JobDone(job, stopped=True)
    assert 1 <= len(of(events, ev.DoseMeasured)) < 12
    loaded.done(jobs.RandomVector("r", 1))  # the model is whole, and nothing asks it to stop any more


RUN = jobs.Compare(PROMPT, (Arm("baseline"), Arm("steered", (ADD,))), Sampling(max_tokens=5, temp=0.0))
LONG = {
    "dose": jobs.MeasureDose(PROMPT, (ADD,), SCALES, 1, "", 0, *FEW),
    "search": jobs.FindScale((ADD,), "kl", 0.05),
    "pairs": jobs.VectorFromPrompts("p", ("I love it", "so good"), ("I hate it", "so bad"), layer=None),
}


def _facts(events: list[ev.Event]) -> list[str]:
    """What a job said, without its number and the pauses it made."""
    kept = [event for event in events if not isinstance(event, ev.JobStarted | ev.Speed)]
    return [repr(replace(event, job=0)) for event in kept]


@pytest.mark.parametrize(("name", "forward"), [("dose", 1), ("dose", 5), ("search", 1), ("search", 5), ("pairs", 1)])
def test_a_run_is_made_in_a_pause_of_a_long_job_which_loses_nothing(
    loaded: Driver, monkeypatch: pytest.MonkeyPatch, name: str, forward: int
) -> None:
    alone, run_alone = loaded.done(LONG[name]), loaded.done(RUN)
    asked, ids = [0], []
    check = Control.check

    def counted(control: Control) -> None:
        if control.job is LONG[name]:
            asked[0] += 1
            if asked[0] == forward + 1:  # the first look is before any forward
                ids.append(loaded.worker.submit(RUN))
        check(control)

    monkeypatch.setattr(Control, "check", counted)
    seen: list[ev.Event] = []
    job = loaded.worker.submit(LONG[name])
    while not any(isinstance(event, ev.JobDone | ev.JobFailed) and event.job == job for event in seen):
        assert loaded.bell.acquire(timeout=PATIENCE)
        seen += loaded.worker.drain()
    (run,) = ids
    first, last = ([at for at, event in enumerate(seen) if event.job == run][place] for place in (0, -1))
    assert seen[last] == ev.JobDone(run)
    assert {event.job for event in seen[first : last + 1]} == {run}  # and the other went on after it
    assert seen[last + 1] == ev.JobStarted(job, type(LONG[name]).__name__)
    assert _facts([event for event in seen if event.job == run if not isinstance(event, ev.Progress)]) == _facts(
        [event for event in run_alone if not isinstance(event, ev.Progress)]
    )
    assert _facts([event for event in seen if event.job == job]) == _facts(alone)


@pytest.mark.parametrize(("name", "at"), [("dose", 4), ("search", 4), ("pairs", 2)])
def test_a_long_job_is_stopped_at_whatever_forward_it_is(
    loaded: Driver, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    looks = [0]
    check = Control.check

    def counted(control: Control) -> None:
        looks[0] += 1
        if looks[0] == at:
            loaded.worker.stop(control.id)
        check(control)

    monkeypatch.setattr(Control, "check", counted)
    events = loaded.run(LONG[name])
    assert events[-1] == ev.JobDone(events[-1].job, stopped=True)
    assert looks == [at]


def test_a_dose_looks_for_a_stop_at_each_token_that_it_writes(tiny: Path) -> None:
    lens, counts = LensModel(str(tiny)), []
    for tokens in (3, 9):
        looks = [0]

        def look(looks: list[int] = looks) -> None:
            looks[0] += 1

        lens.registry.between = look
        dose_response(lens, PROMPT, [ADD], SCALES, texts=LOSS_TEXTS[:3], max_tokens=tokens)
        counts.append(looks[0])
    assert counts[1] >= counts[0] + 6


def test_what_is_raised_between_two_forwards_ends_a_measure(tiny: Path) -> None:
    lens = LensModel(str(tiny))
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    lens.registry.between = stop
    with pytest.raises(InterruptedError):
        dose_response(lens, PROMPT, [ADD], SCALES, texts=LOSS_TEXTS[:3], max_tokens=3)
    assert len(calls) == 2
    assert lens.registry.installed == ()


@pytest.mark.parametrize(("quantity", "target"), [("delta_loss", 0.05), ("relative_norm", None)])
def test_a_search_is_the_librarys_and_says_what_it_tried(
    loaded: Driver, tiny: Path, quantity: str, target: float | None
) -> None:
    events = loaded.done(jobs.FindScale((ADD,), quantity, target))
    found = only(events, ev.ScaleFound).search
    lens = LensModel(str(tiny))
    expected = find_scale(lens, ADD, quantity=quantity, target=target)  # type: ignore[arg-type]
    assert found.scale == pytest.approx(expected.scale, rel=1e-3)
    assert (found.reached, found.evaluations) == (expected.reached, expected.evaluations)
    tried = of(events, ev.ScalesTried)
    assert [len(event.tried) for event in tried] == sorted({len(event.tried) for event in tried})
    held_out_too = dict(tried[-1].tried)
    assert set(found.curve.scales) == set(held_out_too)
    assert held_out_too[found.scale] == found.value
    if quantity == "delta_loss":
        texts = LOSS_TEXTS[:16:2]
        plan = Add(id="a", layer=1, vector=VECTOR, scale=found.scale)
        assert found.value == pytest.approx(effects.delta_loss(lens, plan, texts=texts).delta, abs=1e-5)


def test_what_cannot_be_measured_says_why(loaded: Driver, tiny: Path) -> None:
    only_prompt = Add(id="a", layer=1, vector=VECTOR, scale=1.0, positions=Positions("prompt"))
    for job in (jobs.MeasureDose(PROMPT, (only_prompt,), SCALES), jobs.FindScale((only_prompt,))):
        assert "prompt-only" in loaded.failed(job).message
    assert "no quantity 'taste'" in loaded.failed(jobs.FindScale((ADD,), "taste")).message
    assert "finite scales" in loaded.failed(jobs.MeasureDose(PROMPT, (ADD,), ())).message
    with pytest.raises(LensError, match="no quantity"):
        make_vectors.find(LensModel(str(tiny)), [ADD], "taste")
