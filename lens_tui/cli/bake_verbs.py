"""The verb that makes a steering permanent: ``bake``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lens_tui.records import LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.tui.preferences import preferences

from .output import Meter, print_json, say, sentences
from .sources import Json, Model, SAEName, Vectors, asked_adapter, asked_dequantize, fetch_model

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records import Intervention
    from lens_tui.tasks.bake import Baked

verbs = typer.Typer()


@verbs.command()
@sentences
def bake(
    arm: Annotated[
        str, typer.Option("--arm", "-a", help="What becomes weights: verse*8, f75*20+f9*4, f75:project_out.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make; with --to gguf, the file.")],
    model: Model = "demo",
    sae: SAEName = "",
    to: Annotated[
        Literal["mlx", "lora", "peft", "gguf"],
        typer.Option(help="A whole model, mlx-lm's LoRA, PEFT's LoRA, or llama.cpp's control vector."),
    ] = "mlx",
    texts: Annotated[int, typer.Option(min=1, max=64, help="Texts on which loss and KL are measured.")] = 16,
    json: Json = False,
) -> None:
    """Make a steering part of a model's weights, for any program.

    Written as a model, a LoRA or a control vector, and measured against the live steering.
    """
    from lens_tui.lens.measure.effects import LOSS_TEXTS
    from lens_tui.tasks.bake import bake as bake_steering

    if asked_adapter.get():
        raise LensError("A model with an adapter is not baked.", "Fuse the adapter first (mlx_lm.fuse), and bake that.")
    spec = parse_arm(arm)
    fetch_model(model)

    def records(lens: LensModel) -> tuple[Intervention, ...]:
        return Vectors(lens, sae, model).arm(spec).interventions

    with Meter() as meter:
        found = bake_steering(
            model,
            records,
            out,
            form=to,
            texts=LOSS_TEXTS[:texts],
            dequantize=asked_dequantize.get() or preferences().dequantize,
            progress=lambda word: meter.say("bake", word, None),
        )
    print_json(asdict(found)) if json else _print(found)


def _print(found: Baked) -> None:
    say(f"{found.path}")
    for text in found.where:
        say(f"  {text}")
    if found.everywhere:
        say("  a projection at one layer became one at all: the live steering that it equals acts at every write")
    say(f"largest difference of a log-probability from the live steering ({found.precision}): {found.max_delta:.2g}")
    packed = f" ({found.quantization})" if found.quantization else ""
    say(f"as written{packed}, on {found.texts} texts of {found.tokens} tokens, nats a token:")
    say(f"  loss   plain {found.loss_plain:.4f}   live {found.loss_live:.4f}   baked {found.loss_baked:.4f}")
    say(f"  KL     from plain {found.kl_plain:.4f}   from the live arm as asked {found.kl_live:.2g}")
