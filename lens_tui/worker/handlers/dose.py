"""Measure a steering over scales, and find the scale that reaches a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.records.measures import DoseResponse
from lens_tui.records.sanitise import sanitise
from lens_tui.tasks.dose import find
from lens_tui.tasks.dose import measure_dose as measure

from .. import events as ev
from .. import jobs
from ..control import Control
from .context import Context
from .load import open_sae

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import FeatureProbe
    from lens_tui.lens.model import LensModel


def measure_dose(control: Control, job: jobs.MeasureDose, context: Context) -> Iterator[ev.Event]:
    """The curves, some scales at a time; stopped between two forwards, what is there stays."""

    def heard(found: DoseResponse, done: int, total: int) -> None:
        control.report(ev.DoseMeasured(control.id, shown(found), done, total))
        control.progress("scales", done, total, "scales")

    control.progress("scales", 0, len(job.scales), "scales")
    probe = _probe(job, context)
    with _stoppable(context, control) as model:
        measure(
            model,
            job.prompt,
            job.interventions,
            job.scales,
            controls=job.controls,
            probe=probe,
            max_tokens=job.max_tokens,
            n_texts=job.n_texts or None,
            seed=job.seed,
            heard=heard,
        )
    yield from ()


def find_scale(control: Control, job: jobs.FindScale, context: Context) -> Iterator[ev.Event]:
    """The search, batch of scales by batch; stopped between two forwards."""

    def heard(tried: dict[float, float]) -> None:
        control.report(ev.ScalesTried(control.id, tuple(sorted(tried.items()))))
        control.progress("scales", len(tried), 0, "scales")

    control.progress("scales", 0, 0, "scales")
    with _stoppable(context, control) as model:
        search = find(model, job.interventions, job.quantity, job.target, heard=heard)
    yield ev.ScaleFound(control.id, search)


@contextmanager
def _stoppable(context: Context, control: Control) -> Iterator[LensModel]:
    """The model, asked between the forwards of a measure whether to stop."""
    model = context.need_model()
    before, model.registry.between = model.registry.between, control.check
    try:
        yield model
    finally:
        model.registry.between = before


def shown(response: DoseResponse) -> DoseResponse:
    """The response with its texts made safe to show."""
    points = tuple(replace(point, text=sanitise(point.text)) for point in response.points)
    return replace(response, points=points, baseline_text=sanitise(response.baseline_text))


def _probe(job: jobs.MeasureDose, context: Context) -> FeatureProbe | None:
    from lens_tui.lens.measure.dose import FeatureProbe

    if not job.sae:
        return None
    sae = open_sae(job.sae, context)
    if sae.info.layer < 0 or not sae.info.site or sae.info.is_transcoder:
        return None
    return FeatureProbe(sae, job.feature, sae.info.layer, sae.info.site)
