"""Every known fault has its tests, findable by name, and its line in the table."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
HERE = TESTS / "peers" / "test_mlx_lens_faults.py"
TABLE = TESTS.parent / "docs" / "peers.md"


def faults(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"^def test_b(\d+)_", text, re.MULTILINE)}


def test_every_fault_is_tested_here_shown_there_and_told() -> None:
    known = set(range(1, 27))
    rooms = [path for path in TESTS.glob("*/**/test_*.py") if path != HERE]
    assert set().union(*(faults(path.read_text(encoding="utf-8")) for path in rooms)) == known
    assert faults(HERE.read_text(encoding="utf-8")) == known
    lines = re.findall(r"^\| B(\d+) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, lines)) == sorted(known)
