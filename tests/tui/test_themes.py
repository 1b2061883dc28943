"""Theme files: the five that come with the app, and what is refused."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from rich.color import Color, ColorSystem

from lens_tui.records import LensError
from lens_tui.records.sanitise import sanitise_token
from lens_tui.tui import themes

FILES = sorted(themes.bundled_dir().glob("*.toml"))
EVERY = [themes.read_theme(path) for path in FILES]
ALL = [theme for theme in EVERY if not theme.ansi]
"""Those whose colours are known; what the terminal's own look like, the terminal knows."""


def ramp(theme: object, name: str, steps: int) -> list[str]:
    variables = theme.variables  # type: ignore[attr-defined]
    return [variables[f"{name}-{step}"] for step in range(steps)]


def test_there_are_five_and_one_is_light() -> None:
    assert [theme.name for theme in EVERY] == ["contrast", "ember", "ink", "paper", "terminal"]
    assert [theme.name for theme in ALL if not theme.dark] == ["paper"]
    assert themes.DEFAULT_THEME in {theme.name for theme in ALL}


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_heat_luminance_only_ever_goes_one_way(theme: object) -> None:
    values = [themes.luminance(step) for step in ramp(theme, "heat", 8)]
    assert values == sorted(values, reverse=not theme.dark)  # type: ignore[attr-defined]
    assert min(abs(a - b) for a, b in pairwise(values)) > 0.001


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_heat_keeps_eight_colours_on_a_256_colour_terminal(theme: object) -> None:
    numbers = [Color.parse(step).downgrade(ColorSystem.EIGHT_BIT).number for step in ramp(theme, "heat", 8)]
    assert len(set(numbers)) == 8, numbers


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_sign_leaves_zero_on_both_sides(theme: object) -> None:
    values = [themes.luminance(step) for step in ramp(theme, "sign", 9)]
    left, right = values[:5], values[4:]
    assert left == sorted(left, reverse=theme.dark)  # type: ignore[attr-defined]
    assert right == sorted(right, reverse=not theme.dark)  # type: ignore[attr-defined]
    assert len({Color.parse(step).downgrade(ColorSystem.EIGHT_BIT).number for step in ramp(theme, "sign", 9)}) >= 7


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_text_reads_on_every_step(theme: object) -> None:
    variables = theme.variables  # type: ignore[attr-defined]
    for name, steps in (("heat", 8), ("sign", 9)):
        for step in range(steps):
            ratio = themes.contrast(variables[f"{name}-{step}"], variables[f"{name}-text-{step}"])
            assert ratio >= 4.5, (name, step, ratio)


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_text_reads_on_the_background(theme: object) -> None:
    least = 7.0 if theme.name == "contrast" else 4.5  # type: ignore[attr-defined]
    back = theme.background  # type: ignore[attr-defined]
    for color in ("foreground", "accent", "error", "warning", "success"):
        assert themes.contrast(back, getattr(theme, color)) >= least, color
    assert themes.contrast(back, theme.variables["muted"]) >= least  # type: ignore[attr-defined]


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_the_cursor_is_clearly_unlike_every_shade_and_its_text_reads(theme: object) -> None:
    variables, back = theme.variables, theme.background  # type: ignore[attr-defined]
    for ground in (back, *ramp(theme, "heat", 8)):
        assert themes.difference(variables["cursor"], ground) >= themes.CLEARLY, ground
    assert themes.contrast(variables["cursor"], variables["cursor-text"]) >= 4.5


def test_how_far_apart_colours_look_is_what_others_compute() -> None:
    assert themes.difference("#ffffff", "#000000") == pytest.approx(100.0, abs=0.1)
    assert themes.difference("#ff0000", "#00ff00") == pytest.approx(170.6, abs=0.5)  # Bruce Lindbloom's calculator
    assert themes.difference("#123456", "#123456") == 0.0


def test_a_theme_whose_shades_are_like_its_text_and_accent_has_a_cursor_all_the_same() -> None:
    data = tomllib.loads((themes.bundled_dir() / "contrast.toml").read_text())
    data["colors"]["accent"] = "#dadada"
    theme = themes.theme_from(data, "mine")
    least = {
        color: min(themes.difference(color, step) for step in ramp(theme, "heat", 8))
        for color in ("#FFFFFF", "#DADADA", "#000000")
    }
    assert theme.variables["cursor"] == max(least, key=lambda color: least[color])
    assert themes.contrast(theme.variables["cursor"], theme.variables["cursor-text"]) >= 4.5


def test_contrast_is_wcags() -> None:
    assert themes.contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert themes.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_a_users_theme_wins_and_a_bad_one_is_named(tmp_path: Path) -> None:
    text = FILES[2].read_text().replace("#7fb4e6", "#123456")
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "broken.toml").write_text("name = ")
    found, problems = themes.load_themes((themes.bundled_dir(), tmp_path))
    assert found["ink"].accent == "#123456"
    assert len(found) == 5
    assert len(problems) == 1
    assert "broken.toml" in problems[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("name"), "no usable name"),
        (lambda data: data["colors"].pop("muted"), "colors.muted"),
        (lambda data: data["colors"].update(muted="not a colour"), "colors.muted"),
        (lambda data: data["heat"].update(steps=["#000"] * 7), "heat.steps"),
        (lambda data: data.update(sign=3), "sign.steps"),
        (lambda data: data.update(colors=3), "colors.background"),
    ],
)
def test_what_is_wrong_is_said(change: object, says: str) -> None:
    data = tomllib.loads(FILES[0].read_text())
    change(data)  # type: ignore[operator]
    with pytest.raises(LensError, match=says):
        themes.theme_from(data, "x.toml")


def test_a_hostile_theme_file_is_named_safely_and_shortly(tmp_path: Path) -> None:
    (tmp_path / "\x1b[31m\u202e.toml").write_text('name = "x"\n[colors]\nbackground = "' + "\\u009b" * 10_000 + '"\n')
    _, (problem,) = themes.load_themes((tmp_path,))
    assert sanitise_token(problem) == problem
    assert len(problem) <= 1300
