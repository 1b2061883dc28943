"""Readouts of a text (each layer as a distribution, what adds to a logit, where heads look) and patches between two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lens_tui.lens.read.attention import attention_patterns
from lens_tui.lens.read.logits import attribute_logits, logit_lens
from lens_tui.records import LensError
from lens_tui.records.patch_plan import PatchFound
from lens_tui.tasks.causes import answer, direction_of
from lens_tui.tasks.jacobian_lenses import lens_of

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context
from .vector_jobs import stoppable, vector_event

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records import Intervention

Reading = jobs.ReadLens | jobs.ReadParts | jobs.ReadPattern


def read_lens(control: Control, job: jobs.ReadLens, context: Context) -> Iterator[ev.Event]:
    """Every layer's most probable tokens at every token of the text, and the rank of the followed token."""
    model = context.need_model()
    ids = _ids(job, model)
    control.progress("tokens", 0, len(ids), "tokens")

    def said(done: int, total: int) -> None:
        control.progress("tokens", done, total, "tokens")

    through = None
    if job.jacobian:
        through = lens_of(model.info)
    target = None if job.target == "" else job.target
    steering = _steering(job)
    found = logit_lens(
        model, ids, target=target, top_k=job.top_k, interventions=steering, progress=said, through=through
    )
    beside = None
    if through is not None:
        beside = logit_lens(model, ids, layers=found.layers, target=target, top_k=1, interventions=steering)
    yield ev.LensRead(control.id, found, beside)


def read_parts(control: Control, job: jobs.ReadParts, context: Context) -> Iterator[ev.Event]:
    """What each layer's attention, its heads and its MLP add to the logit."""
    model = context.need_model()
    found = attribute_logits(
        model, _ids(job, model), job.target, positions=[job.position], interventions=_steering(job), heads=True
    )
    yield ev.PartsRead(control.id, found)


def read_pattern(control: Control, job: jobs.ReadPattern, context: Context) -> Iterator[ev.Event]:
    """The attention of one layer."""
    model = context.need_model()
    (found,) = attention_patterns(model, _ids(job, model), job.layer, interventions=_steering(job))
    yield ev.PatternRead(control.id, found)


def patch(control: Control, job: jobs.Patch, context: Context) -> Iterator[ev.Event]:
    """The grid or trace, told after each batch; stopped between two forwards, what is there stays."""

    def progress(done: int, total: int) -> None:
        control.progress("patches", done, total)

    def partial(found: PatchFound) -> None:
        control.report(ev.Patched(control.id, found, whole=False))

    control.progress("patches")
    with stoppable(context, control) as model:
        found = answer(model, job.plan, progress=progress, partial=partial)
    found, unkept = context.keep_cause(found)
    yield ev.Patched(control.id, found, unkept=unkept)


def from_patch(control: Control, job: jobs.VectorFromPatch, context: Context) -> Iterator[ev.Event]:
    """The direction from the corrupted to the clean activation."""
    vector = direction_of(context.need_model(), job.plan, job.layer, job.column, job.name)
    yield vector_event(control, vector, context)


def _ids(job: Reading, model: LensModel) -> tuple[int, ...]:
    ids = tuple(model.tokens.check(job.token_ids) if job.token_ids else model.tokens.encode(job.text))
    if len(ids) > jobs.LENS_TOKENS:
        raise LensError(
            f"The text has {len(ids)} tokens; the lens reads up to {jobs.LENS_TOKENS}.", "Choose a shorter text."
        )
    return ids


def _steering(job: Reading) -> tuple[Intervention, ...]:
    return job.arm.interventions if job.arm else ()
