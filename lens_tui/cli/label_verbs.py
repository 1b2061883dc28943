"""The verbs of ``labels``: ``set``, ``show``, ``search``, ``import``, ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SAE, Json
from .output import sentences

verbs = typer.Typer(help="What features mean: your labels and those of other tools.", no_args_is_help=True)

Model = Annotated[str, typer.Option("--model", "-m", help="The model, to know which bundled SAE is meant.")]
Number = Annotated[str, typer.Argument(metavar="ID", help="The feature's number, as 1288 or f1288.")]


@verbs.command("set")
@sentences
def set_label(
    number: Number,
    text: Annotated[str, typer.Argument(help="Your label; '' takes it away. The one before stays in the history.")],
    sae: SAE = "",
    model: Model = "demo",
    author: Annotated[str, typer.Option(help="Who says so.")] = "",
    json: Json = False,
) -> None:
    """Give a feature your label."""
    from .labels import set_label as verb

    verb(number, text, sae=sae, model=model, author=author, as_json=json)


@verbs.command("show")
@sentences
def show(
    number: Annotated[str, typer.Argument(metavar="[ID]", help="A feature's number; all labels if left out.")] = "",
    sae: SAE = "",
    model: Model = "demo",
    history: Annotated[bool, typer.Option("--history", help="Every label you ever gave the feature.")] = False,
    json: Json = False,
) -> None:
    """Print the labels of a feature, or of all."""
    from .labels import show as verb

    verb(number, sae=sae, model=model, history=history, as_json=json)


@verbs.command("search")
@sentences
def search(
    words: Annotated[list[str], typer.Argument(help="Words that a label must hold; the last may be unfinished.")],
    sae: SAE = "",
    model: Model = "demo",
    every: Annotated[bool, typer.Option("--all", help="In the labels of every SAE.")] = False,
    k: Annotated[int, typer.Option("--top-k", "-k", min=1)] = 20,
    json: Json = False,
) -> None:
    """Find labels by words."""
    from .labels import search as verb

    verb(" ".join(words), sae=sae, model=model, every=every, k=k, as_json=json)


@verbs.command("import")
@sentences
def import_labels(
    path: Annotated[Path, typer.Argument(help="The folder or file of the other tool.")],
    form: Annotated[
        str, typer.Option("--format", "-f", help="neuronpedia[-features], delphi or saedashboard.")
    ] = "neuronpedia",
    sae: SAE = "",
    model: Model = "demo",
    source_id: Annotated[str, typer.Option(help="Of a Neuronpedia export of several sources, the one to take.")] = "",
    module: Annotated[str, typer.Option(help="Of a delphi folder of several modules, the one to take.")] = "",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Take them even if they say they are of another model or layer.")
    ] = False,
    json: Json = False,
) -> None:
    """Take up labels that other tools made."""
    from .labels import import_labels as verb

    verb(
        path,
        form,
        sae=sae,
        model=model,
        source_id=source_id or None,
        module=module or None,
        anyway=anyway,
        as_json=json,
    )


@verbs.command("export")
@sentences
def export_labels(
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    form: Annotated[
        str, typer.Option("--format", "-f", help="neuronpedia, delphi, or neuronpedia-upload (needs an index).")
    ] = "neuronpedia",
    sae: SAE = "",
    model: Model = "demo",
    mine: Annotated[bool, typer.Option("--mine", help="Only your own labels.")] = False,
    model_id: Annotated[str, typer.Option(help="The model's name at Neuronpedia (default: the SAE's model).")] = "",
    source_id: Annotated[str, typer.Option(help="The source's name at Neuronpedia, or delphi's module.")] = "",
    json: Json = False,
) -> None:
    """Write labels in a form that other tools read."""
    from .labels import export_labels as verb

    verb(folder, form, sae=sae, model=model, mine=mine, model_id=model_id, source_id=source_id, as_json=json)
