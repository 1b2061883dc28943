"""Pairs of texts out of files of three kinds, and what is said of those that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lens_tui.records import LensError
from lens_tui.records.corpus import read_pairs

PAIRS = (("so glad", "hurrah"), ("so sad", "alas"))


def test_the_three_kinds_hold_the_same(tmp_path: Path) -> None:
    rows = [{"positive": one, "negative": other, "more": 1} for one, other in zip(*PAIRS, strict=True)]
    written = {
        "a.jsonl": "\n".join(map(json.dumps, rows)) + "\n\n",
        "b.json": json.dumps(rows),
        "c.tsv": "\ufeffso glad\tso sad\nhurrah\talas\n",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_pairs(tmp_path / name) == PAIRS


def test_questions_with_two_answers(tmp_path: Path) -> None:
    rows = [
        {"question": "Is it?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": "No"},
        {"question": "Which?\n", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"},
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    assert read_pairs(tmp_path / "q.json") == (("Is it? Yes", "Which?\n(A)"), ("Is it? No", "Which?\n(B)"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "contains no pairs"),
        ("a.txt", "one\ttwo\nthree", "pair 2 has 1 texts"),
        ("a.txt", "one\t ", "pair 1 has a text that is empty"),
        ("a.jsonl", '{"positive": "x"}', "pair 1 does not have two texts"),
        ("a.jsonl", '{"positive": "x", "negative": 3}', "pair 1 has a text that is empty or missing"),
        ("a.jsonl", "{", "pair 1 is not valid JSON"),
        ("a.json", "[" * 100_000, "is not valid JSON"),
        ("a.json", '"text"', "pair 1 does not have two texts"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LensError, match=message):
        read_pairs(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="There is no file"):
        read_pairs(tmp_path / "nothing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LensError, match="is not UTF-8"):
        read_pairs(tmp_path / "bytes.txt")
