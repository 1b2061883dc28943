"""The verbs of the steering bench: ``dose``, ``scale`` and ``vector``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import SAE, Json, Model
from .output import sentences

verbs = typer.Typer()
vector_verbs = typer.Typer(no_args_is_help=True, help="Make a steering vector and save it.")
verbs.add_typer(vector_verbs, name="vector")

_ARM = "SOURCE[@LAYER]*SCALE[:MODE][:POSITIONS], e.g. f2666*22; terms joined by '+'."
Out = Annotated[str, typer.Option("--out", "-o", help="The file; default: the vectors folder, named after it.")]
Layer = Annotated[int, typer.Option("--layer", "-l", help="The layer it acts at; negative counts from the end.")]


@verbs.command("dose")
@sentences
def dose(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    arm: Annotated[str, typer.Option("--arm", "-a", help=_ARM)],
    model: Model = "demo",
    sae: SAE = "",
    scales: Annotated[
        str, typer.Option("--scales", help="Multiples of the arm's scale, as 0,0.5,1. Default: 0 to 4 both ways.")
    ] = "",
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside each scale.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens written at each scale.")] = 60,
    texts: Annotated[int, typer.Option(min=0, max=64, help="Texts of the loss; 0: 16.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random directions and the bootstrap.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")] = False,
    json: Json = False,
) -> None:
    """Measure what a steering does and costs at many scales: loss, KL, repetition, read-back, each with controls."""
    from .steer import dose as verb

    verb(prompt, arm, model=model, sae=sae, scales=scales, controls=controls, max_tokens=max_tokens, texts=texts,
         seed=seed, raw=raw, as_json=json)  # fmt: skip


@verbs.command("scale")
@sentences
def scale(
    arm: Annotated[str, typer.Option("--arm", "-a", help=f"{_ARM} Without a scale it is 1 (absolute).")],
    model: Model = "demo",
    sae: SAE = "",
    quantity: Annotated[
        str, typer.Option("--by", help="delta_loss (nats a token), kl (nats) or relative_norm (share of |h|).")
    ] = "delta_loss",
    target: Annotated[
        float | None, typer.Option("--target", "-t", help="Default: 0.3 nat of loss, 1 nat of KL, 0.1 |h|.")
    ] = None,
    json: Json = False,
) -> None:
    """Find the scale at which a steering reaches a target, on half of the texts, and report the other half."""
    from .steer import scale as verb

    verb(arm, model=model, sae=sae, quantity=quantity, target=target, as_json=json)


@vector_verbs.command("contrast")
@sentences
def contrast(
    name: Annotated[str, typer.Argument(help="What the direction stands for.")],
    pairs: Annotated[
        str, typer.Option("--pairs", help="A file of pairs: JSONL (positive, negative) or two texts a line, by a tab.")
    ] = "",
    positive: Annotated[list[str] | None, typer.Option("--positive", "-p", help="A text with it; repeat.")] = None,
    negative: Annotated[list[str] | None, typer.Option("--negative", "-n", help="A text without it; repeat.")] = None,
    layer: Annotated[str, typer.Option("--layer", "-l", help="A layer, or 'all': the best on held-out pairs.")] = "all",
    method: Annotated[str, typer.Option(help="mean_difference, pca_diff, pca_center or logistic.")] = "mean_difference",
    over: Annotated[str, typer.Option(help="Activations of the 'last' token or of 'all' but special ones.")] = "all",
    chat: Annotated[bool, typer.Option("--chat", help="Put the texts through the chat template.")] = False,
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from contrasting texts; with all layers, they are ranked on held-out pairs and the best is saved."""
    from .steer import contrast as verb

    verb(name, pairs, tuple(positive or ()), tuple(negative or ()), layer=layer, method=method, over=over,
         raw=not chat, model=model, out=out, as_json=json)  # fmt: skip


@vector_verbs.command("token")
@sentences
def token(
    token: Annotated[str, typer.Argument(help="A text that is one token, with its blank: ' door'; or id:17.")],
    layer: Layer,
    kind: Annotated[str, typer.Option(help="unembedding or embedding.")] = "unembedding",
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from a token: its row of the unembedding, or its embedding."""
    from .steer import token as verb

    verb(token, layer=layer, kind=kind, name=name, model=model, out=out, as_json=json)


@vector_verbs.command("feature")
@sentences
def feature(
    feature: Annotated[int, typer.Argument(help="The feature's number.", min=0)],
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    sae: SAE = "",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from an SAE feature: its row of the decoder."""
    from .steer import feature as verb

    verb(feature, name=name, model=model, sae=sae, out=out, as_json=json)


@vector_verbs.command("random")
@sentences
def random(
    layer: Layer,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same direction again.")] = 0,
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction by chance: the control that an effect is held against."""
    from .steer import chance as verb

    verb(layer=layer, seed=seed, name=name, model=model, out=out, as_json=json)


@vector_verbs.command("sum")
@sentences
def total(
    name: Annotated[str, typer.Argument(help="What the direction stands for.")],
    terms: Annotated[
        list[str], typer.Argument(help="SOURCE[@LAYER][*FACTOR], each a feature, random:SEED or a vector file.")
    ],
    without: Annotated[bool, typer.Option("--without", help="The first without what lies along the others.")] = False,
    own_length: Annotated[
        bool, typer.Option("--own-length", help="Each vector at the length it was made with, not at length 1.")
    ] = False,
    model: Model = "demo",
    sae: SAE = "",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction out of others: a weighted sum, or one without the others."""
    from .steer import total as verb

    verb(name, terms, less=without, unit=not own_length, model=model, sae=sae, out=out, as_json=json)
