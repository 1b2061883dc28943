"""The split, the tokenizer, the token files and the order of training."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recipes.batches import Batches
from recipes.corpus import SEPARATOR, read_corpus, split_documents
from recipes.tokens import TokenSet, check_vocabulary, load_tokens


def test_every_fortieth_document_is_held_out() -> None:
    text = "\n".join(f"document {index}\n{SEPARATOR}" for index in range(100))
    domain = split_documents("x", text)
    assert domain.held_out == ("document 7", "document 47", "document 87")
    assert len(domain.train) == 97
    assert not set(domain.train) & set(domain.held_out)


def test_folder_and_archive_read_alike(recipe: SimpleNamespace, tmp_path: Path) -> None:
    archive = tmp_path / "corpus.tar.xz"
    with tarfile.open(archive, "w:xz") as out:
        for path in sorted((recipe.root / "corpus").iterdir()):
            data = path.read_bytes()
            entry = tarfile.TarInfo(f"inner/{path.name}")
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    assert read_corpus(archive) == recipe.domains


def test_corpus_without_text_or_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.txt file"):
        read_corpus(tmp_path)
    (tmp_path / "short.txt").write_text(f"one\n{SEPARATOR}\ntwo\n{SEPARATOR}\n")
    with pytest.raises(ValueError, match=r"short\.txt has no document to hold out"):
        read_corpus(tmp_path)


def test_token_files_hold_each_document_once_and_no_held_out_one(recipe: SimpleNamespace) -> None:
    trained, held = load_tokens(recipe.root / "tokens", "train"), load_tokens(recipe.root / "tokens", "held_out")
    for domain in recipe.domains:
        for tokens, texts in ((trained[domain.name], domain.train), (held[domain.name], domain.held_out)):
            decoded = [
                recipe.tokenizer.decode([int(token) for token in tokens.document(index)[1:]])
                for index in range(len(tokens))
            ]
            assert decoded == list(texts)
            assert all(tokens.document(index)[0] == 0 for index in range(len(tokens)))
            assert tokens.characters.tolist() == [len(text) for text in texts]
    everything = "\n".join(recipe.tokenizer.decode([int(token) for token in tokens.ids]) for tokens in trained.values())
    assert not any(text in everything for domain in recipe.domains for text in domain.held_out)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    tokens = TokenSet(np.array([0, 5], np.uint16), np.array([0, 2]), np.array([3]))
    check_vocabulary({"x": tokens}, 6)
    with pytest.raises(ValueError, match="x: token id 5 is outside the vocabulary of 5"):
        check_vocabulary({"x": tokens}, 5)


def _numbered(documents: int, length: int, first: int) -> TokenSet:
    """Documents whose tokens are all different, so that a token says where it came from."""
    ids = np.arange(first, first + documents * length, dtype=np.uint16)
    return TokenSet(ids, np.arange(documents + 1, dtype=np.int64) * length, np.full(documents, length, np.int64))


def test_an_epoch_trains_on_each_token_at_most_once() -> None:
    sets = {"a": _numbered(30, 11, 0), "b": _numbered(10, 50, 1000)}
    batches = Batches(sets, context=8, batch=4, epochs=3)
    assert batches.steps == 3 * batches.steps_per_epoch
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        targets = np.concatenate([batches.step(step)[1].ravel() for step in steps])
        assert len(np.unique(targets)) == len(targets)
        # All but the leftover of a batch and one window's border.
        assert len(targets) > 30 * 11 + 10 * 50 - 4 * 8 - 8 - 1


def test_a_step_is_the_same_from_anywhere_and_targets_follow_inputs() -> None:
    sets = {"a": _numbered(30, 11, 0), "b": _numbered(10, 50, 1000)}
    walked = Batches(sets, context=8, batch=4, epochs=2)
    rows = [walked.step(step) for step in range(walked.steps)]
    late = walked.steps - 2
    inputs, targets = Batches(sets, context=8, batch=4, epochs=2).step(late)
    np.testing.assert_array_equal(inputs, rows[late][0])
    np.testing.assert_array_equal(targets, rows[late][1])
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    other = Batches(sets, context=8, batch=4, epochs=2, seed=1).step(late)[0]
    assert not np.array_equal(inputs, other)


def test_a_domain_can_be_seen_fewer_times() -> None:
    sets = {"a": _numbered(400, 10, 0), "b": _numbered(200, 20, 10_000)}
    batches = Batches(sets, context=8, batch=4, epochs=4, domain_epochs={"b": 1.0})
    seen = np.zeros(20_000, int)
    for step in range(batches.steps):
        np.add.at(seen, batches.step(step)[1].ravel(), 1)
    assert abs(seen[:4000].mean() - 4) < 0.1
    assert abs(seen[10_000:14_000].mean() - 1) < 0.05
    assert seen[10_000:14_000].max() == 1
    with pytest.raises(ValueError, match="no such domain: c"):
        Batches(sets, context=8, batch=4, epochs=4, domain_epochs={"c": 1.0})
