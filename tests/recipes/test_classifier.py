from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from recipes import classifier
from recipes.__main__ import app
from recipes.passages import draw, passages

TEXTS = {
    "sea": ["The waves, the waves!\nThe gull is on the mast.", "a mast and a sail and 12 gulls"],
    "farm": ["the cow is in the barn\n\nthe cow", "hay, hay and milk; 3 cows"],
    "empty": ["the the"],
}


def test_passages_are_the_document_in_order_cut_at_white_space() -> None:
    source = random.Random(0)
    document = " ".join("x" * source.randint(1, 12) for _ in range(300))
    pieces = passages(document, 100)
    assert document.startswith("".join(pieces))
    assert len(document) - len("".join(pieces)) < 50
    assert all(50 <= len(piece) <= 100 for piece in pieces)
    assert all(piece.startswith(" ") for piece in pieces[1:])
    assert passages("a" * 250, 100) == ["a" * 100, "a" * 100, "a" * 50]
    assert passages("short", 100) == []


def test_drawn_passages_depend_on_the_seed_and_are_few_of_each_document() -> None:
    documents = [f"{name} " * 100 for name in "abcdef"]
    drawn = draw(documents, 8, most=2, seed=3, size=40)
    assert drawn == draw(documents, 8, most=2, seed=3, size=40) != draw(documents, 8, most=2, seed=4, size=40)
    assert len(drawn) == 8
    assert max(sum(name in text for text in drawn) for name in "abcdef") == 2
    assert len(draw(documents, 99, most=1, size=40)) == 6


def test_the_words_of_a_text() -> None:
    found = classifier.words("Don't stop, 42 of 1066!\nNext\n\nlast\n    if x:\n\n\n  y")
    expected = ["don't", "stop", ",", "0", "of", "0", "!", "\n", "next", "\n\n", "last", "\n ", "if", "x", ":", "\n "]
    assert found == [*expected, "y"]


def test_scores_are_those_of_naive_bayes() -> None:
    made = classifier.fit(TEXTS, least=2, smoothing=0.5)
    known = {word: [" ".join(texts).lower() for texts in TEXTS.values()] for word in ("cow", "mast", "hay", "gull")}
    assert {"cow", "mast", "hay", "the"} <= set(made.vocabulary)
    assert not {"gull", "barn", "sail"} & set(made.vocabulary)  # once each
    assert len(known) == 4
    counts = np.array(
        [[sum(classifier.words(t).count(w) for t in texts) for w in made.vocabulary] for texts in TEXTS.values()]
    )
    total = [
        sum(math.log((row[made.vocabulary.index(w)] + 0.5) / (row.sum() + 0.5 * len(row))) for w in ("the", "cow"))
        for row in counts
    ]
    assert made.scores("The cow barn") == pytest.approx(total, rel=1e-6)
    assert made.domain("The cow barn") == "farm"
    assert made.domain("masts of a mast") == "sea"
    assert made.domain("zebra") == made.domain("") == ""


def test_the_command_saves_one_that_knows_held_out_passages(recipe: SimpleNamespace, tmp_path: Path) -> None:
    asked = ["classifier", "--corpus", str(recipe.root / "corpus"), str(tmp_path / "made" / "c.npz")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    read = classifier.load(tmp_path / "made" / "c.npz")
    again = classifier.train(recipe.domains)
    assert read.domains == again.domains == ("code", "farm", "ship")
    assert read.vocabulary == again.vocabulary
    assert np.array_equal(read.logprobs, again.logprobs)
    assert read.domain("the cow and the gate and mud") == "farm"
    assert "farm            1.000" in done.output
