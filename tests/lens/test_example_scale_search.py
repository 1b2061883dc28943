"""The scale search example, as it stands."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "scale_search.py"


def test_it_finds_a_scale_and_shows_the_curve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--texts", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if line.startswith("scale ")]
    assert 0.2 < float(found.split("costs")[1].split()[0]) < 0.4
    assert sum("█" in line for line in lines) >= 2
    assert lines[-1].startswith("on texts it was not chosen on") or "turns back" in lines[-1]
