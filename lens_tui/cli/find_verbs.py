"""The verbs that find: ``feature``, ``search``, ``contrast``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SAE, Convention, Json, Model, TextKey
from .output import sentences

verbs = typer.Typer()


@verbs.command("feature")
@sentences
def feature(
    number: Annotated[str, typer.Argument(metavar="ID", help="The feature's number, as 1288 or f1288.")],
    model: Model = "demo",
    sae: SAE = "",
    convention: Convention = "norm",
    examples: Annotated[int, typer.Option("--examples", "-k", min=0, help="Top examples to print.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, max=1000, help="Promoted and suppressed tokens to print.")] = 10,
    neighbours: Annotated[int, typer.Option(min=0, help="Neighbours and co-active features to print.")] = 10,
    json: Json = False,
) -> None:
    """Print all that is known of one feature."""
    from .read import page

    page(number, model=model, sae=sae, convention=convention, sizes=(tokens, examples, neighbours), as_json=json)


@verbs.command("search")
@sentences
def search(
    words: Annotated[list[str], typer.Argument(help="Words to look for in labels and among promoted tokens.")],
    model: Model = "demo",
    sae: SAE = "",
    convention: Convention = "norm",
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features of each kind to print.")] = 20,
    json: Json = False,
) -> None:
    """Find features by words, in labels and promoted tokens."""
    from .read import search as verb

    verb(" ".join(words), model=model, sae=sae, convention=convention, k=k, as_json=json)


@verbs.command("contrast")
@sentences
def contrast(
    a: Annotated[Path, typer.Argument(help="Texts A: one a line, or JSONL, or documents split by <|endoftext|>.")],
    b: Annotated[Path, typer.Argument(help="Texts B, likewise.")],
    model: Model = "demo",
    sae: SAE = "",
    measure: Annotated[str, typer.Option(help="auc, or difference (of means, in standard deviations).")] = "auc",
    over: Annotated[str, typer.Option(help="A text's value of a feature: its max or mean over tokens.")] = "max",
    both_sides: Annotated[bool, typer.Option("--both-sides", help="Find features that are stronger in B too.")] = False,
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features to print.")] = 20,
    seed: Annotated[int, typer.Option(help="Which half of the texts features are chosen on.")] = 0,
    text_key: TextKey = "text",
    json: Json = False,
) -> None:
    """Find the features that tell texts A from texts B."""
    from .read import contrast as verb

    verb(a, b, model=model, sae=sae, measure=measure, over=over, both_sides=both_sides, k=k, seed=seed,
         text_key=text_key, as_json=json)  # fmt: skip
