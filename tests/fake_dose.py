"""A dose-response and a scale search for tests of the screen: smooth curves, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from lens_tui.records.corpus import read_questions
from lens_tui.records.measures import (
    Behaviour,
    Curve,
    Degeneration,
    DeltaLoss,
    Divergence,
    DosePoint,
    DoseResponse,
    ReadBack,
    ScaleSearch,
)
from lens_tui.tasks.make_vectors import blocks
from lens_tui.worker import events as ev
from lens_tui.worker import jobs

PLAIN = " a little girl named Lily. She loved to play in the park with her friends."
STEERED = " a little dog named Max. He loved to run in the park and bark at the birds, the dog and the dog."


class Stoppable(Protocol):
    stopped: bool


def fake_dose(running: Stoppable, number: int, job: jobs.MeasureDose) -> Iterator[ev.Event]:
    top = max(map(abs, job.scales)) or 1.0
    points: list[DosePoint] = []
    yield ev.Progress(number, "scales", 0, len(job.scales), "scales")
    for part in blocks(job.scales, 2):
        if running.stopped:
            return
        points = sorted([*points, *(_point(job, scale, scale / top) for scale in part)], key=lambda point: point.scale)
        yield ev.DoseMeasured(number, _response(job, points), len(points), len(job.scales))
        yield ev.Progress(number, "scales", len(points), len(job.scales), "scales")


def fake_search(running: Stoppable, number: int, job: jobs.FindScale) -> Iterator[ev.Event]:
    target = job.target or 0.3
    tried: dict[float, float] = {}
    questions = len(read_questions(job.questions)) if job.questions else 0
    assert (questions > 0) == (job.quantity == "behaviour")
    for part in ((2.0, 4.0, 8.0, 16.0), (9.5, 11.3, 13.5), (11.8, 12.4, 12.9)):
        if running.stopped:
            return
        tried |= {scale: round(target * (scale / 12.4) ** 2, 4) for scale in part}
        yield ev.ScalesTried(number, tuple(sorted(tried.items())))
        yield ev.Progress(number, "scales", len(tried), 0, "scales")
    curve = Curve(job.quantity, tuple(sorted(tried)), tuple(tried[at] for at in sorted(tried)), 8.0, ())
    found = ScaleSearch(
        job.quantity, target, 12.4, target, round(target * 1.05, 4), (11.8, 12.9), curve, True, len(tried)
    )
    yield ev.ScaleFound(number, found)


def _point(job: jobs.MeasureDose, scale: float, share: float) -> DosePoint:
    size = share * share
    loss, kl = 2.4 * size + 0.02 * abs(share), 6.0 * size + 0.1 * abs(share)
    writing = Degeneration(job.max_tokens, 0.8 - 0.3 * size, 0.97 - 0.6 * size, 0.99 - 0.3 * size, 3, 4, 1.5 + size)
    questions = len(read_questions(job.questions)) if job.questions else 0
    answers = Behaviour(3 * share - 1, 3 * share - 1.5, 3 * share - 0.5, 0.5 + 0.4 * share, 0.5, questions)
    back = ReadBack(max(0.0, 30 * share - 12 * size), 40.0, ()) if job.sae else None
    return DosePoint(
        scale,
        abs(share) * 1.8,
        DeltaLoss(loss, loss * 0.8, loss * 1.25, 3.1, 3.1 + loss, 16, 412),
        Divergence((kl, kl), (kl * 0.8,)),
        Divergence((kl * 1.2,), (kl,)),
        6.8 + 40 * size,
        6.0 + 2 * size,
        writing,
        STEERED if scale else PLAIN,
        (1, 2, 3),
        "length",
        back,
        tuple(loss * 0.2 for _ in range(job.controls)),
        tuple(kl * 0.15 for _ in range(job.controls)),
        loss * 0.9,
        kl * 0.9,
        answers if questions else None,
    )


def _response(job: jobs.MeasureDose, points: list[DosePoint]) -> DoseResponse:
    scales = tuple(point.scale for point in points)
    losses = tuple(point.delta_loss.delta for point in points)
    knee = scales[-2] if len(scales) == len(job.scales) and len(scales) > 2 else None
    curves = [Curve("delta_loss", scales, losses, knee, ())]
    curves.append(Curve("kl", scales, tuple(point.on_baseline.mean_forward for point in points), knee, ()))
    if job.sae:
        backs = tuple(point.read_back.mean for point in points if point.read_back)
        turns = ((scales[-2], scales[-1]),) if knee is not None else ()
        curves.append(Curve("read_back", scales, backs, None, turns))
    answered = [point.behaviour.difference for point in points if point.behaviour]
    if answered:
        curves.append(Curve("behaviour", scales, tuple(answered), knee, ()))
    plain = Degeneration(job.max_tokens, 0.8, 0.97, 0.99, 3, 4, 1.5)
    response = DoseResponse(tuple(points), PLAIN, (1, 2, 3), 6.8, plain, tuple(curves))
    plain_answers = next((point.behaviour for point in points if point.scale == 0), points[0].behaviour)
    response = replace(response, baseline_behaviour=plain_answers)
    return replace(response, baseline_read_back=ReadBack(0.4, 2.0, ())) if job.sae else response
