"""Every screen in every theme and without colour, at two sizes: the text once, and the styles of each theme as runs.

Small and readable in a diff, where five SVG files a screen would be neither. After a change that was meant:
`pytest tests/snapshots --snapshot-update`.
"""

from __future__ import annotations

import os
from itertools import groupby
from typing import Any

import pytest
from rich.style import Style

from lens_tui.tui.app import LensApp
from lens_tui.tui.keys import SCREENS
from tests.apps import painted, screen_text
from tests.tui.opened import opened, settle

pytestmark = [pytest.mark.usefixtures("still_cursor")]
SIZES = {"wide": (120, 36), "narrow": (80, 24)}
KEYS = {"generate": ("r", "]"), "steer": ("j",), "features": ("h", "j"), "lens": ("h", "j"), "load": ("j",)} | {
    "causes": ("enter", "j"),
    "graph": ("V", "V", "V", "enter", "n", "n", "n", "c"),
}
VIEWS = {"graph": "causes"}
"""Views that are pictures of their own, and the screens they are on."""
MODES = [*(mode for mode, _ in SCREENS), *VIEWS]
THEMES = ("contrast", "ember", "ink", "paper", "terminal")


def styles(app: LensApp) -> str:
    """The style of every cell: a legend, and for each row its runs, as a legend's letters with their lengths."""
    legend: dict[str, str] = {}
    rows = []
    for strip in painted(app):
        cells = [(_named(segment.style), len(segment.text)) for segment in strip if segment.text]
        runs = [(style, sum(length for _, length in group)) for style, group in groupby(cells, lambda cell: cell[0])]
        rows.append(" ".join(f"{legend.setdefault(style, _letter(len(legend)))}{length}" for style, length in runs))
    return "\n".join([*(f"{letter} = {style}" for style, letter in legend.items()), "", *rows])


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"{_letter(number // 26 - 1)}{_letter(number % 26)}"


def _named(style: Style | None) -> str:
    return str(style.without_color + Style(color=style.color, bgcolor=style.bgcolor)) if style is not None else "none"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mode", MODES)
async def test_a_screen_in_every_theme(mode: str, size: tuple[int, int], snapshot: Any) -> None:
    async with opened(VIEWS.get(mode, mode), size) as (app, pilot):
        for key in KEYS[mode]:
            await pilot.press(key)
            await settle(app, pilot)
        text = screen_text(app)
        assert text == snapshot(name="text")
        assert set(app.themes) == set(THEMES)
        for theme in THEMES:
            app.looks.show(theme)
            await settle(app, pilot)
            assert screen_text(app) == text
            assert styles(app) == snapshot(name=theme)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mode", MODES)
async def test_a_screen_without_colour(
    mode: str, size: tuple[int, int], snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "NO_COLOR" in os.environ
    async with opened(VIEWS.get(mode, mode), size) as (app, pilot):
        for key in KEYS[mode]:
            await pilot.press(key)
            await settle(app, pilot)
        assert screen_text(app) == snapshot(name="text")
        colors = {
            color.triplet
            for strip in painted(app)
            for segment in strip
            if segment.style is not None
            for color in (segment.style.color, segment.style.bgcolor)
            if color is not None and color.triplet is not None
        }
        assert all(red == green == blue for red, green, blue in colors)
