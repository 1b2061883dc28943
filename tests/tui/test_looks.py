"""Which theme shows: following the terminal, its own colours, a user's theme saved anew; reduced motion; remarks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.style import Style
from textual import constants
from textual.widgets import Input

from lens_tui.records import paths
from lens_tui.records.settings import load_settings
from lens_tui.tui import themes
from lens_tui.tui.driver import PIECES_PATIENCE, TerminalText
from lens_tui.tui.preferences import Start, dark_by_variable
from lens_tui.tui.start import make_app
from lens_tui.tui.themes import bundled_dir
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.tui.widgets.token_layout import TokenStyles
from tests.apps import lens_app, painted, screen_text, settle
from tests.fakes import FakeWorker

LIGHT, DARK = b"\x1b]11;rgb:ffff/ffff/eeee\x1b\\", b"\x1b]11;rgb:1c1c/1c1c/1c1c\x07"


@pytest.mark.parametrize(
    ("reads", "typed", "heard"),
    [
        ([LIGHT], "", [(False, True)]),
        ([b"a" + DARK + b"b"], "ab", [(True, True)]),
        ([b"a" + LIGHT[:4], LIGHT[4:9], LIGHT[9:] + b"b"], "ab", [(False, True)]),
        ([LIGHT[:-1], LIGHT[-1:] + b"q"], "q", [(False, True)]),
        ([b"\x1b]11;rgba:0/0/0/f\x07x"], "x", [(True, True)]),
        ([b"\x1b[?997;2n", b"j\x1b[?997;1nk"], "jk", [(False, False), (True, False)]),
        ([b"\x1b[?99", b"7;2nj"], "j", [(False, False)]),
        ([b"\x1b]", b"j"], "\x1b]j", []),
        ([b"\x1b[A\x1b[?1;2cq\x1b[?0u\x1b[>0;276;0c\x1b[0n\x1b[8;24;80t"], "\x1b[Aq", []),
        ([b"\x1b]10;rgb:0/0/0\x1b\\a\x1b]52;c;aGk=\x07b\x1bP>|XTerm(380)\x1b\\c\x1b_Gi=31;OK\x1b\\d"], "abcd", []),
        ([b"\x1b[48;24;80;480;800t\x1b[?2026;2$y\x1b[24;80R"], "\x1b[48;24;80;480;800t\x1b[?2026;2$y\x1b[24;80R", []),
    ],
)
def test_what_the_terminal_says_of_its_background_is_heard_and_no_key_is_lost(
    reads: list[bytes], typed: str, heard: list[tuple[bool, bool]]
) -> None:
    said: list[tuple[bool, bool]] = []
    text = TerminalText(lambda dark, asked: said.append((dark, asked)))
    assert "".join(piece for read in reads for piece, _ in text.feed(read)) == typed
    assert said == heard


def test_what_only_looked_like_an_answer_was_typed() -> None:
    text = TerminalText()
    assert text.feed(b"\x1b]") == []
    assert text.rest() == "\x1b]"
    assert text.rest() == ""


@pytest.mark.parametrize("cut", [1, 2, *range(4, len(LIGHT))])  # at 3, ESC ] 1 is what somebody may have typed
def test_an_answer_in_pieces_over_a_slow_line_is_no_keys(cut: int) -> None:
    said: list[tuple[bool, bool]] = []
    text = TerminalText(lambda dark, asked: said.append((dark, asked)), lambda: 0.0)
    typed = "".join(piece for piece, _ in text.feed(b"a" + LIGHT[:cut])) + text.rest() + text.rest()
    typed += "".join(piece for piece, _ in text.feed(LIGHT[cut:] + b"b"))
    assert typed in ("ab", "a\x1bb", "a\x1b]b")
    assert said == [(False, True)]


def test_an_answer_without_an_end_holds_nothing_that_is_typed_back_for_long() -> None:
    now = [0.0]
    text = TerminalText(clock=lambda: now[0])
    assert text.feed(b"\x1b]11;rgb:ff") == []
    assert text.rest() == ""
    now[0] = PIECES_PATIENCE - 0.1
    assert text.feed(b"q") == []
    now[0] = PIECES_PATIENCE
    assert text.rest() == "q"
    assert text.feed(b"\x1b[?20") == []
    now[0] = 2 * PIECES_PATIENCE
    assert text.feed(b"26;2$y") == [("\x1b[?2026;2$y", False)]


async def test_without_a_choice_the_theme_follows_the_terminal() -> None:
    app = lens_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        assert app.theme == "ink"
        for dark, name in ((False, "paper"), (True, "ink"), (False, "paper")):
            app.terminal_is(dark)
            await settle(pilot)
            assert app.theme == name
        app.looks.show("ember")
        app.terminal_is(True)
        assert app.theme == "ember"
        app.looks.show("auto")
        assert app.theme == "ink"


@pytest.mark.parametrize(
    ("colors", "dark"),
    [
        ("0;15", False),
        ("15;0", True),
        ("0;7", False),
        ("12;8", True),
        ("0;default;15", False),
        ("default;default;0", True),
        *((f"0;{ground}", ground in (0, 1, 2, 3, 4, 5, 6, 8)) for ground in range(16)),
        *((odd, True) for odd in ("", "15", ";15", "0;", "0;16", "0;99", "0;-1", "0;+15", "0;1 5", " 0;15", "0;15\n")),
        *((odd, True) for odd in ("default;default", "0;٩", "0;0;0;15", "0;15;", "\x1b[0;15m", "0;" + "15" * 9999)),
    ],
)
def test_the_variable_of_a_silent_terminal_is_read_and_what_is_odd_in_it_is_dark(colors: str, dark: bool) -> None:
    assert dark_by_variable(colors) is dark


async def test_a_terminal_that_answers_nothing_is_light_by_its_variable_until_it_says_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path))
    monkeypatch.setenv("COLORFGBG", "0;15")
    assert make_app(FakeWorker()).start_with.dark is False
    app = lens_app(dark=False)
    assert app.theme == "paper"
    async with app.run_test() as pilot:
        await settle(pilot)
        assert app.theme == "paper"
        assert app.looks.following
        app.terminal_is(True)
        assert app.theme == "ink"


async def test_a_theme_by_name_does_not_follow() -> None:
    app = lens_app(theme="ember")
    async with app.run_test() as pilot:
        await settle(pilot)
        app.terminal_is(False)
        await settle(pilot)
        assert app.theme == "ember"


async def test_following_is_a_choice_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path))
    app = lens_app(theme="ember")
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("T", "g", "enter")
        await settle(pilot)
        assert app.theme == "ink"
        assert load_settings().look.theme == "auto"


async def test_the_terminals_colours_reach_it_as_they_are() -> None:
    app = lens_app(screen="steer", model="demo", theme="terminal")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        colors = {
            color
            for strip in painted(app)
            for segment in strip
            if segment.style is not None
            for color in (segment.style.color if segment.text.strip() else None, segment.style.bgcolor)
            if color is not None
        }
        assert colors
        assert all(color.triplet is None for color in colors), colors
        assert {color.number for color in colors} > {None, 4, 8}


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_every_theme_can_be_looked_at(size: tuple[int, int]) -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("T")
        seen = set()
        for _ in app.looks.names:
            await settle(pilot)
            seen.add(app.theme)
            await pilot.press("j")
        assert seen == set(app.themes)
        await pilot.press("escape")
        await settle(pilot)
        assert app.looks.following


def write(path: Path, accent: str) -> None:
    """A theme file, saved later than the one before by any clock."""
    text = (bundled_dir() / "ink.toml").read_text().replace('name = "ink"', 'name = "mine"').replace("#7fb4e6", accent)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


async def test_a_users_theme_shows_as_soon_as_it_is_saved_and_an_error_in_it_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    write(file, "#123456")
    app = lens_app(theme="mine", theme_folders=(tmp_path,))
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await settle(pilot)
        assert app.theme_variables["accent"].lower() == "#123456"
        write(file, "#abcdef")
        await settle(pilot, lambda: app.theme_variables["accent"].lower() == "#abcdef")
        write(file, "no colour at all")
        await settle(pilot, lambda: "mine.toml has no colour" in screen_text(app).replace("\n", " "))
        assert app.theme_variables["accent"].lower() == "#abcdef"
        write(file, "#fedcba")
        await settle(pilot, lambda: app.theme_variables["accent"].lower() == "#fedcba")


async def test_only_a_users_theme_is_watched(tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", "#123456")
    app = lens_app(theme_folders=(tmp_path,))
    async with app.run_test() as pilot:
        await settle(pilot)
        assert not list(app._timers)
        app.looks.show("mine")
        assert len(list(app._timers)) == 1
        app.looks.show("ink")
        await settle(pilot)
        assert not list(app._timers)


def test_a_theme_of_the_terminals_colours_says_what_text_goes_on_them(tmp_path: Path) -> None:
    text = (bundled_dir() / "terminal.toml").read_text()
    (tmp_path / "x.toml").write_text("\n".join(line for line in text.split("\n") if not line.startswith("text")))
    found, problems = themes.load_themes((tmp_path,))
    assert not found
    assert "heat.text" in problems[0]


async def test_with_reduced_motion_nothing_slides_or_blinks() -> None:
    for reduced in (False, True):
        app = lens_app(reduced_motion=reduced)
        async with app.run_test() as pilot:
            await settle(pilot)
            await pilot.press("slash")
            await settle(pilot)
            assert app.query_one("#entry", Input).cursor_blink is not reduced
            assert app.animation_level == ("none" if reduced else constants.TEXTUAL_ANIMATIONS)


def test_reduced_motion_is_a_setting_and_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path))
    wanted: list[Start] = []
    for variable in ("", "0", "1"):
        monkeypatch.setenv("LENS_TUI_REDUCED_MOTION", variable)
        wanted.append(make_app(FakeWorker()).start_with)
    monkeypatch.delenv("LENS_TUI_REDUCED_MOTION")
    paths.settings_file().parent.mkdir(parents=True, exist_ok=True)
    paths.settings_file().write_text('[look]\nmotion = "reduced"\n')
    wanted.append(make_app(FakeWorker()).start_with)
    assert [start.reduced_motion for start in wanted] == [False, False, True, True]


def _seen(style: Style) -> tuple[str, str]:
    """The text's colour and the ground's, as the terminal would show them."""
    assert style.color is not None
    assert style.bgcolor is not None
    text, ground = style.color.name, style.bgcolor.name
    return (ground, text) if style.reverse else (text, ground)


@pytest.mark.parametrize("name", sorted(path.stem for path in bundled_dir().glob("*.toml")))
async def test_the_cursor_of_a_heat_map_shows_at_every_shade(name: str) -> None:
    app = lens_app(screen="lens", theme=name)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        grid = app.screen.query_one("#grid", HeatGrid)
        levels = list(range(8))
        grid.show([f"c{level}" for level in levels], ["L0"], [[(f"cell{level}", level) for level in levels]])
        for level in levels:
            grid.move_to(0, level)
            await settle(pilot)
            cells = {
                segment.text.strip(): segment.style
                for strip in painted(app)
                for segment in strip
                if segment.style is not None and segment.text.startswith("cell")
            }
            assert len(cells) == 8
            here = cells.pop(f"cell{level}")
            assert here.bold
            assert not any(style.bold or style.reverse for style in cells.values())
            if app.theme_variables["cursor"].startswith("ansi_"):
                assert here.reverse  # by the terminal, whose colours nobody knows
                continue
            text, ground = _seen(here)
            assert themes.contrast(text, ground) >= 4.5
            for style in cells.values():
                assert themes.difference(ground, _seen(style)[1]) >= themes.CLEARLY


@pytest.mark.parametrize("name", sorted(path.stem for path in bundled_dir().glob("*.toml")))
async def test_the_cursor_of_a_text_shows_at_every_shade(name: str) -> None:
    app = lens_app(theme=name)
    async with app.run_test():
        styles = TokenStyles.of(app.theme_variables, Style(color="#808080", bgcolor="#808080"))
        if app.theme_variables["cursor"].startswith("ansi_"):
            assert styles.cursor.reverse
            return
        text, ground = _seen(styles.cursor)
        assert themes.contrast(text, ground) >= 4.5
        for style in styles.heat[1:]:
            assert themes.difference(ground, _seen(style)[1]) >= themes.CLEARLY


async def test_what_is_said_again_takes_the_place_of_what_was_said() -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await settle(pilot)
        for message in ("Once.", "Twice.", "Twice.", "Twice."):
            app.say(message)
        await settle(pilot)
        app.say("Twice.")
        await settle(pilot)
        assert [notice.message for notice in app._notifications] == ["Once.", "Twice."]
        shown = screen_text(app)
        assert (shown.count("Once."), shown.count("Twice.")) == (1, 1)
        holders = app.screen.query("ToastHolder")
        assert len(holders) == 2, "nothing is left of a remark that another one took the place of"
