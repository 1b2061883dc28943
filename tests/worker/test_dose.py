"""Dose-response and scale search as jobs: the library's numbers, in pieces that can be heard of and stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureProbe, LensModel, dose_response, find_scale, load_sae
from lens_tui.lens.measure import measures
from lens_tui.lens.measure.measures import LOSS_TEXTS
from lens_tui.records import Add, LensError, Positions, SteeringVector
from lens_tui.tasks import vectors
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.folders import D_MODEL
from tests.worker.drive import Driver, of, only

PROMPT = "Once upon a time"
VECTOR = SteeringVector.of("v", np.cos(np.arange(D_MODEL)), 1)
ADD = Add(id="a", layer=1, vector=VECTOR, scale=1.0)
SCALES = (-4.0, 0.0, 2.0, 8.0)
FEW = 6, 3


def test_the_scales_are_taken_from_0_outwards() -> None:
    assert vectors.blocks((4, -4, 0, 1, -1), 2) == [[0, 1], [-1, 4], [-4]]
    assert vectors.blocks((2, 2.0), 6) == [[2]]


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
        assert found.value == pytest.approx(measures.delta_loss(lens, plan, texts=texts).delta, abs=1e-5)


def test_what_cannot_be_measured_says_why(loaded: Driver, tiny: Path) -> None:
    only_prompt = Add(id="a", layer=1, vector=VECTOR, scale=1.0, positions=Positions("prompt"))
    for job in (jobs.MeasureDose(PROMPT, (only_prompt,), SCALES), jobs.FindScale((only_prompt,))):
        assert "prompt-only" in loaded.failed(job).message
    assert "no quantity 'taste'" in loaded.failed(jobs.FindScale((ADD,), "taste")).message
    assert "finite scales" in loaded.failed(jobs.MeasureDose(PROMPT, (ADD,), ())).message
    with pytest.raises(LensError, match="no quantity"):
        vectors.find(LensModel(str(tiny)), [ADD], "taste")
