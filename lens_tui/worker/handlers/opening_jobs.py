"""What comes with a model behind its weights: the vectors of a bench as they are, and an SAE with whether it fits.

What a vector promotes and what its scales are read against takes forwards; a run that was asked for need not wait for
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lens_tui import demo
from lens_tui.records import LensError, SAEInfo, SteeringVector
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import load_one
from lens_tui.records.vector_sets import load_vector_set
from lens_tui.tasks.knowledge import index_of, largest_known
from lens_tui.tasks.train import check_sae

from .. import events as ev
from .. import jobs
from . import Context
from .load_jobs import open_sae

if TYPE_CHECKING:
    from lens_tui.sae.load_sae import SAE

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


def load_sae(control: Control, job: jobs.LoadSAE, context: Context) -> Iterator[ev.Event]:
    """Load an SAE that fits the model by its shape, then measure whether it fits by its numbers."""
    control.progress("sae")
    sae = open_sae(job.path, context, lambda done, total: control.progress("download", done, total, "bytes"))
    yield ev.SAELoaded(control.id, sae.info)
    if job.check and not _is_bundled(sae.info, context):
        control.progress("fit")
        yield from _fit(control, sae, context)


def _fit(control: Control, sae: SAE, context: Context) -> Iterator[ev.Event]:
    name = one_line(sae.info.name, 60)
    try:
        report = check_sae(context.need_model(), sae)
    except LensError as error:  # the SAE is loaded all the same: not knowing is not a reason to refuse it
        yield ev.Notice(control.id, f"Whether {name} fits could not be measured: {one_line(error.message)}")
        return
    yield ev.SAEChecked(control.id, sae.info.id, report)
    if not report.fits:
        hint = ""
        if report.better is not None and report.declared is None:
            hint = f"To use it there add @{report.better[0]}:{report.better[1]} to its path."
        elif report.better is not None:
            hint = "It may be of another model, or its files say the wrong place."
        yield ev.Notice(control.id, f"{name}: {one_line(report.sentence, 300)}", hint)


def _is_bundled(info: SAEInfo, context: Context) -> bool:
    """Whether SAE and model came together, measured when they were made."""
    model = context.need_model().info
    paths = {str(path) for path in demo.sae_paths().values()}
    return info.path in paths and model.path == str(demo.model_path())
