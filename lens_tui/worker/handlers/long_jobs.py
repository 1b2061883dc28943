"""The long jobs: a text indexed, an SAE or transcoders trained. Between two forwards they give way, and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line
from lens_tui.sae.index.index_reader import FeatureIndex
from lens_tui.sae.index.index_settings import IndexSettings
from lens_tui.tasks.index import index_text as make_index
from lens_tui.tasks.text_source import text_source
from lens_tui.tasks.train import MLP, small_run, train_sae, trained_folder
from lens_tui.tasks.transcoders import train_transcoders

from .. import events as ev
from .. import jobs
from ..thread import Control, Stopped
from . import Context
from .load_jobs import open_sae

if TYPE_CHECKING:
    from lens_tui.records.training import TrainProgress, TrainReport
    from lens_tui.sae.index.build import IndexProgress
    from lens_tui.tasks.transcoders import ReplacedLoss


def asked(control: Control) -> Callable[[], bool]:
    """Whether the user wants no more. What may not wait is done first; nothing is raised, so that work is saved."""

    def should_stop() -> bool:
        try:
            control.check()
        except Stopped:
            return True
        return False

    return should_stop


def index_text(control: Control, job: jobs.IndexText, context: Context) -> Iterator[ev.Event]:
    """The verb's call: the same folder and the same numbers."""
    model = context.need_model()
    if not job.saes:
        raise LensError("No SAE is named to index the text for.", "Load one first.")
    saes = [open_sae(name, context) for name in job.saes]

    def on_progress(progress: IndexProgress) -> None:
        control.report(ev.Progress(control.id, *_index_stage(progress)))

    control.progress("reading the text")
    result = make_index(
        model, saes, text_source(job.text), settings=IndexSettings(full=job.full),
        max_tokens=job.max_tokens or None, progress=on_progress, should_stop=asked(control),
    )  # fmt: skip
    if not result.stopped:
        ids, folders = tuple(sae.info.id for sae in saes), tuple(map(str, result.indexes))
        yield ev.TextIndexed(control.id, ids, folders, FeatureIndex(result.indexes[0]).n_counted)


def _index_stage(progress: IndexProgress) -> tuple[str, int, int, str]:
    match progress.stage:
        case "tokens":
            return "reading the text", progress.block, progress.n_blocks, ""
        case "tables":
            return "token tables", progress.block, progress.n_blocks, "features"
        case "read":
            total = progress.total_tokens
            return "indexing", total * progress.block // max(progress.n_blocks, 1), total, "tokens"
        case _:
            return "writing the index", 0, 0, ""


def train(control: Control, job: jobs.TrainSAE, context: Context) -> Iterator[ev.Event]:
    """The verb's call with its settings, folder and numbers."""
    model = context.need_model()
    layers = tuple(sorted({model.registry.decoder.index(layer) for layer in job.layers}))
    if len(layers) > 1 and job.kind != "transcoder":
        raise LensError("Several layers at once are for transcoders.", "Name one layer for an SAE.")
    read = MLP[0] if job.kind == "transcoder" else job.site
    width = job.width or 16 * model.registry.sites.point(layers[0], read).width
    config = small_run(
        kind=job.kind, skip=job.skip, architecture=job.architecture, width=width, k=job.k, tokens=job.tokens
    )
    out, text = trained_folder(model.info.name, config, layers, job.site), text_source(job.text)

    def on_progress(layer: int, progress: TrainProgress) -> None:
        control.report(ev.TrainingAt(control.id, layer, progress))
        control.report(ev.Progress(control.id, *_train_stage(progress, layers.index(layer), len(layers), config.batch)))

    control.progress("reading the text")
    options: dict[str, Any] = {"should_stop": asked(control)}
    if len(layers) > 1:
        made = train_transcoders(model, text, out, config, layers, progress=on_progress, **options)
        reports, loss = made.reports, made.loss
        stopped = made.stopped
    else:
        (layer,) = layers
        report = train_sae(
            model, text, out, config, layer=layer, site=job.site, progress=lambda p: on_progress(layer, p), **options
        )
        reports, loss, stopped = (report,), None, report.stopped
    if not stopped:
        yield ev.SAETrained(control.id, tuple(report.folder for report in reports), _sentence(reports, loss))


def _train_stage(progress: TrainProgress, done: int, layers: int, batch: int) -> tuple[str, int, int, str]:
    if progress.stage == "read":
        return "reading the text", progress.tokens, 0, "tokens"
    of_layer = f" {done + 1} of {layers}" if layers > 1 else ""
    if progress.wanted:
        return f"reading activations{of_layer}", progress.taken, progress.wanted, "tokens"
    stages = {"train": "training", "evaluate": "measuring", "prepare": "preparing", "save": "saving"}
    return f"{stages.get(progress.stage, progress.stage)}{of_layer}", progress.tokens, progress.steps * batch, "tokens"


def _sentence(reports: tuple[TrainReport, ...], loss: ReplacedLoss | None) -> str:
    figures = [f"L0 {report.final.l0:.1f}, FVU {report.final.fvu:.3f}" for report in reports if report.final]
    if loss is not None:
        return (
            f"{len(reports)} transcoders; all MLPs replaced: {loss.every:.3f} nats a token, {loss.clean:.3f} as it is"
        )
    recovered = reports[0].final.loss_recovered if reports[0].final else None
    end = "" if recovered is None else f", {recovered:.3f} of the loss recovered"
    return one_line(f"{figures[0] if figures else 'done'}{end}", 200)
