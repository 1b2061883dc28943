"""The verbs that run a model over texts: ``lens``, ``loss``, ``generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import SAE, Json, Model, TextKey
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
    from .read import lens as verb

    verb(text, model=model, sae=sae, arm=arm, target=target, layers=layers, top_k=top_k, attribute=attribute,
         as_json=json)  # fmt: skip


@verbs.command("loss")
@sentences
def loss(
    text: Annotated[str, typer.Argument(help="The text; '-' reads standard input.")],
    model: Model = "demo",
    sae: SAE = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="Beside it the steered model's: SOURCE[@LAYER]*SCALE.")] = "",
    json: Json = False,
) -> None:
    """Print how well a text is predicted: the mean next-token loss, plain and steered."""
    from .generate import loss as verb

    verb(text, model=model, sae=sae, arm=arm, as_json=json)


@verbs.command("generate")
@sentences
def generate(
    prompts: Annotated[
        str, typer.Argument(help="A file with a prompt a line, or .jsonl; '-' reads such lines from standard input.")
    ],
    model: Model = "demo",
    sae: SAE = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="What all are steered with: SOURCE[@LAYER]*SCALE.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens a prompt.")] = 80,
    temp: Annotated[float, typer.Option(min=0.0, help="Temperature; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of every prompt: it gives the same text alone.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text that ends one and is left out of it; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Prompts a forward pass.")] = 32,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")] = False,
    text_key: TextKey = "prompt",
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each prompt, in their order.")] = False,
) -> None:
    """Write on from many prompts, plain or steered."""
    from lens_tui.records import Sampling

    from .generate import generate as verb

    sampling = Sampling(max_tokens, temp, top_p, min_p, top_k, seed=seed, stop=tuple(stop or ()))
    verb(prompts, model=model, sae=sae, arm=arm, sampling=sampling, rows=rows, text_key=text_key, raw=raw,
         as_json=json)  # fmt: skip
