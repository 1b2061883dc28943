"""``python -m recipes``: the steps from the corpus to the shipped model, each a command."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes import index_commands, transcoder_commands, vector_commands
from recipes.labels import commands as label_commands
from recipes.options import Corpus

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
for module in (vector_commands, index_commands, transcoder_commands, label_commands):
    module.register(app)

Tokens = Annotated[Path, typer.Option(help="Folder of `prepare`.")]
Tokeniser = Annotated[Path, typer.Option(help="Folder of `tokenizer`.")]
Model = Annotated[Path, typer.Option(help="Exported model folder.", exists=True)]


@app.command()
def tokenizer(corpus: Corpus, out: Path, vocabulary: int = 8192, context: int = 1024) -> None:
    """Train the byte-level BPE tokenizer on the training documents."""
    from recipes.corpus import read_corpus
    from recipes.tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(read_corpus(corpus), vocabulary), out, context)


@app.command()
def prepare(corpus: Corpus, tokenizer: Tokeniser, out: Path) -> None:
    """Encode the corpus into token files, trained and held-out documents apart."""
    from recipes import tokens
    from recipes.corpus import read_corpus
    from recipes.tokenizer import load_tokenizer

    manifest = tokens.prepare(read_corpus(corpus), load_tokenizer(tokenizer), out)
    for name, splits in manifest["domains"].items():
        train, held = splits["train"], splits["held_out"]
        rate = train["characters"] / train["tokens"]
        print(f"{name:14}{train['tokens']:>11} tokens{held['tokens']:>9} held out{rate:6.2f} characters/token")


@app.command()
def train(
    tokens: Tokens,
    out: Path,
    settings: Annotated[Path | None, typer.Option(help="JSON with any of the settings of recipes.train.")] = None,
    epochs: float | None = None,
    minutes: float | None = None,
    stop_after: Annotated[int | None, typer.Option(help="Save and stop after this many steps.")] = None,
) -> None:
    """Train, or go on with a run that was stopped. Run it again to resume."""
    from recipes.tokens import load_tokens
    from recipes.train import Run, merge_settings, read_settings

    asked: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    asked |= {key: value for key, value in (("epochs", epochs), ("minutes", minutes)) if value is not None}
    base = read_settings(out) if (out / "run.json").exists() else None
    chosen = merge_settings(base, asked)
    Run(out, chosen, load_tokens(tokens, "train"), load_tokens(tokens, "held_out")).advance(stop_after)


@app.command()
def export(run: Path, tokenizer: Tokeniser, out: Path, dtype: str = "bfloat16") -> None:
    """Write a run's weights as a folder that `mlx_lm.load` reads."""
    from recipes.export import export as write
    from recipes.train import read_settings

    print(write(run, read_settings(run).shape, tokenizer, out, dtype))


@app.command()
def quantise(model: Model, out: Path, bits: int = 8, group: int = 64, dtype: str = "float32") -> None:
    """Write a quantised copy of an exported model; DTYPE is what it computes in."""
    from recipes.export import quantise as write

    print(write(model, out, bits, group, dtype))


@app.command()
def evaluate(
    model: Model,
    tokens: Tokens,
    out: Path,
    window: int = 512,
    stride: Annotated[int | None, typer.Option(help="How far windows move on; the whole window unless given.")] = None,
    trained: Annotated[bool, typer.Option(help="Also score training documents, for the gap.")] = True,
    baseline: Annotated[Path | None, typer.Option(help="A report to compare with.")] = None,
    documents: Annotated[int | None, typer.Option(help="Held-out documents per domain at most.")] = None,
) -> None:
    """Score an exported model on the held-out documents of every domain."""
    from mlx_lm.utils import load_model

    from recipes import evaluate as ev
    from recipes.tokens import load_tokens

    network, _ = load_model(model)
    network.eval()
    held = load_tokens(tokens, "held_out")
    if documents:
        held = {name: part.select(range(min(documents, len(part)))) for name, part in held.items()}
    scores = ev.score_domains(network, held, window, stride or window)
    seen: dict[str, ev.Score] = {}
    if trained:
        seen = ev.score_domains(network, ev.training_sample(load_tokens(tokens, "train")), window, stride or window)
    figures = ev.report(scores, seen)
    facts = {"window": window, "stride": stride or window, "documents": documents, "domains": figures}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(ev.table(figures, ev.read_report(baseline) if baseline else None))


@app.command()
def sae(
    model: Model,
    corpus: Corpus,
    out: Path,
    depth: Annotated[str, typer.Option(help="early, middle or late: layers 2, 4 and 6.")] = "middle",
    tokens: Annotated[int | None, typer.Option(help="To train on; the shipped number unless given.")] = None,
    settings: Annotated[Path | None, typer.Option(help="JSON with any settings of the trainer.")] = None,
    context: int = 512,
    rows: Annotated[int, typer.Option(help="Windows a forward pass.")] = 128,
) -> None:
    """Train an SAE of an exported model, or go on with one, and print its figures on held-out text."""
    from recipes import saes

    if depth not in saes.DEPTHS:
        raise typer.BadParameter(f"{depth} is none of {', '.join(saes.DEPTHS)}", param_hint="--depth")
    place = saes.DEPTHS[depth]
    changes: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    changes |= {} if tokens is None else {"tokens": tokens}
    config = saes.settings(place, **changes)
    report = saes.train(model, corpus, place, config, out, context=context, rows=rows, progress=saes.printer())
    if report.final is not None:
        print(saes.figures(report.final))


@app.command("measure-saes")
def measure_saes(corpus: Corpus, out: Path, tokens: int = 600_000) -> None:
    """Measure the SAEs in lens_tui/demo, as they ship, on held-out documents."""
    from recipes.measure_saes import measure_all
    from recipes.saes import figures, unpacked

    found: dict[str, Any] = {}
    for name, evaluation in measure_all(unpacked(corpus, out.parent), tokens):
        found[name] = asdict(evaluation) | {"loss_recovered": evaluation.loss_recovered}
        print(f"{name}  {figures(evaluation)}", flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@app.command()
def sample(model: Model, tokens: int = 60, temperature: float = 0.0, seed: int = 7) -> None:
    """Print a seeded continuation of one prompt per domain."""
    from recipes.samples import samples

    for name, text in samples(model, tokens, temperature, seed).items():
        print(f"--- {name}\n{text}\n")


@app.command()
def precision(model: Model, tokens: Tokens, out: Path, layer: int = 4, documents: int = 2, limit: int = 128) -> None:
    """Compare storage types of an exported bf16 model: size, loss, speed, and what becomes of a steering dose."""
    from recipes.precision import compare

    rows: list[dict[str, Any]] = []
    for row in compare(model, tokens, layer, documents, limit):
        rows.append(row)
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), flush=True)


@app.command()
def hashes() -> None:
    """Write the hashes of everything that ships with the bundled model."""
    from lens_tui import demo
    from recipes.hashes import write

    print(write(demo.model_path().parent))


if __name__ == "__main__":
    app()
