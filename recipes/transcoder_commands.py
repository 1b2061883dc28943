"""The commands that make the bundled set of transcoders, measure it as it ships, and index it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.options import BundledModel, Corpus


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(transcoders)
    app.command("measure-transcoders")(measure_transcoders)
    app.command("index-transcoders")(index_transcoders)


def transcoders(
    corpus: Corpus,
    out: Path,
    model: BundledModel = None,
    layers: Annotated[str, typer.Option(help="4, 0-3,6 or all.")] = "all",
    settings: Annotated[Path | None, typer.Option(help="JSON with any settings of the trainer.")] = None,
    context: int = 512,
    rows: Annotated[int, typer.Option(help="Windows a forward pass.")] = 128,
) -> None:
    """Train a transcoder of each layer's MLP, or go on with the set, and print its figures on held-out text."""
    from lens_tui.records.training import read_layers
    from recipes import transcoders as made
    from recipes.saes import figures, printer

    changes: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    say = printer()
    found = made.train(
        corpus,
        made.settings(**changes),
        out,
        model=model,
        layers=read_layers(layers, len(made.LAYERS)),
        context=context,
        rows=rows,
        progress=lambda layer, at: say(at),
    )
    for report in found.reports:
        if report.final is not None:
            print(f"layer {report.layer}  {figures(report.final)}")
    if found.loss is not None:
        print(made.loss_figures(found.loss))


def measure_transcoders(corpus: Corpus, out: Path, tokens: int = 300_000, context: int = 512, rows: int = 64) -> None:
    """Measure the set in lens_tui/demo, as it ships, on held-out documents."""
    from recipes import transcoders as made
    from recipes.saes import figures, unpacked

    each, loss = made.measure_shipped(unpacked(corpus, out.parent), tokens, context=context, rows=rows)
    for layer, evaluation in each.items():
        print(f"layer {layer}  {figures(evaluation)}")
    print(made.loss_figures(loss))
    found = {"layers": {layer: asdict(one) for layer, one in each.items()}, "replaced_loss": asdict(loss)}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def index_transcoders(
    out: Annotated[Path, typer.Option(help="Folder of `index`, whose text is read again.", exists=True)],
    model: BundledModel = None,
    rows: int = 8,
) -> None:
    """Index the transcoders over the text of the bundled index, which they then share."""
    from recipes.index import build_transcoders, size

    for one in build_transcoders(out, model=model, rows=rows):
        print(f"{one.depth:24}{one.nbytes / 1e6:7.2f} MB{one.live:>6} of {one.width} features active")
    print(f"in all {size(out) / 1e6:.2f} MB with the text, which is kept once")
