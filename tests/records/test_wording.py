"""Counts with their nouns, words that a text has, and that no screen or verb has its own way of either."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_tui
from lens_tui.records.wording import has_words, in_one_line, many, texts_in

ROOM = Path(lens_tui.__file__).parent


@pytest.mark.parametrize(
    ("number", "reads"), [(0, "0 models"), (1, "1 model"), (2, "2 models"), (1000, "1000 models"), (-1, "-1 models")]
)
def test_one_is_singular_and_all_else_plural(number: int, reads: str) -> None:
    assert many(number, "model") == reads


def test_the_number_may_be_written_in_its_own_way() -> None:
    assert many(18_400_000, "token", "18.4 M") == "18.4 M tokens"
    assert many(1, "token", "one") == "one token"


@pytest.mark.parametrize("room", ["tui", "cli"])
def test_no_screen_or_verb_writes_a_plural_of_its_own(room: str) -> None:
    own = re.compile(r"""\{['"]s['"] (?:if|\*)|(?<!of )\{len\([^{}]*\)\} [a-zA-Z]+s\b""")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOM / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("words", "has"),
    [("", True), ("  ", True), ("red CAR", True), ("strasse", True), ("red cat", False), ("a red", True)],
)
def test_a_text_has_words_in_any_order_and_case(words: str, has: bool) -> None:
    assert has_words("A Car on the Straße, red", words) is has


def test_whether_words_are_in_a_text_is_asked_in_one_place() -> None:
    own = re.compile(r"all\((\w+)(?:\.casefold\(\)|\.lower\(\))? in .* for \1 in (?:words|wanted|.*\.split\(\))")
    found = [path.name for path in sorted(ROOM.rglob("*.py")) if own.search(path.read_text(encoding="utf-8"))]
    assert found == ["wording.py"]


def test_texts_in_one_line_are_told_apart_by_bars_that_are_not_theirs() -> None:
    assert texts_in(r" a |b\\|c\|d| | ") == [" a ", "b\\", "c|d"]
    assert texts_in(r"C:\new\\x | \\server") == [
        "C:\\new\\\\x ",
        " \\\\server",
    ]  # a backslash is itself where no bar follows
    assert texts_in("") == texts_in(" | ") == []


@given(
    st.lists(st.text(st.sampled_from("a|\\ "), min_size=1).filter(str.strip), max_size=4), st.sampled_from(["|", " | "])
)
def test_texts_come_back_from_one_line(texts: list[str], between: str) -> None:
    found = texts_in(in_one_line(texts, between))
    assert [text.strip() for text in found] == [text.strip() for text in texts]
    if between == "|":
        assert found == texts
