"""The vectors of a bench as they are: what a run needs of them, and no more.

What a vector promotes and what its scales are read against takes forwards; a run that was asked for need not wait for
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SteeringVector
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import load_one
from lens_tui.records.vector_sets import load_vector_set
from lens_tui.tasks.knowledge import index_of, largest_known

from .. import events as ev
from .. import jobs
from . import Context
from .load_jobs import open_sae

if TYPE_CHECKING:
    from ..thread import Control


def bare(control: Control, job: jobs.BareVectors, context: Context) -> Iterator[ev.Event]:
    """Vector by vector."""
    for one in job.of:
        if isinstance(one, jobs.VectorFromFile):
            vector, rest = of_file(one, context)
            yield ev.VectorMade(control.id, vector, rest=rest)
        else:
            yield ev.VectorMade(control.id, _of_feature(one, context))


def _of_feature(job: jobs.VectorFromFeature, context: Context) -> SteeringVector:
    """A feature's decoder direction, named by its number."""
    sae = open_sae(job.sae, context)
    largest = largest_known(sae.info, job.feature, index_of(sae.info))
    return replace(sae.vector(job.feature, max_activation=largest), name=f"feature {job.feature}")


def of_file(job: jobs.VectorFromFile, context: Context) -> tuple[SteeringVector, tuple[SteeringVector, ...]]:
    """A vector someone saved, or the first of a set of them and the rest, if it is as wide as the residual stream."""
    model, file = context.need_model(), expanded(job.path)
    shape: dict[str, Any] = {"d_model": model.d_model, "n_layers": model.n_layers}
    try:
        found = load_vector_set(file, **shape) if file.is_dir() else (load_one(file, layer=job.layer, **shape),)
    except LensError as several:
        if job.layer is not None or file.is_dir():
            raise
        try:
            found = load_vector_set(file, **shape)
        except LensError:
            raise several from None
    first, *rest = (replace(vector, name=one_line(vector.name, 60)) for vector in found)
    if rest:
        first = replace(first, name=one_line(file.name, 60))
    return first, tuple(rest)
