"""``mlx-lens-tui check-sae``: does an SAE fit the model it is put on?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records.errors import LensError

from .long_work import Meter, count, duration, interruptible
from .output import note, print_json, say
from .sources import open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport
    from lens_tui.sae.index import BuildResult, IndexProgress


def check(text: str, *, model: str, sae: str, as_json: bool) -> None:
    """Measure and print; the exit status is 1 if the SAE does not fit where it says it belongs."""
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
    print_json(facts) if as_json else _print_fit(facts)
    if not report.fits:
        raise SystemExit(1)


def _print_fit(facts: dict[str, Any]) -> None:
    say(f"{facts['sentence']}")
    say(f"{'layer':>6}  {'site':<16}{'L0':>8}{'FVU':>8}")
    for row in facts["rows"]:
        layer, site = row["place"]
        mark = "declared" if row["place"] == facts["declared"] else "better" if row["place"] == facts["better"] else ""
        fvu = "-" if row["fvu"] is None else f"{row['fvu']:.3f}"
        say(f"{layer:>6}  {site:<16}{row['l0']:>8.1f}{fvu:>8}  {mark}".rstrip())
    declared = [
        f"{name} {value:.3g}"
        for name, value in (("L0", facts["declared_l0"]), ("FVU", facts["declared_fvu"]))
        if value is not None
    ]
    say(f"its maker declares {', '.join(declared) if declared else 'neither L0 nor FVU'}")


@dataclass(frozen=True, slots=True)
class Reading:
    """How the text is read: window length, windows a batch, most tokens (``None``: all), the JSONL key."""

    context: int
    rows: int
    max_tokens: int | None
    text_key: str


def index(
    text: Path,
    *,
    model: str,
    saes: Sequence[str],
    out: Path | None,
    options: Mapping[str, Any],
    reading: Reading,
    shard: tuple[int, int],
    as_json: bool,
) -> None:
    """Build the index of each SAE, or one shard of it."""
    from lens_tui.sae.index import IndexSettings
    from lens_tui.tasks.index import index_text

    settings = IndexSettings(**options)
    meter = Meter()
    with open_model(model) as lens, interruptible() as asked:
        opened = [open_sae(name, model) for name in saes]
        result = index_text(
            lens,
            opened,
            text,
            out,
            settings=settings,
            context=reading.context,
            rows=reading.rows,
            max_tokens=reading.max_tokens,
            text_key=reading.text_key,
            shard=shard,
            progress=lambda progress: meter.say(*_index_line(progress)),
            should_stop=asked,
        )
        meter.end()
    facts = {"model": lens.info.name, **_facts(result)}
    if as_json:
        print_json(facts)
    if result.stopped:
        kept = ", ".join(str(part) for part in result.parts)
        note(f"mlx-lens-tui: stopped; what was read is in {kept}. The same command goes on.")
        raise SystemExit(asked.status)
    if not as_json:
        _print_index(facts)


def merge(parts: Sequence[Path], *, model: str, sae: str, out: Path | None, as_json: bool) -> None:
    """Merge shards; the token tables are made with the model and the SAE."""
    from lens_tui.sae.index import BuildResult
    from lens_tui.tasks.index import merge_index

    with open_model(model) as lens:
        path = merge_index(lens, open_sae(sae, model), parts, out)
        facts = {"model": lens.info.name, **_facts(BuildResult(False, (path,)))}
    print_json(facts) if as_json else _print_index(facts)


def read_shard(text: str) -> tuple[int, int]:
    """``2/8`` as numbers, the whole for nothing. Raises :class:`LensError` for anything else."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise LensError(f"The shard {text!r} cannot be read.", "Write i/n with i from 0 to n - 1, for example 0/4.")
    return int(match[1]), int(match[2])


def _index_line(progress: IndexProgress) -> tuple[str, str]:
    if progress.stage != "read":
        return "writing the index", ""
    speed = f"{count(progress.tokens_per_s)} tokens/s · {duration(progress.seconds_left)} left"
    return "read", f"block {progress.block} of {progress.n_blocks} · {count(progress.n_tokens)} tokens · {speed}"


def _facts(result: BuildResult) -> dict[str, Any]:
    from lens_tui.sae.index import FeatureIndex

    indexes = []
    for path in result.indexes:
        opened = FeatureIndex(path)
        indexes.append(
            {
                "path": str(path),
                "identity": asdict(opened.identity),
                "n_tokens": opened.n_tokens,
                "counted_tokens": opened.n_counted,
                "active_features": int((opened.count > 0).sum()),
                "full": opened.full,
                "notes": list(opened.notes),
            }
        )
    return {"stopped": result.stopped, "indexes": indexes, "parts": [str(part) for part in result.parts]}


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


@dataclass(frozen=True, slots=True)
class Request:
    """What was typed; see the verb's help."""

    text: Path
    layer: int
    model: str
    site: str
    out: Path | None
    arch: str
    width: int
    k: int
    tokens: int
    batch: int
    learning_rate: float
    normalize: str
    matryoshka: str
    context: int
    rows: int
    max_tokens: int
    held_out: int
    evaluate_every: int
    checkpoint: float
    text_key: str
    seed: int


def train(request: Request, *, as_json: bool) -> None:
    """Train, say how it goes, print how good the SAE is and where it lies."""
    from lens_tui.sae.training.checkpoint import FILE
    from lens_tui.tasks.train import train_sae

    with open_model(request.model) as lens, interruptible() as asked:
        layer = lens.registry.decoder.index(request.layer)
        config = config_of(request, lens.registry.sites.point(layer, request.site).width)
        out = request.out or _default_folder(request, lens, layer, config.width)
        meter = Meter()
        report = train_sae(
            lens,
            request.text,
            out,
            config,
            layer=layer,
            site=request.site,
            context=request.context,
            rows=request.rows,
            held_out=request.held_out,
            max_tokens=request.max_tokens or None,
            text_key=request.text_key,
            progress=lambda progress: meter.say(*_training_line(progress)),
            should_stop=asked,
            checkpoint_seconds=request.checkpoint,
        )
        meter.end()
    if as_json:
        print_json({"model": lens.info.name, **plain(report)})
    if report.stopped:
        kept = (out / "training" / FILE).exists()
        what = f"the checkpoint is in {out}. The same command goes on." if kept else "there was nothing to keep yet."
        note(f"mlx-lens-tui: stopped after step {report.step} of {config.steps}; {what}")
        raise SystemExit(asked.status)
    if not as_json:
        _print_training(report)


def config_of(request: Request, d_model: int) -> TrainConfig:
    """The settings of a request; the pool and the measuring shrink with a short run."""
    from lens_tui.records.training import TrainConfig

    values: dict[str, Any] = {"architecture": request.arch, "normalize": request.normalize}
    defaults = TrainConfig(width=1, k=1)
    some = max(request.batch, request.tokens // 8)
    return TrainConfig(
        width=request.width or 16 * d_model,
        k=request.k,
        tokens=request.tokens,
        batch=request.batch,
        learning_rate=request.learning_rate,
        matryoshka=prefixes(request.matryoshka),
        evaluate_every=request.evaluate_every,
        pool_tokens=min(defaults.pool_tokens, 2 * some),
        calibration_tokens=min(defaults.calibration_tokens, some),
        evaluation_tokens=min(defaults.evaluation_tokens, some),
        seed=request.seed,
        **values,
    )


def prefixes(text: str) -> tuple[int, ...]:
    """``512,2048`` as numbers. Raises :class:`LensError` for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise LensError(f"The prefixes {text!r} are no whole numbers.", "Write them as 512,2048.") from None


def plain(report: TrainReport) -> dict[str, Any]:
    """The report as plain data, with what follows from it."""
    recovered = report.final.loss_recovered if report.final else None
    return {**asdict(report), "loss_recovered": recovered}


def _default_folder(request: Request, lens: LensModel, layer: int, width: int) -> Path:
    from lens_tui.records import paths

    model = Path(lens.info.name).name or "model"
    return paths.saes_folder() / f"{model}-{request.site}-{layer}-{request.arch}-{width}"


def _training_line(progress: TrainProgress) -> tuple[str, str]:
    if progress.stage == "read":
        return "reading the text", ""
    if progress.stage != "train" or not progress.tokens_per_s:
        return f"{progress.stage}", f"step {progress.step} of {progress.steps}"
    facts = [
        f"step {progress.step} of {progress.steps}",
        f"{count(progress.tokens)} tokens",
        f"{count(progress.tokens_per_s)} tokens/s",
        f"{duration(progress.seconds_left)} left",
    ]
    if progress.fvu is not None:
        facts.append(f"FVU {progress.fvu:.3f}")
    if progress.l0 is not None:
        facts.append(f"L0 {progress.l0:.1f}")
    if progress.dead is not None:
        facts.append(f"dead {progress.dead:.1%}")
    return "train", " · ".join(facts)


def _print_training(report: TrainReport) -> None:
    config = report.config
    say(f"{config.architecture} SAE, {config.width} features, {report.site} of layer {report.layer}")
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
            f"loss recovered  {share}(nats a token: {final.loss_clean:.3f} as it is, {final.loss_spliced:.3f} spliced, "
            f"{final.loss_zero:.3f} zeroed)"
        )
    return lines
