"""The commands that make the bundled index: its texts, and the index of each SAE over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.options import BundledModel, Corpus, SAEs


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (texts, index, co_active):
        app.command()(command)


def texts(
    corpus: Corpus,
    out: Path,
    model: BundledModel = None,
    settings: Annotated[Path | None, typer.Option(help="JSON with any of the settings of recipes.texts.")] = None,
) -> None:
    """Write the text of the bundled index: by the model itself, and from public-domain documents held out."""
    from recipes import texts as made
    from recipes.bundled import open_model
    from recipes.corpus import read_corpus

    asked: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    facts = made.write(open_model(model), read_corpus(corpus), out, made.Settings(**asked))
    for kind, tokens in facts["tokens"].items():
        print(f"{kind:14}{facts['documents'][kind]:>6} documents{tokens:>9} tokens")
    print(f"dropped as copies of training text: {facts['dropped_as_copies'] or 'none'}")


def index(
    texts: Annotated[Path, typer.Option(help="Folder of `texts`.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where the folders of the indexes go.")],
    model: BundledModel = None,
    saes: SAEs = None,
    rows: int = 16,
) -> None:
    """Index the texts for all three SAEs with the settings that ship."""
    from recipes.index import build, size

    made = build(texts, out, model=model, saes=saes, rows=rows)
    for one in made:
        print(f"{one.depth:8}{one.folder.name}{one.nbytes / 1e6:7.2f} MB{one.tokens:>9} tokens", end="")
        print(f"{one.live:>6} of {one.width} features active")
    print(f"in all {size(out) / 1e6:.2f} MB with the text, which is kept once")


def co_active(
    out: Annotated[Path, typer.Option(help="Folder of `index`; each SAE's index in it gets the table.", exists=True)],
    model: BundledModel = None,
    saes: SAEs = None,
    rows: int = 16,
) -> None:
    """Add to the indexes which features are active on the same tokens, from the text that they hold."""
    from lens_tui import FeatureIndex, load_sae
    from recipes.bundled import open_model, sae_folders
    from recipes.co_active import add

    lens = open_model(model)
    folders = {FeatureIndex(found.parent).identity.sae: found.parent for found in sorted(out.glob("*/manifest.json"))}
    for name, (_, folder) in sae_folders(saes).items():
        sae = load_sae(folder)
        if sae.info.id in folders:
            differs = add(lens, sae, folders[sae.info.id], rows=rows)
            print(f"{name:8}{folders[sae.info.id].name}  {differs:.1e} of the activations differ")
