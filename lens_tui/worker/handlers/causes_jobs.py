"""Which part did it: patches, traces, and the direction that a patch adds."""

from __future__ import annotations

from collections.abc import Iterator

from lens_tui.records.patch_plan import PatchFound

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context
from .vector_jobs import made, stoppable


def patch(control: Control, job: jobs.Patch, context: Context) -> Iterator[ev.Event]:
    """The grid or trace, told after each batch; stopped between two forwards, what is there stays."""
    from lens_tui.tasks.causes import answer

    def progress(done: int, total: int) -> None:
        control.progress("patches", done, total)

    def partial(found: PatchFound) -> None:
        control.report(ev.Patched(control.id, found, whole=False))

    control.progress("patches")
    with stoppable(context, control) as model:
        found = answer(model, job.plan, progress=progress, partial=partial)
    yield ev.Patched(control.id, found)


def from_patch(control: Control, job: jobs.VectorFromPatch, context: Context) -> Iterator[ev.Event]:
    """The direction from the corrupted to the clean activation."""
    from lens_tui.tasks.causes import direction_of

    vector = direction_of(context.need_model(), job.plan, job.layer, job.column, job.name)
    yield made(control, vector, context)
