"""The verbs on whole SAEs: ``train-sae``, ``index``, ``index-merge``, ``check-sae``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records.errors import LensError
from lens_tui.records.remote import OutFolder, is_remote, without_password
from lens_tui.records.wording import many
from lens_tui.tasks.cluster import Cluster
from lens_tui.tasks.cluster_index import index_on_cluster
from lens_tui.tasks.index import index_text, merge_index
from lens_tui.tui.format import count, duration, figure

from .output import Meter, interruptible, note, print_json, say, sentences
from .sources import Json, Model, SAEName, TextKey, asked_adapter, open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport
    from lens_tui.sae.index.build import BuildResult, IndexProgress

verbs = typer.Typer()

TrainText = Annotated[str, typer.Argument(help="A .txt or .jsonl file, a folder of them or of `capture`, an address "
                                               "such as s3://..., or bundled.")]  # fmt: skip
Text = Annotated[
    str, typer.Argument(help="A .txt or .jsonl file, a folder of them, an address such as s3://..., or bundled.")
]
Context = Annotated[int, typer.Option(min=8, help="Window length in tokens.")]
Rows = Annotated[int, typer.Option(min=1, help="Windows per forward pass; more is faster on a GPU.")]
MaxTokens = Annotated[
    int,
    typer.Option(
        min=0, help="Take no more documents of the text once there are this many tokens (0: all that is needed)."
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Share the work out among so many processes of a Ray cluster (0: do it here).")
]
RayAddress = Annotated[
    str, typer.Option("--ray", help="The Ray cluster: auto, or host:port. Without it one is started on this machine.")
]
WorkerCores = Annotated[int, typer.Option(min=1, help="Cores, and threads, of each worker.")]
WorkerGPUs = Annotated[float, typer.Option(min=0.0, help="GPUs of each worker.")]
SAEFolder = Annotated[
    str, typer.Option("--out", "-o", help="The SAE's folder, or its address; a run in it is resumed.")
]
IndexFolder = Annotated[
    str, typer.Option("--out", "-o", help="The folder of indexes, or its address (default: where the app looks).")
]


@verbs.command("train-sae")
@sentences
def train_sae(
    text: TrainText,
    layer: Annotated[
        str, typer.Option("--layer", "-l", help="The layer to read, from 0; -1 is the last. Transcoders: 0-3,6 or all.")
    ],
    model: Model = "demo",
    kind: Annotated[str, typer.Option(help="sae, or transcoder: from an MLP's input to its output.")] = "sae",
    skip: Annotated[bool, typer.Option("--skip", help="Give a transcoder a linear skip connection.")] = False,
    site: Annotated[str, typer.Option(help="The tensor to read, such as resid_pre or mlp_out.")] = "resid_post",
    out: SAEFolder = "",
    arch: Annotated[str, typer.Option(help="batchtopk, topk or jumprelu.")] = "batchtopk",
    width: Annotated[int, typer.Option(min=0, help="Features (0: 16 times the width of what is read).")] = 0,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Active features per token to aim for (L0).")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to train on.")] = 50_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 4096,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 4e-4,
    normalize: Annotated[str, typer.Option(help="centered, norm or none; folded in at the end.")] = "centered",
    matryoshka: Annotated[str, typer.Option(help="Prefix widths, for example 512,2048.")] = "",
    context: Context = 256,
    rows: Rows = 32,
    max_tokens: MaxTokens = 0,
    held_out: Annotated[int, typer.Option(min=0, help="Hold out every n-th document for measuring (0: none).")] = 40,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Steps between measurements (0: only at the end).")] = 0,
    checkpoint: Annotated[float, typer.Option(min=0.0, help="Seconds between checkpoints.")] = 60.0,
    text_key: TextKey = "text",
    seed: Annotated[int, typer.Option(help="The same seed gives the same SAE again.")] = 0,
    json: Json = False,
) -> None:
    """Train an SAE, or transcoders of MLPs, on a text with a model.

    ctrl+c saves a checkpoint, and the same command continues from it.
    """
    from lens_tui.records.training import read_layers
    from lens_tui.tasks.captured import is_capture
    from lens_tui.tasks.text_source import text_source
    from lens_tui.tasks.train import MLP, small_run, trained_folder

    with open_model(model) as lens, interruptible() as asked, Meter() as meter:
        source, where = text_source(text), read_layers(layer, lens.n_layers)
        read = MLP[0] if kind == "transcoder" else site
        width = width or 16 * lens.registry.sites.point(where[0], read).width
        config = small_run(
            kind=kind, skip=skip, architecture=arch, width=width, k=k, tokens=tokens, batch=batch,
            learning_rate=learning_rate, normalize=normalize, matryoshka=prefixes(matryoshka),
            evaluate_every=evaluate_every, seed=seed,
        )  # fmt: skip
        folder = out or trained_folder(lens.info.name, config, where, site)
        options: dict[str, Any] = {
            "context": context, "rows": rows, "held_out": held_out, "max_tokens": max_tokens or None,
            "text_key": text_key, "checkpoint_seconds": checkpoint, "should_stop": asked,
        }  # fmt: skip
        if len(where) > 1 and not is_capture(source):
            _train_set(lens, source, folder, config, where, meter, asked, options, as_json=json)
            return
        report = _train_one(lens, source, folder, config, where, site, meter, options)
    _finish_training(lens, report, folder, asked.status, as_json=json)


def _train_one(
    lens: LensModel,
    text: Path | str,
    out: Path | str,
    config: TrainConfig,
    layers: Sequence[int],
    site: str,
    meter: Meter,
    options: Mapping[str, Any],
) -> TrainReport:
    """Train at one layer, on a text or on what `capture` wrote, which has its own windows and tokens."""
    from lens_tui.tasks.captured import is_capture, train_on_capture
    from lens_tui.tasks.train import train_sae as train

    def said(progress: TrainProgress) -> None:
        meter.say(*_training_line(progress))

    if not is_capture(text):
        return train(lens, text, out, config, layer=layers[0], site=site, progress=said, **options)
    if len(layers) > 1:
        raise LensError("Of a capture one layer is trained at a time.", "Name one layer.")
    used = {name: options[name] for name in ("rows", "held_out", "checkpoint_seconds", "should_stop")}
    return train_on_capture(lens, text, out, config, layer=layers[0], site=site, progress=said, **used)


def _train_set(
    lens: LensModel,
    text: Path | str,
    out: Path | str,
    config: TrainConfig,
    layers: Sequence[int],
    meter: Meter,
    asked: Any,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Transcoders of several layers, and what is lost with all of them in place."""
    from lens_tui.tasks.transcoders import train_transcoders

    if config.kind != "transcoder":
        raise LensError("Several layers at once are for transcoders.", "Add --kind transcoder, or name one layer.")

    def said(layer: int, progress: TrainProgress) -> None:
        stage, facts, share = _training_line(progress)
        meter.say(f"layer {layer}: {stage}", facts, share)

    made = train_transcoders(lens, text, out, config, layers, progress=said, **options)
    if as_json:
        replaced = None if made.loss is None else {**asdict(made.loss), "recovered": made.loss.recovered}
        reports = [{**asdict(report), "loss_recovered": _recovered(report)} for report in made.reports]
        print_json(
            {"model": lens.info.name, "folder": without_password(out), "layers": reports, "replaced_loss": replaced}
        )
    if made.loss is None:
        _say_stopped(made.reports[-1], f"{out}/layer_{made.reports[-1].layer}")
        raise SystemExit(asked.status)
    if not as_json:
        for report in made.reports:
            _print_training(report)
        loss = made.loss
        share = "" if loss.recovered is None else f", {loss.recovered:.4f} recovered"
        say(f"all {many(len(loss.layers), 'MLP')} replaced: {loss.every:.3f} nats a token ({loss.clean:.3f} as it is, "
            f"{loss.zero:.3f} zeroed{share})")  # fmt: skip
        say(f"as circuit-tracer reads a set: {without_password(out)}/circuit_tracer")


def _finish_training(lens: LensModel, report: TrainReport, out: Path | str, status: int, *, as_json: bool) -> None:
    """Print the report; a run that was stopped ends the process with ``status``."""
    if as_json:
        print_json({"model": lens.info.name, **asdict(report), "loss_recovered": _recovered(report)})
    if report.stopped:
        _say_stopped(report, out)
        raise SystemExit(status)
    if not as_json:
        _print_training(report)


def _recovered(report: TrainReport) -> float | None:
    return report.final.loss_recovered if report.final else None


def _say_stopped(report: TrainReport, out: Path | str) -> None:
    from lens_tui.sae.training.checkpoint import FILE

    kept = OutFolder(out).has(f"training/{FILE}")
    what = (
        f"the checkpoint is in {without_password(out)}. Run the same command to continue."
        if kept
        else "there was nothing to keep yet."
    )
    note(f"mlx-lens-tui: stopped after step {report.step} of {report.config.steps}; {what}")


def prefixes(text: str) -> tuple[int, ...]:
    """``512,2048`` as numbers. Raises :class:`LensError` for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise LensError(f"The prefixes {text!r} are not whole numbers.", "Write them as 512,2048.") from None


def _training_line(progress: TrainProgress) -> tuple[str, str, float | None]:
    if progress.stage == "read":
        return "reading the text", "", None
    if progress.wanted:
        there = f"{count(progress.taken)} of {count(progress.wanted)} tokens"
        return "reading activations", there, progress.taken / progress.wanted
    if progress.stage != "train" or not progress.tokens_per_s:
        return f"{progress.stage}", f"step {progress.step} of {progress.steps}", None
    facts = [
        f"step {progress.step} of {progress.steps}",
        f"{count(progress.tokens)} tokens",
        f"{count(progress.tokens_per_s)} tokens/s",
        f"{duration(progress.seconds_left)} left",
        *progress.qualities,
    ]
    return "train", " · ".join(facts), progress.step / progress.steps


def _print_training(report: TrainReport) -> None:
    config = report.config
    what = "skip transcoder" if config.skip else "transcoder" if report.site_out else "SAE"
    to = f" to {report.site_out}" if report.site_out else ""
    say(f"{config.architecture} {what}, {config.width} features, {report.site}{to} of layer {report.layer}")
    say(f"trained on {count(report.tokens)} tokens in {duration(report.seconds)}")
    if report.final is not None:
        for line in _figures(report.final):
            say(line)
    say(f"written to {report.folder}")


def _figures(final: Evaluation) -> list[str]:
    lines = [
        f"L0              {final.l0:.1f}",
        f"FVU             {final.fvu:.4f}",
        f"dead            {final.dead:.1%}  (silent on the {final.n_tokens} tokens measured on)",
        f"dense           {final.dense:.1%}  (active on more than 10 % of them)",
    ]
    if final.loss_clean is not None and final.loss_spliced is not None and final.loss_zero is not None:
        recovered = final.loss_recovered
        share = "" if recovered is None else f"{recovered:.4f}  "
        lines.append(
            f"loss recovered  {share}({final.loss_clean:.3f} nats a token, {final.loss_spliced:.3f} spliced, "
            f"{final.loss_zero:.3f} zeroed)"
        )
    return lines


@verbs.command()
@sentences
def index(
    text: Text,
    model: Model = "demo",
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", "-s", help="An SAE: a file, a folder, a bundled name or one trained here; repeatable."),
    ] = None,
    out: IndexFolder = "",
    full: Annotated[bool, typer.Option("--full", help="Keep every activation, for co-active features.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: only part i of n, counted from 0; see index-merge.")] = "",
    top_k: Annotated[int, typer.Option(min=1, help="Examples kept for a feature.")] = 20,
    max_active: Annotated[int, typer.Option(min=1, help="Features of a token that are read, strongest first.")] = 256,
    include_special: Annotated[
        bool, typer.Option("--include-special", help="Count BOS and other special tokens.")
    ] = False,
    context: Context = 256,
    rows: Rows = 32,
    max_tokens: MaxTokens = 0,
    text_key: TextKey = "text",
    seed: Annotated[int, typer.Option(help="Which random examples are kept.")] = 0,
    workers: Workers = 0,
    ray: RayAddress = "",
    worker_cores: WorkerCores = 1,
    worker_gpus: WorkerGPUs = 0.0,
    json: Json = False,
) -> None:
    """Keep what every feature does in a text.

    ctrl+c saves what was read, and the same command continues from there.
    """
    from lens_tui.sae.index.index_settings import IndexSettings
    from lens_tui.tasks.text_source import text_source

    cluster = cluster_of(workers, ray, worker_cores, worker_gpus)
    if top_k > 10_000:
        raise LensError(f"{top_k} examples per feature were asked for.", "At most 10000 are kept.")
    settings = IndexSettings(top_k=top_k, max_active=max_active, include_special=include_special, full=full, seed=seed)
    part, source = read_shard(shard), text_source(text)
    with open_model(model) as lens, interruptible() as asked, Meter() as meter:
        opened = [open_sae(name, model) for name in sae or [""]]
        options: dict[str, Any] = {
            "settings": settings, "context": context, "rows": rows, "max_tokens": max_tokens or None,
            "text_key": text_key, "should_stop": asked,
            "progress": lambda progress: meter.say(*_index_line(progress)),
        }  # fmt: skip
        result = _indexed(cluster, part, lens, opened, source, out or None, **options)
    facts = {"model": lens.info.name, **_facts(result, out)}
    if json:
        print_json(facts)
    if result.stopped:
        kept = ", ".join(facts["parts"])
        note(f"mlx-lens-tui: stopped; what was read is in {kept}. Run the same command to continue.")
        raise SystemExit(asked.status)
    if not json:
        _print_index(facts)


def cluster_of(workers: int, address: str, cores: int, gpus: float) -> Cluster | None:
    """The cluster that a verb is to use, if any is asked for."""
    if not workers:
        if address:
            raise LensError("Nothing says how many workers of the cluster are wanted.", "Add --workers N.")
        return None

    return Cluster(workers, address, cores, gpus)


def _indexed(cluster: Cluster | None, part: tuple[int, int], *given: Any, **options: Any) -> BuildResult:
    """The index, or one shard, made in this process, or all of it on the workers of a cluster."""
    if cluster is None:
        return index_text(*given, shard=part, **options)
    if part != (0, 1):
        raise LensError("The workers of a cluster make every shard.", "Leave --shard or --workers out.")
    return index_on_cluster(*given, cluster=cluster, adapter=asked_adapter.get(), **options)


@verbs.command("index-merge")
@sentences
def index_merge(
    parts: Annotated[list[str], typer.Argument(help="The folders left by each `index --shard`, or their addresses.")],
    model: Model = "demo",
    sae: SAEName = "",
    out: IndexFolder = "",
    json: Json = False,
) -> None:
    """Make one index of all shards of a pass."""
    from lens_tui.sae.index.build import BuildResult

    with open_model(model) as lens:
        path = merge_index(lens, open_sae(sae, model), parts, out or None)
        facts = {"model": lens.info.name, **_facts(BuildResult(False, (path,)), out)}
    print_json(facts) if json else _print_index(facts)


def read_shard(text: str) -> tuple[int, int]:
    """``2/8`` as numbers, the whole for nothing. Raises :class:`LensError` for anything else."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise LensError(f"The shard {text!r} cannot be read.", "Write i/n with i from 0 to n - 1, for example 0/4.")
    return int(match[1]), int(match[2])


def _index_line(progress: IndexProgress) -> tuple[str, str, float | None]:
    if progress.stage != "read":
        return (
            {"tokens": "reading the text", "tables": "token tables"}.get(progress.stage, "writing the index"),
            "",
            None,
        )
    speed = f"{count(progress.tokens_per_s)} tokens/s · {duration(progress.seconds_left)} left"
    done = f"block {progress.block} of {progress.n_blocks} · {count(progress.n_tokens)} tokens · {speed}"
    return "read", done, progress.block / progress.n_blocks


def _facts(result: BuildResult, out: str) -> dict[str, Any]:
    from lens_tui.sae.index.index_reader import FeatureIndex

    def named(path: Path) -> str:
        return f"{without_password(out)}/{path.name}" if is_remote(out) else str(path)

    indexes = []
    for path in result.indexes:
        opened = FeatureIndex(path)
        indexes.append(
            {
                "path": named(path),
                "identity": asdict(opened.identity),
                "n_tokens": opened.n_tokens,
                "counted_tokens": opened.n_counted,
                "active_features": int((opened.count > 0).sum()),
                "full": opened.full,
                "notes": list(opened.notes),
            }
        )
    return {"stopped": result.stopped, "indexes": indexes, "parts": [named(part) for part in result.parts]}


def _print_index(facts: Mapping[str, Any]) -> None:
    for item in facts["indexes"]:
        identity = item["identity"]
        share = f"{item['active_features']} of {identity['width']} features were active"
        say(f"{identity['site']} of layer {identity['layer']}: {item['counted_tokens']} tokens counted, {share}")
        for line in item["notes"]:
            say(f"  {line}")
        say(f"written to {item['path']}")
    for part in facts["parts"]:
        say(f"shard written to {part}")


@verbs.command("check-sae")
@sentences
def check_sae(
    text: Annotated[
        str, typer.Argument(help="A text to measure on; '-' reads standard input; a built-in one if left out.")
    ] = "",
    model: Model = "demo",
    sae: SAEName = "",
    json: Json = False,
) -> None:
    """Measure whether an SAE fits the model.

    L0 and FVU on each tensor it could be for, beside the declared; the status is 1 if it does not fit.
    """
    from lens_tui.tasks.train import FIT_TEXT, check_sae

    words = read_text(text) if text else FIT_TEXT
    with open_model(model) as lens:
        opened = open_sae(sae, model)
        report = check_sae(lens, opened, words)
    facts = {
        "model": lens.info.name,
        "sae": opened.info.name,
        "sae_id": opened.info.id,
        "architecture": opened.info.architecture,
        "format": opened.info.format,
        **asdict(report),
        "fits": report.fits,
        "provenance": dict(opened.info.provenance),
    }
    print_json(facts) if json else _print_fit(facts)
    if not report.fits:
        raise SystemExit(1)


def _print_fit(facts: dict[str, Any]) -> None:
    say(str(facts["sae"]))
    say(f"{facts['sentence']}")
    say(f"{'layer':>6}  {'site':<16}{'L0':>8}{'FVU':>8}")
    for row in facts["rows"]:
        layer, site = row["place"]
        mark = "declared" if row["place"] == facts["declared"] else "better" if row["place"] == facts["better"] else ""
        say(f"{layer:>6}  {site:<16}{row['l0']:>8.1f}{figure(row['fvu'], 3):>8}  {mark}".rstrip())
    declared = [
        f"{name} {value:.3g}"
        for name, value in (("L0", facts["declared_l0"]), ("FVU", facts["declared_fvu"]))
        if value is not None
    ]
    say(f"its maker declares {', '.join(declared) if declared else 'neither L0 nor FVU'}")
