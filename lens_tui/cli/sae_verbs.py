"""The verbs that make and check: ``train-sae``, ``index``, ``index-merge``, ``check-sae``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SAE, Json, Model, TextKey
from .output import sentences

verbs = typer.Typer()

Text = Annotated[Path, typer.Argument(help="A .txt or .jsonl file, or a folder of them.")]
Context = Annotated[int, typer.Option(min=8, help="Window length in tokens.")]
Rows = Annotated[int, typer.Option(min=1, help="Windows a forward pass; more is faster on a GPU.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Read at most so many tokens of the text (0: all that is needed).")]


@verbs.command("train-sae")
@sentences
def train_sae(
    text: Text,
    layer: Annotated[int, typer.Option("--layer", "-l", help="The layer to read, from 0; -1 is the last.")],
    model: Model = "demo",
    site: Annotated[str, typer.Option(help="The tensor to read: resid_post, resid_pre, mlp_out, ...")] = "resid_post",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The SAE's folder; a run in it is resumed.")] = None,
    arch: Annotated[str, typer.Option(help="batchtopk, topk or jumprelu.")] = "batchtopk",
    width: Annotated[int, typer.Option(min=0, help="Features (0: 16 times the width of what is read).")] = 0,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Active features a token to aim at (L0).")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to train on.")] = 50_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 4096,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 4e-4,
    normalize: Annotated[str, typer.Option(help="centered, norm or none; folded in at the end.")] = "centered",
    matryoshka: Annotated[str, typer.Option(help="Prefix widths, for example 512,2048.")] = "",
    context: Context = 256,
    rows: Rows = 32,
    max_tokens: MaxTokens = 0,
    held_out: Annotated[int, typer.Option(min=0, help="Keep every n-th document for the measuring (0: none).")] = 40,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Measure every so many steps (0: at the end).")] = 0,
    checkpoint: Annotated[float, typer.Option(min=0.0, help="Seconds between checkpoints.")] = 60.0,
    text_key: TextKey = "text",
    seed: Annotated[int, typer.Option(help="The same seed gives the same SAE again.")] = 0,
    json: Json = False,
) -> None:
    """Train an SAE on a text with a model.

    ctrl+c saves a checkpoint, and the same command goes on from it.
    """
    from .saes import Request, train

    request = Request(
        text, layer, model, site, out, arch, width, k, tokens, batch, learning_rate, normalize, matryoshka, context,
        rows, max_tokens, held_out, evaluate_every, checkpoint, text_key, seed,
    )  # fmt: skip
    train(request, as_json=json)


@verbs.command("index")
@sentences
def index(
    text: Text,
    model: Model = "demo",
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", "-s", help="An SAE: a file, a folder, a bundled name or one trained here; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder of indexes (default: where the app looks).")
    ] = None,
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
    json: Json = False,
) -> None:
    """Keep what every feature does in a text.

    ctrl+c saves what was read, and the same command goes on from there.
    """
    from lens_tui.records.errors import LensError

    from .saes import Reading, read_shard
    from .saes import index as verb

    if top_k > 10_000:
        raise LensError(f"{top_k} examples a feature were asked for.", "At most 10000 are kept.")
    reading = Reading(context, rows, max_tokens or None, text_key)
    options = {"top_k": top_k, "max_active": max_active, "include_special": include_special, "full": full, "seed": seed}
    verb(
        text,
        model=model,
        saes=sae or [""],
        out=out,
        options=options,
        reading=reading,
        shard=read_shard(shard),
        as_json=json,
    )


@verbs.command("index-merge")
@sentences
def index_merge(
    parts: Annotated[list[Path], typer.Argument(help="The folders that every `index --shard` left.")],
    model: Model = "demo",
    sae: SAE = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder of indexes (default: where the app looks).")
    ] = None,
    json: Json = False,
) -> None:
    """Make one index of all shards of a pass."""
    from .saes import merge

    merge(parts, model=model, sae=sae, out=out, as_json=json)


@verbs.command("check-sae")
@sentences
def check_sae(
    text: Annotated[
        str, typer.Argument(help="A text to measure on; '-' reads standard input; a built-in one if left out.")
    ] = "",
    model: Model = "demo",
    sae: SAE = "",
    json: Json = False,
) -> None:
    """Measure whether an SAE fits the model.

    L0 and FVU on each tensor it could be for, beside the declared; the status is 1 if it does not fit.
    """
    from .saes import check

    check(text, model=model, sae=sae, as_json=json)
