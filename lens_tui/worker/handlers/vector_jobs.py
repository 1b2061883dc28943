"""Make steering vectors, measure a steering over scales, and find the scale that reaches a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.lens.measure.dose import FeatureProbe
from lens_tui.lens.vectors import random_unit, residual_norm
from lens_tui.records import SteeringVector
from lens_tui.records.corpus import read_pairs, read_questions
from lens_tui.records.info import in_residual
from lens_tui.records.measures import DoseResponse
from lens_tui.records.sanitise import one_line, sanitise
from lens_tui.tasks.make_vectors import find, from_pairs, from_terms, probes_of
from lens_tui.tasks.make_vectors import from_token as make
from lens_tui.tasks.make_vectors import measure_dose as measure

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context
from .load_jobs import open_sae
from .opening_jobs import of_file

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import Question
    from lens_tui.lens.model import LensModel


_TOP_TOKENS = 10


def from_prompts(control: Control, job: jobs.VectorFromPrompts, context: Context) -> Iterator[ev.Event]:
    """A vector that tells texts apart, or one for each layer with how well it does."""
    positive, negative = read_pairs(job.path) if job.path else (job.positive, job.negative)
    control.progress("texts", 0, len(positive) + len(negative))
    with stoppable(context, control) as model:
        ranked = from_pairs(
            model,
            job.name,
            positive,
            negative,
            layer=job.layer,
            method=job.method,
            over=job.over,
            raw=job.raw,
        )
    if job.layer is None:
        yield ev.LayersRanked(control.id, ranked, len(positive))
    else:
        yield vector_event(control, ranked[0].vector, context)


def train_probes(control: Control, job: jobs.TrainProbes, context: Context) -> Iterator[ev.Event]:
    """A probe at each layer, its name safe to show; stopped between two layers."""

    def progress(done: int, total: int) -> None:
        control.check()
        control.progress("layers", done, total, "layers")

    control.progress("texts", 0, 0, "texts")
    with stoppable(context, control) as model:
        report = probes_of(
            model,
            one_line(job.name, 60),
            job.positive,
            job.negative,
            path=job.path,
            kind=job.kind,
            layers=job.layers,
            over=job.over,
            raw=job.raw,
            progress=progress,
        )
    yield ev.ProbesTrained(control.id, report)


def from_token(control: Control, job: jobs.VectorFromToken, context: Context) -> Iterator[ev.Event]:
    """The direction of a token."""
    vector = make(context.need_model(), job.token, job.layer, job.kind, job.name)
    yield vector_event(control, replace(vector, name=one_line(vector.name, 60)), context)


def from_vectors(control: Control, job: jobs.VectorFromVectors, context: Context) -> Iterator[ev.Event]:
    """A direction out of others."""
    vector = from_terms(context.need_model(), job.name, job.terms, less=job.less, unit=job.unit)
    yield vector_event(control, vector, context)


def given(control: Control, job: jobs.VectorGiven, context: Context) -> Iterator[ev.Event]:
    """A vector that is there already; it may stop between two forwards."""
    with stoppable(context, control):
        yield vector_event(control, job.vector, context)


def from_file(control: Control, job: jobs.VectorFromFile, context: Context) -> Iterator[ev.Event]:
    """A vector someone saved, or a set of them."""
    first, rest = of_file(job, context)
    yield replace(vector_event(control, first, context), rest=rest)


def random_vector(control: Control, job: jobs.RandomVector, context: Context) -> Iterator[ev.Event]:
    """A random unit direction."""
    yield vector_event(control, random_unit(context.need_model(), job.name, job.layer, seed=job.seed), context)


def vector_event(control: Control, vector: SteeringVector, context: Context) -> ev.VectorMade:
    """The event of a vector, with what it promotes and the residual norm its scale is read against."""
    model = context.need_model()
    writes = vector.d_model == model.d_model and in_residual(vector.site)
    promoted, suppressed = model.promoted(vector, _TOP_TOKENS) if writes else ((), ())
    return ev.VectorMade(control.id, vector, _norm(context, vector.layer, vector.site), promoted, suppressed)


def _norm(context: Context, layer: int, site: str) -> float:
    key = (layer, site)
    if key not in context.norms:
        context.norms[key] = residual_norm(context.need_model(), layer, site=site)
    return context.norms[key]


def measure_dose(control: Control, job: jobs.MeasureDose, context: Context) -> Iterator[ev.Event]:
    """The curves, some scales at a time; stopped between two forwards, what is there stays."""

    def progress(found: DoseResponse, done: int, total: int) -> None:
        control.report(ev.DoseMeasured(control.id, safe_response(found), done, total))
        control.progress("scales", done, total, "scales")

    questions = _questions(job.questions)
    control.progress("scales", 0, len(job.scales), "scales")
    probe = probe_of(job, context)
    with stoppable(context, control) as model:
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
            questions=questions,
            progress=progress,
        )
    yield from ()


def find_scale(control: Control, job: jobs.FindScale, context: Context) -> Iterator[ev.Event]:
    """The search, batch of scales by batch; stopped between two forwards."""

    def progress(tried: dict[float, float]) -> None:
        control.report(ev.ScalesTried(control.id, tuple(sorted(tried.items()))))
        control.progress("scales", len(tried), 0, "scales")

    questions = _questions(job.questions)
    control.progress("scales", 0, 0, "scales")
    with stoppable(context, control) as model:
        search = find(model, job.interventions, job.quantity, job.target, questions=questions, progress=progress)
    yield ev.ScaleFound(control.id, search)


def _questions(path: str) -> tuple[Question, ...]:
    """The questions of a file; none where no file is named."""
    return read_questions(path) if path else ()


@contextmanager
def stoppable(context: Context, control: Control) -> Iterator[LensModel]:
    """The model, asked between the forwards of a measure whether to stop."""
    model = context.need_model()
    before, model.registry.between = model.registry.between, control.check
    try:
        yield model
    finally:
        model.registry.between = before


def safe_response(response: DoseResponse) -> DoseResponse:
    """The response with its texts made safe to show."""
    points = tuple(replace(point, text=sanitise(point.text)) for point in response.points)
    return replace(response, points=points, baseline_text=sanitise(response.baseline_text))


def probe_of(job: jobs.MeasureDose | jobs.ComparePrompts, context: Context) -> FeatureProbe | None:
    """The feature that is read back from what is written; none where the job names none or its SAE reads elsewhere."""
    if not job.sae:
        return None
    sae = open_sae(job.sae, context)
    if sae.info.layer < 0 or not sae.info.site or sae.info.is_transcoder:
        return None
    return FeatureProbe(sae, job.feature, sae.info.layer, sae.info.site)
