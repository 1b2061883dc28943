"""The commands that make labels: cards, a quiz, the scores; and a figure about features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipes.options import BundledModel, Corpus, SAEs

if TYPE_CHECKING:
    from lens_tui import LensModel
    from recipes.labels.material import Material

Work = Annotated[Path, typer.Option(help="Folder for the indexes, some gigabytes; what is there is used again.")]
Tokens = Annotated[int, typer.Option(help="Tokens of training text, in about equal parts by domain.")]
HeldOut = Annotated[int | None, typer.Option(help="Held-out documents of a domain at most; all unless given.")]
Rows = Annotated[int, typer.Option(help="Windows of 512 tokens a forward pass.")]
Which = Annotated[
    str,
    typer.Option("--depth", help="Whose features: early, middle, late (layers 2, 4, 6), or transcoder-0 and so on."),
]

DEPTH = "middle"
"""The SAE of which cards and quizzes are made unless another is asked for."""

METHOD = "a language model, from top examples and promoted tokens"

WRITTEN = Path(__file__).parent / "written" / "labels.jsonl"
"""The labels that were written, those that failed too."""


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for name, command in (
        ("label-seen", seen),
        ("label-cards", cards),
        ("label-quiz", quiz),
        ("label-score", score),
        ("label-meaning", meaning),
    ):
        app.command(name)(command)


def seen(
    texts: list[str],
    out: Path,
    model: BundledModel = None,
    saes: SAEs = None,
    index: Annotated[Path | None, typer.Option(help="Folder with an index of the SAE; the bundled one's.")] = None,
    known: Annotated[list[Path] | None, typer.Option(help="JSONL of features to leave out; all with a label.")] = None,
    opening: Annotated[bool, typer.Option(help="Also read what the app opens with, and what its arms write.")] = True,
    strongest: Annotated[int, typer.Option(help="So many features of every token.")] = 8,
    densest: Annotated[float, typer.Option(help="Leave out features that are active on more of the index.")] = 0.2,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 180,
) -> None:
    """Write into OUT which features without a label stand among the strongest of any token of texts, for `--also`."""
    from lens_tui import demo, load_sae
    from recipes.bundled import open_model, sae_folders
    from recipes.labels import seen as first

    lens = open_model(model)
    sae = load_sae(sae_folders(saes)[DEPTH][1])
    density = first.index_of(sae, index or demo.model_path().parent / "index").density
    read = [*(first.opening_texts(lens) if opening else ()), *texts]
    found = first.strongest(lens, sae, read, strongest)
    labelled = first.features_of(known or [demo.LABELS, WRITTEN], sae_folders(saes)[DEPTH][1].name)
    chosen = first.missing(found, labelled, lambda feature: bool(density[feature] <= densest), limit)
    out.write_text(json.dumps(chosen) + "\n", encoding="utf-8")
    done = sum(one.feature in labelled for one in found)
    shares = (first.share(found, labelled), first.share(found, labelled | set(chosen)))
    print(
        f"{len(found)} features stand among the {strongest} strongest, {done} of them known; {len(chosen)} are listed"
    )
    print("known are {:.0%} of what is shown, with those listed {:.0%}".format(*shares))


def cards(
    corpus: Corpus,
    work: Work,
    out: Path,
    model: BundledModel = None,
    saes: SAEs = None,
    tokens: Tokens = 2_000_000,
    features: Annotated[int, typer.Option(help="How many are chosen; with 0 only those of --also get a card.")] = 560,
    also: Annotated[Path | None, typer.Option(help="JSON list of further features.", exists=True)] = None,
    known: Annotated[list[Path] | None, typer.Option(help="JSONL of features that are not chosen.")] = None,
    held_out: HeldOut = None,
    rows: Rows = 32,
    seed: int = 7,
    depth: Which = DEPTH,
) -> None:
    """Choose features of an SAE and write a card of each, from training text: OUT/cards/*.txt, cards.jsonl.

    A feature is left out if held-out text has too few places for its quiz. Those of ALSO may be of any density, and
    KNOWN does not concern them.
    """
    from recipes.bundled import embeddings, open_model
    from recipes.labels import cards as made
    from recipes.labels import choose, windows
    from recipes.labels import seen as first

    lens = open_model(model)
    seen = _trained_on(lens, corpus, work, saes, depth, tokens, rows, whole=True)
    unseen = _held_out(lens, corpus, work, saes, depth, held_out, rows)
    text, rows_of_tokens, maxima = lens.tokens.display, embeddings(lens), seen.index.max
    done = first.features_of(known or [], _folder(saes, depth).name)

    def may(feature: int) -> bool:
        return feature not in done and windows.enough(unseen, feature, float(maxima[feature]))

    found = choose.candidates(seen, rows_of_tokens, text, may) if features else []
    chosen = choose.choose(found, features)
    asked = [] if also is None else choose.read_features(also, seen.index.width)
    further = [
        one
        for feature in asked
        if windows.pick(unseen, feature, float(maxima[feature]), seed)
        and (one := choose.candidate(seen, feature, rows_of_tokens, text))
    ]
    everything = choose.union(chosen, further)
    made.write_cards([made.card(seen, candidate, text, seed) for candidate in everything], out)
    single = sum(candidate.single for candidate in everything)
    print(f"{seen.index.n_counted} tokens of training text, {unseen.index.n_counted} held out")
    print(f"{len(chosen)} chosen of {len(found)} candidates, {len(further)} of {len(asked)} that were asked for")
    print(f"{len(everything)} cards; {single} stand for a single token")


def quiz(
    corpus: Corpus,
    work: Work,
    out: Path,
    model: BundledModel = None,
    saes: SAEs = None,
    held_out: HeldOut = None,
    rows: Rows = 32,
    seed: int = 7,
    depth: Which = DEPTH,
) -> None:
    """Write the quiz of every card of OUT from held-out text: OUT/quiz/*.txt, answers in OUT/quiz_key.jsonl."""
    from recipes.bundled import open_model
    from recipes.labels.cards import read_cards, write_quiz

    lens = open_model(model)
    unseen = _held_out(lens, corpus, work, saes, depth, held_out, rows)
    n, missing = write_quiz(read_cards(out / "cards.jsonl"), unseen, lens.tokens.display, out, seed)
    print(f"a quiz for {n} features; too few windows for {len(missing)}: {missing}")


def score(
    labels: Annotated[Path, typer.Option(help="JSONL: feature, label.", exists=True)],
    answers: Annotated[Path, typer.Option(help="JSONL: feature, active (window numbers judged active).", exists=True)],
    key: Annotated[Path, typer.Option(help="The quiz_key.jsonl.", exists=True)],
    out: Path,
    method: Annotated[str, typer.Option(help="How the labels were written.")] = METHOD,
    scorer: Annotated[str, typer.Option(help="What the score is.")] = "detection",
    keep: Annotated[float, typer.Option(help="Balanced accuracy that a label needs to be kept.")] = 0.7,
    sae: Annotated[str | None, typer.Option(help="Folder of the features' SAE; the middle one's unless given.")] = None,
) -> None:
    """Score labels by the windows that a judge called active, and write those that pass into OUT."""
    from recipes.labels import score as scores
    from recipes.saes import DEPTHS

    texts = scores.read_labels(labels)
    verdict = scores.judge(texts, scores.read_answers(answers), scores.read_key(key), keep)
    scores.write_labels(verdict, texts, sae or DEPTHS[DEPTH].folder, method, scorer, out)
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


def _folder(saes: Path | None, depth: str) -> Path:
    from lens_tui import demo
    from recipes.bundled import sae_folders

    here = {name: folder for name, (_, folder) in sae_folders(saes).items()}
    here |= {f"transcoder-{layer}": folder for layer, folder in enumerate(demo.transcoder_paths())}
    if depth not in here:
        raise typer.BadParameter(f"{depth} is none of {', '.join(here)}", param_hint="--depth")
    return here[depth]


def _trained_on(
    lens: LensModel,
    corpus: Path,
    work: Path,
    saes: Path | None,
    depth: str,
    tokens: int,
    rows: int,
    whole: bool = False,
) -> Material:
    """The index of training text; ``whole`` keeps every activation, which cards need and counting does not."""
    from recipes.corpus import read_corpus
    from recipes.labels import material

    documents = material.training_sample(read_corpus(corpus), tokens)
    settings = material.FULL if whole or depth == DEPTH else material.SLIM
    return material.index_documents(lens, _folder(saes, depth), documents, work / "trained_on", settings, rows)


def _held_out(
    lens: LensModel, corpus: Path, work: Path, saes: Path | None, depth: str, most: int | None, rows: int
) -> Material:
    from recipes.corpus import read_corpus
    from recipes.labels import material

    documents = material.held_out(read_corpus(corpus), most)
    return material.index_documents(lens, _folder(saes, depth), documents, work / "held_out", material.FULL, rows)
