"""Counts with their nouns, and that no count on a screen or of a verb goes without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lens_tui
from lens_tui.records.wording import many

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
