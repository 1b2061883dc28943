"""Load and free models, telling how far it is; which SAEs a model has, and opening one."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from lens_tui.lens.architecture.load_model import load_folder
from lens_tui.lens.architecture.weights import dequantize, evaluate
from lens_tui.lens.model import LensModel
from lens_tui.records import LensError, NotFinite, SAEInfo
from lens_tui.records.hub_fetch import model_from_hub
from lens_tui.records.machine import machine_memory
from lens_tui.sae.load_sae import load_sae as read_sae
from lens_tui.sae.load_sae import sae_info
from lens_tui.tasks.models import (
    ModelEntry,
    check_model,
    list_saes,
    named_sae,
    read_model_folder,
    remember_model,
)

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context, ModelOrigin

if TYPE_CHECKING:
    from lens_tui.lens.architecture.load_model import Loaded
    from lens_tui.sae.load_sae import SAE

_log = logging.getLogger(__name__)


def load_model(control: Control, job: jobs.LoadModel, context: Context) -> Iterator[ev.Event]:
    """Find it, fetch it if need be, lay it out lazily, then read the weights piece by piece."""
    with _uncollected(context):
        yield from _load(control, job, context)


@contextmanager
def _uncollected(context: Context) -> Iterator[None]:
    """No collection of garbage while modules and weights come in: nearly all of it stays, and is looked at each time.

    What is there afterwards is taken out of later collections, which would hold up the screen and the tokens alike;
    :meth:`Context.forget` puts it back. What a load that failed has left is collected before the next one.
    """
    if context.littered:
        gc.collect()
    collects, context.littered = gc.isenabled(), True
    gc.disable()
    try:
        yield
        gc.freeze()
        context.littered = False
    finally:
        if collects:
            gc.enable()


def _load(control: Control, job: jobs.LoadModel, context: Context) -> Iterator[ev.Event]:
    control.progress("config")
    entry = check_model(job.model)
    folder = _local_folder(entry, control)
    entry = read_model_folder(folder, model_id=entry.id, source=entry.source)
    if entry.problem:
        raise LensError(f"{entry.name} cannot be loaded.", entry.problem)
    _check_memory(entry, force=job.force)

    control.progress("tokenizer")
    found = load_folder(folder, label=entry.name, lazy=True)  # no code that comes with a model is run
    # What can be known of a model without its weights is known. They are never in memory beside those of the one
    # before, which comes back from its files where this one proves to be of no use.
    before = context.set_aside()
    origin = ModelOrigin(entry, folder, job.dequantize)
    try:
        with _meanwhile():
            lens = _read(origin, found, control.progress)
    except BaseException as error:
        del found
        _let_go(error)
        if before is not None:
            _come_back(before, control, context)
        raise
    del found
    context.free()
    context.model, context.origin = lens, origin
    saes = _known_saes(entry, context)
    _remember(entry)
    yield ev.ModelLoaded(control.id, lens.info, saes)


_NEXT = ("opening_jobs", "compare_jobs")
"""The handlers of what comes after a load: the vectors of a bench, an SAE, a run."""


@contextmanager
def _meanwhile() -> Iterator[None]:
    """Inside, another thread imports what comes next: reading and trying weights leaves most of Python's time to it."""
    thread = Thread(target=_import_next, name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_next() -> None:
    try:
        for name in _NEXT:
            import_module(f".{name}", __package__)
    except Exception:  # the job that needs it will say so
        _log.warning("what comes next could not be imported", exc_info=True)


def _read(origin: ModelOrigin, found: Loaded, progress: Callable[[str, int, int, str], None]) -> LensModel:
    """A model that is laid out lazily, its weights read and tried."""
    held = dequantize(found.model, origin.dequantize)
    for done, total in evaluate(found.model):
        progress("weights", done, total, "bytes")
    progress("warm-up", 0, 0, "")
    lens = _wrap(found, origin.entry, origin.folder)
    lens.info = held.noted(lens.info)
    _warm_up(lens)
    return lens


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error and what led to it came through: they hold the weights."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _come_back(origin: ModelOrigin, control: Control, context: Context) -> None:
    """Load the model before this one again, as it was; without it there is none."""

    def said(stage: str, done: int, total: int, unit: str) -> None:
        # Not by the control: its job may just have been stopped.
        control.report(ev.Progress(control.id, stage, done, total, unit))

    gc.collect()
    try:
        context.model = _read(origin, load_folder(origin.folder, label=origin.entry.name, lazy=True), said)
        context.origin = origin
    except Exception:  # its files are gone, say: what is to be told is why the other one could not be loaded
        _log.warning("%s could not be loaded again", origin.entry.name, exc_info=True)
        context.free()
        control.report(ev.ModelUnloaded(control.id))


def unload_model(control: Control, job: jobs.UnloadModel, context: Context) -> Iterator[ev.Event]:
    """Free the model and its SAEs."""
    context.free()
    yield ev.ModelUnloaded(control.id)


def open_sae(path_or_id: str, context: Context, progress: Callable[[int, int], None] | None = None) -> SAE:
    """The SAE of this path, name or id: the one that is loaded, or loaded now (``progress``: of a download)."""
    known = context.known.get(path_or_id)
    path, layer, site = (known.path, None, None) if known else named_sae(path_or_id)
    for sae_id, sae in context.saes.items():
        if path_or_id == sae_id or (path == sae.info.path and layer in (None, sae.info.layer)):
            return sae
    sae = read_sae(path, layer=layer, site=site, progress=progress)
    _check_fits(sae.info, context)
    context.saes[sae.info.id] = sae
    context.known[sae.info.id] = sae.info
    return sae


def _check_fits(info: SAEInfo, context: Context) -> None:
    model = context.need_model()
    if info.d_model != model.d_model and info.site.startswith("resid"):
        raise LensError(
            f"The SAE {info.name} reads width {info.d_model}; {model.info.name} has {model.d_model}.",
            "Choose one made for this model.",
        )
    if info.layer >= model.n_layers:
        raise LensError(
            f"The SAE {info.name} is for layer {info.layer}; {model.info.name} has layers 0 to {model.n_layers - 1}.",
            "Choose one made for this model.",
        )


def _local_folder(entry: ModelEntry, control: Control) -> Path:
    if entry.source != "hub" and entry.path:
        folder = Path(entry.path)
        if entry.source != "cache" or not entry.problem:
            return folder
    return model_from_hub(
        entry.id,
        progress=lambda done, total: control.report(ev.Progress(control.id, "download", done, total, "bytes")),
        check=control.check,
    )


def _check_memory(entry: ModelEntry, *, force: bool) -> None:
    limit = machine_memory()
    if entry.nbytes > limit and not force:
        raise LensError(
            f"{entry.name} has {entry.nbytes / 1e9:.1f} GB of weights; this machine has {limit / 1e9:.1f} GB for MLX.",
            "Choose a smaller or more quantised version.",
        )


def _wrap(found: Loaded, entry: ModelEntry, folder: Path) -> LensModel:
    return LensModel.from_model(found.model, found.tokenizer, name=entry.id, path=str(folder), window=found.window)


def _warm_up(lens: LensModel) -> None:
    # One short forward: kernels are compiled and caches warm before the user asks, and broken weights are found.
    first = lens.info.bos_token_id or 0
    try:
        lens.loss([first, *(n % lens.info.vocab_size for n in (1, 2))])
    except NotFinite as error:
        where = error.message.partition(": ")[2] or "its losses are not finite."
        raise LensError(
            f"{lens.info.name} gives NaN on its first tokens: {where}",
            "Its weights are damaged, or overflow their precision: convert the model to float32.",
        ) from None


def _known_saes(entry: ModelEntry, context: Context) -> tuple[SAEInfo, ...]:
    """What is known of the SAEs available for this model, whose weights are read only when one is used."""
    known = []
    for found in list_saes(entry.id):
        try:
            info = _read_info(found.path)
            _check_fits(info, context)
        except Exception:  # a model is not refused for a damaged SAE beside it; naming the SAE says what is wrong
            _log.info("the SAE at %s is left out", found.path, exc_info=True)
            continue
        context.known[info.id] = info
        known.append(info)
    return tuple(known)


def _read_info(path: str) -> SAEInfo:
    return sae_info(path)


def _remember(entry: ModelEntry) -> None:
    if entry.source != "demo":
        try:
            remember_model(entry.path if entry.source == "folder" else entry.id)
        except LensError:
            return  # a list of recent models is not worth failing a load for
