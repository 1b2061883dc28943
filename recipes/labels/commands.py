"""The commands that make labels: cards, a quiz, the scores; and a figure about features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipes.options import BundledModel, Corpus, SAEs

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from recipes.labels.material import Material

Work = Annotated[Path, typer.Option(help="Folder for the indexes, some gigabytes; what is there is used again.")]
Tokens = Annotated[int, typer.Option(help="Tokens of training text, in about equal parts by domain.")]
HeldOut = Annotated[int | None, typer.Option(help="Held-out documents of a domain at most; all unless given.")]
Rows = Annotated[int, typer.Option(help="Windows of 512 tokens a forward pass.")]

DEPTH = "middle"
"""The SAE whose features get labels."""


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for name, command in (
        ("label-cards", cards),
        ("label-quiz", quiz),
        ("label-score", score),
        ("label-meaning", meaning),
    ):
        app.command(name)(command)


def cards(
    corpus: Corpus,
    work: Work,
    out: Path,
    model: BundledModel = None,
    saes: SAEs = None,
    tokens: Tokens = 2_000_000,
    features: Annotated[int, typer.Option(help="How many get a card.")] = 560,
    held_out: HeldOut = None,
    rows: Rows = 32,
    seed: int = 7,
) -> None:
    """Choose features of the middle SAE and write a card of each, from training text: OUT/cards/*.txt, cards.jsonl.

    A feature is left out if held-out text has too few places for its quiz.
    """
    from recipes.bundled import embeddings, open_model
    from recipes.labels import cards as made
    from recipes.labels import choose, windows

    lens = open_model(model)
    seen = _trained_on(lens, corpus, work, saes, DEPTH, tokens, rows)
    unseen = _held_out(lens, corpus, work, saes, held_out, rows)
    text = lens.tokens.display
    maxima = seen.index.max
    found = choose.candidates(
        seen, embeddings(lens), text, lambda feature: windows.enough(unseen, feature, float(maxima[feature]))
    )
    chosen = choose.choose(found, features)
    made.write_cards([made.card(seen, candidate, text, seed) for candidate in chosen], out)
    single = sum(candidate.single for candidate in chosen)
    print(f"{seen.index.n_counted} tokens of training text, {unseen.index.n_counted} held out")
    print(f"{len(chosen)} cards of {len(found)} candidates; {single} stand for a single token")


def quiz(
    corpus: Corpus,
    work: Work,
    out: Path,
    model: BundledModel = None,
    saes: SAEs = None,
    held_out: HeldOut = None,
    rows: Rows = 32,
    seed: int = 7,
) -> None:
    """Write the quiz of every card of OUT from held-out text: OUT/quiz/*.txt, answers in OUT/quiz_key.jsonl."""
    from recipes.bundled import open_model
    from recipes.labels.cards import read_cards, write_quiz

    lens = open_model(model)
    unseen = _held_out(lens, corpus, work, saes, held_out, rows)
    n, missing = write_quiz(read_cards(out / "cards.jsonl"), unseen, lens.tokens.display, out, seed)
    print(f"a quiz for {n} features; too few windows for {len(missing)}: {missing}")


def score(
    labels: Annotated[Path, typer.Option(help="JSONL: feature, label.", exists=True)],
    answers: Annotated[Path, typer.Option(help="JSONL: feature, active (window numbers judged active).", exists=True)],
    key: Annotated[Path, typer.Option(help="The quiz_key.jsonl.", exists=True)],
    out: Path,
    method: Annotated[str, typer.Option(help="How the labels were written.")] = "from top examples and promoted tokens",
    scorer: Annotated[str, typer.Option(help="What the score is.")] = "detection",
    keep: Annotated[float, typer.Option(help="Balanced accuracy that a label needs to be kept.")] = 0.7,
) -> None:
    """Score labels by the windows that a judge called active, and write those that pass into OUT."""
    from recipes.labels import score as scores
    from recipes.saes import DEPTHS

    texts = scores.read_labels(labels)
    verdict = scores.judge(texts, scores.read_answers(answers), scores.read_key(key), keep)
    scores.write_labels(verdict, texts, DEPTHS[DEPTH].folder, method, scorer, out)
    judged, kept = len(verdict.scores), len(verdict.kept)
    chance = scores.by_chance(5, 5, keep)
    print(f"{judged} labels judged, mean balanced accuracy {verdict.mean:.3f}")
    print(f"{kept} kept at {keep} or more, {judged - kept} failed; tossing coins {chance:.1%} would pass")
    print(f"{len(verdict.unanswered)} labels without an answer, {len(verdict.unlabelled)} quizzes without a label")


def meaning(
    corpus: Corpus,
    work: Work,
    model: BundledModel = None,
    saes: SAEs = None,
    tokens: Tokens = 2_000_000,
    features: Annotated[int, typer.Option(help="Random live features.")] = 200,
    rows: Rows = 32,
    seed: int = 7,
) -> None:
    """Print for each SAE how many random live features have top examples with more than three distinct tokens."""
    from recipes.bundled import open_model, sae_folders
    from recipes.labels.choose import meaning_share

    lens = open_model(model)
    for depth in sae_folders(saes):
        material = _trained_on(lens, corpus, work, saes, depth, tokens, rows)
        share, n = meaning_share(material, features, seed)
        print(f"{depth:8}{share:6.1%} of {n} random live features peak on more than three tokens in their top 20")


def _trained_on(
    lens: LensModel, corpus: Path, work: Path, saes: Path | None, depth: str, tokens: int, rows: int
) -> Material:
    from recipes.bundled import sae_folders
    from recipes.corpus import read_corpus
    from recipes.labels import material

    documents = material.training_sample(read_corpus(corpus), tokens)
    settings = material.FULL if depth == DEPTH else material.SLIM
    return material.index_documents(lens, sae_folders(saes)[depth][1], documents, work / "trained_on", settings, rows)


def _held_out(lens: LensModel, corpus: Path, work: Path, saes: Path | None, most: int | None, rows: int) -> Material:
    from recipes.bundled import sae_folders
    from recipes.corpus import read_corpus
    from recipes.labels import material

    documents = material.held_out(read_corpus(corpus), most)
    folder = sae_folders(saes)[DEPTH][1]
    return material.index_documents(lens, folder, documents, work / "held_out", material.FULL, rows)
