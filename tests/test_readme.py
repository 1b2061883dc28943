"""The README's words hold: its commands are there, its examples run."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The fenced block after a marker comment."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no {marker} block"
    return found[1]


def test_the_two_commands_are_marked() -> None:
    assert "mlx-lens-tui --demo" in block("open")
    assert "pytest" in block("test")


def test_the_library_examples_run_as_they_stand() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    space: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, "README.md", "exec"), space)
    assert "loss_s" in space


def test_every_picture_is_there() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"\]\((screenshots/[^)]+)\)", README):
        assert (root / name).exists(), name
