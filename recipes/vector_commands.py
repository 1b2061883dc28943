"""The commands that make the ready vectors: a classifier, candidates, their measure, and what ships of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.options import BundledModel, Corpus


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (classifier, vectors, measure_vectors, ship_vectors):
        app.command()(command)


def classifier(corpus: Corpus, out: Path) -> None:
    """Train the domain classifier that vectors are measured with, and print its accuracy on held-out passages."""
    from recipes.classifier import accuracy, train
    from recipes.corpus import read_corpus

    domains = read_corpus(corpus)
    made = train(domains)
    made.save(out)
    found = accuracy(made, domains)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, given in found.items():
        print(f"{name:14}{given.get(name, 0.0):7.3f}  " + "  ".join(f"{k} {v:.3f}" for k, v in list(given.items())[:3]))
    print(f"{'mean':14}{sum(given.get(name, 0.0) for name, given in found.items()) / len(found):7.3f}")


def vectors(
    corpus: Corpus,
    out: Path,
    model: BundledModel = None,
    layer: Annotated[list[int] | None, typer.Option(help="3, 4 and 5 unless given.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Which candidates; all unless given.")] = None,
    passages: Annotated[int, typer.Option(help="Of each side of a mean difference.")] = 240,
) -> None:
    """Make the candidate vectors of the bundled model from passages of training documents."""
    from recipes import candidates
    from recipes.bundled import open_model
    from recipes.corpus import read_corpus

    wanted = [one for one in candidates.CANDIDATES if not name or one.name in name]
    made = candidates.make(open_model(model), read_corpus(corpus), layer or candidates.LAYERS, passages, wanted)
    for file in candidates.save(made, out):
        print(file, flush=True)


def measure_vectors(
    vectors: Path,
    classifier: Path,
    out: Path,
    model: BundledModel = None,
    name: Annotated[list[str] | None, typer.Option(help="Which candidates; all unless given.")] = None,
    multiple: Annotated[list[float] | None, typer.Option(help="Scales to try, in median residual norms.")] = None,
    count: Annotated[int, typer.Option(help="Openings continued under each condition, 20 at most.")] = 20,
    tokens: int = 80,
    rows: Annotated[int, typer.Option(help="Continuations of a batch.")] = 160,
) -> None:
    """Find the scale at which each vector works, and measure it there on other openings."""
    from recipes import candidates
    from recipes import measure_vectors as bench
    from recipes.bundled import open_model
    from recipes.classifier import load

    place = bench.Bench(bench.Writer(open_model(model), tokens, rows=rows), load(classifier))
    found = candidates.read(vectors, name or ())
    reports: list[dict[str, Any]] = []
    for report in bench.measure(place, found, multiple or bench.MULTIPLES, count):
        reports.append(report)
        facts = {"tokens": tokens, "count": count, "norms": place.norms, "vectors": reports}
        out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def ship_vectors(
    vectors: Path,
    report: Path,
    out: Path,
    name: Annotated[list[str] | None, typer.Option(help="Which; the shipped five unless given.")] = None,
) -> None:
    """Write the vectors that ship, each at the layer where it works most often, and print the model card's table."""
    from recipes import candidates
    from recipes import ship_vectors as shipping

    facts = json.loads(report.read_text(encoding="utf-8"))
    print(shipping.table(shipping.ship(facts, candidates.read(vectors), out, name or shipping.SHIPPED)))
