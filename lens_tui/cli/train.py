"""``mlx-lens-tui train-sae``: an SAE from a text and a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records.errors import LensError

from .long_work import Meter, count, duration, interruptible
from .output import note, print_json, say
from .sources import open_model

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport


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
    from lens_tui.worker.training import train_sae

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
            progress=lambda progress: meter.say(*_line(progress)),
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
        _print(report)


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


def _line(progress: TrainProgress) -> tuple[str, str]:
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


def _print(report: TrainReport) -> None:
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
