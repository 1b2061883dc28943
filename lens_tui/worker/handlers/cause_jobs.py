"""What led to a token: patches between two texts; attribution graphs made, pruned, read, checked and steered by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from lens_tui.lens.graphs.edge_checks import check_nodes, node_vector
from lens_tui.records import LensError, store
from lens_tui.records.cause_plan import GraphFound, GraphPlan, PatchFound
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.graph_file import write_graph
from lens_tui.records.paths import expanded
from lens_tui.tasks.causes import answer, direction_of, keep_cause
from lens_tui.tasks.graphs import answer_graph, open_graph, pruned_anew, same_graph, transcoders_for

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context
from .vector_jobs import stoppable, vector_event

if TYPE_CHECKING:
    from lens_tui.lens.graphs.build_graph import Attribution


_log = logging.getLogger(__name__)
One = TypeVar("One", PatchFound, GraphFound)


def patch(control: Control, job: jobs.Patch, context: Context) -> Iterator[ev.Event]:
    """The grid or trace, told after each batch; stopped between two forwards, what is there stays."""

    def progress(done: int, total: int) -> None:
        control.progress("patches", done, total)

    def partial(found: PatchFound) -> None:
        control.report(ev.Patched(control.id, found, whole=False))

    control.progress("patches")
    with stoppable(context, control) as model:
        found = answer(model, job.plan, progress=progress, partial=partial)
    found, unkept = _kept(context, found)
    yield ev.Patched(control.id, found, unkept=unkept)


def _kept(context: Context, found: One) -> tuple[One, str]:
    """Keep what was found, if anything is kept; it with its number, and why it could not be."""
    if context.history is None:
        return found, ""
    try:
        return keep_cause(context.runs(store.PATIENCE).store, context.need_model().info, found), ""
    except LensError as error:
        _log.warning("what was found is not kept: %s", error)
        return found, f"{error.message} {error.hint}".strip()


def _change(context: Context, found: GraphFound) -> None:
    """Keep a graph as it is now, where it is kept."""
    if context.history is None or not found.kept:
        return
    try:
        CauseStore(context.runs(store.PATIENCE).store).change(found.kept, found)
    except LensError as error:  # what was kept when it was made is still there
        _log.warning("the graph is kept as it was before: %s", error)


def from_patch(control: Control, job: jobs.VectorFromPatch, context: Context) -> Iterator[ev.Event]:
    """The direction from the corrupted to the clean activation."""
    vector = direction_of(context.need_model(), job.plan, job.layer, job.column, job.name)
    yield vector_event(control, vector, context)


def make_graph(control: Control, job: jobs.MakeGraph, context: Context) -> Iterator[ev.Event]:
    """The graph of a plan; stopped between two batches of rows, nothing comes of it."""
    found, unkept = replace(_make(control, job.plan, context)[1], kept=job.kept), ""
    if job.kept:
        _change(context, found)
    else:
        found, unkept = _kept(context, found)
    context.graph_kept = found.kept
    yield ev.GraphMade(control.id, found, unkept)


def prune(control: Control, job: jobs.PruneGraph, context: Context) -> Iterator[ev.Event]:
    """The same graph with more nodes or fewer; features that come in get their words."""
    known, opened = context.graph, context.transcoders
    lens, transcoders = None, None
    if known is not None and opened is not None and same_graph(job.found, known.graph):
        lens, transcoders = context.need_model(), opened[1]
    found = pruned_anew(job.found, job.plan, lens, transcoders)
    _change(context, found)
    yield ev.GraphMade(control.id, found)


def change(control: Control, job: jobs.KeepGraph, context: Context) -> Iterator[ev.Event]:
    """What is kept of a graph has its pins and groups as they are now."""
    _change(context, job.found)
    yield from ()


def read(control: Control, job: jobs.ReadGraph, context: Context) -> Iterator[ev.Event]:
    """A graph of a file."""
    yield ev.GraphMade(control.id, open_graph(job.path))


def write(control: Control, job: jobs.WriteGraph, context: Context) -> Iterator[ev.Event]:
    """The part of a graph that shows, as other tools read it."""
    path = expanded(job.path)
    write_graph(job.graph, path)
    yield ev.GraphWritten(control.id, str(path))


def check(control: Control, job: jobs.CheckNode, context: Context) -> Iterator[ev.Event]:
    """A node changed, and what it acts on measured."""
    attribution = _attribution(control, job.found, context)
    with stoppable(context, control):
        control.progress("checking")
        (found,) = check_nodes(attribution, [job.node], targets=job.targets, factor=job.factor)
    yield ev.NodeChecked(control.id, job.found, found)


def vector(control: Control, job: jobs.VectorFromNode, context: Context) -> Iterator[ev.Event]:
    """What a node adds to the stream."""
    yield vector_event(control, node_vector(_attribution(control, job.found, context), job.node, job.name), context)


def _attribution(control: Control, found: GraphFound, context: Context) -> Attribution:
    """What a graph was made of: kept from when it was made, or made once more."""
    if found.file:
        raise LensError(
            "This graph was read from a file, so that there is nothing here to measure it with.",
            "Make it here from its prompt.",
        )
    model = context.need_model()
    if model.info.name != found.whole.model:
        raise LensError("This graph is of another model.", "Load that one, or make the graph anew.")
    known: Attribution | None = context.graph
    if known is not None and (same_graph(found, known.graph) or 0 != context.graph_kept == found.kept):
        return known
    attribution = _make(control, found.plan, context)[0]
    context.graph_kept = found.kept
    return attribution


def _make(control: Control, plan: GraphPlan, context: Context) -> tuple[Attribution, GraphFound]:
    def opened(done: int, total: int) -> None:
        control.progress("opening transcoders", done, total)

    def rows(done: int, total: int) -> None:
        control.progress("rows", done, total, "rows")

    control.progress("rows")
    with stoppable(context, control) as model:
        if context.transcoders is None or context.transcoders[0] != plan.transcoders:
            context.transcoders = None
            context.transcoders = (plan.transcoders, transcoders_for(model, plan.transcoders, opened))
        context.graph, context.graph_kept = None, 0  # what an older one holds makes room
        attribution, found = answer_graph(model, plan, context.transcoders[1], rows)
    context.graph = attribution
    return attribution, found
