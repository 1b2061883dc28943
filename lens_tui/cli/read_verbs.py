"""The verbs that read a model without generating: ``lens``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import SAE, Json, Model
from .output import sentences

verbs = typer.Typer()


@verbs.command("lens")
@sentences
def lens(
    text: Annotated[str, typer.Argument(help="The text to read; '-' reads standard input.")],
    model: Model = "demo",
    sae: SAE = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="Read the steered model: SOURCE[@LAYER]*SCALE.")] = "",
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="The token to follow: a text such as ' door', or id:17. Default: next."),
    ] = "",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Tokens in each cell (with --json).")] = 5,
    attribute: Annotated[
        bool,
        typer.Option("--attribute", help="Say what each attention and MLP adds to the logit after the last token."),
    ] = False,
    json: Json = False,
) -> None:
    """Print what every layer would predict at every token (the logit lens)."""
    from .lens import lens as verb

    verb(text, model=model, sae=sae, arm=arm, target=target, layers=layers, top_k=top_k, attribute=attribute,
         as_json=json)  # fmt: skip
