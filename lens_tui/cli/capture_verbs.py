"""The verb that keeps activations on disk: ``capture``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lens_tui.records.arm_syntax import parse_arm
from lens_tui.tui.format import count

from .lens_verbs import whole_numbers
from .output import Meter, interruptible, note, print_json, say, sentences
from .sae_verbs import Context, MaxTokens, Rows, Text
from .sources import Json, Model, SAEName, TextKey, Vectors, open_model

if TYPE_CHECKING:
    from lens_tui.tasks.capture import CaptureProgress

verbs = typer.Typer()


@verbs.command()
@sentences
def capture(
    text: Text,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of shards; a capture in it is continued.")],
    model: Model = "demo",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    site: Annotated[
        list[str] | None, typer.Option("--site", help="A tensor, such as resid_post (default); may be repeated.")
    ] = None,
    arm: Annotated[str, typer.Option("--arm", "-a", help="Capture the steered model: SOURCE[@LAYER]*SCALE.")] = "",
    sae: SAEName = "",
    context: Context = 256,
    rows: Rows = 32,
    max_tokens: MaxTokens = 0,
    shard_mb: Annotated[int, typer.Option(min=1, help="Megabytes of activations in a shard.")] = 256,
    text_key: TextKey = "text",
    json: Json = False,
) -> None:
    """Keep the activations of every token of a text.

    As safetensors, with token ids. ctrl+c writes what was read, and the same command continues from there.
    """
    from lens_tui.tasks.capture import capture_texts

    wanted, spec = whole_numbers(layers), parse_arm(arm) if arm else None
    with open_model(model) as lens, interruptible() as asked, Meter() as meter:
        steering = Vectors(lens, sae, model).arm(spec).interventions if spec else ()
        at = lens.registry.decoder.indices(range(lens.n_layers) if wanted is None else wanted)
        places = [(layer, name) for layer in at for name in site or ["resid_post"]]
        report = capture_texts(
            lens, text, out, places, interventions=steering, context=context, rows=rows, text_key=text_key,
            max_tokens=max_tokens or None, shard_bytes=shard_mb << 20, should_stop=asked,
            progress=lambda progress: meter.say(*_line(progress)),
        )  # fmt: skip
        facts = {"model": lens.info.name, **asdict(report)}
    if json:
        print_json(facts)
    else:
        say(f"{count(report.n_tokens)} tokens in {len(report.shards)} shards, each with {', '.join(report.tensors)}")
        say(f"written to {report.folder}")
    if report.stopped:
        note("mlx-lens-tui: stopped. Run the same command to continue.")
        raise SystemExit(asked.status)


def _line(progress: CaptureProgress) -> tuple[str, str, float | None]:
    done = f"block {progress.block} of {progress.n_blocks} · {count(progress.n_tokens)} tokens"
    return "capture", f"{done} · {count(progress.tokens_per_s)} tokens/s", progress.block / progress.n_blocks
