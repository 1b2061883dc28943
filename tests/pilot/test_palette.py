"""The palette and the sheet of keys and numbers: everything is found from every screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from textual.command import CommandList, CommandPalette
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from lens_tui.records import glossary
from lens_tui.tui.keys import SCREENS, by_id
from lens_tui.tui.screens.dose_pane import DosePane
from lens_tui.tui.screens.everywhere import HelpScreen
from lens_tui.tui.screens.feature_panes import FeaturePane, TextPane
from lens_tui.tui.screens.history_screen import HistoryScreen
from lens_tui.tui.screens.palette import WITHOUT_CURSOR, AppCommands, Command, ScreenCommands, rank
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.row_list import RowList
from tests.apps import lens_app, screen_text, settle
from tests.tui.opened import opened
from tests.tui.opened import settle as settle_opened

MODES = [mode for mode, _ in SCREENS]
SIZES = [(120, 36), (80, 24)]


def found(app: Any, query: str) -> list[str]:
    """What the palette of the screen that shows lists for a query, best first."""

    def every() -> Iterator[Command]:
        for provider in (ScreenCommands, AppCommands):
            yield from provider(app.screen).commands()

    ranked = sorted(((rank(query, item), item.name) for item in every()), key=lambda pair: -pair[0])
    return [name for score, name in ranked if score > 0]


def described(key_id: str) -> str:
    """What a key does, in the table's words."""
    return by_id()[key_id].description


async def asked(pilot: Pilot[Any], words: str) -> None:
    """Open the palette, type and take the first line."""
    await pilot.press("colon")
    await settle(pilot)
    await pilot.press(*words.replace(" ", "~").replace("~", " "))
    await pilot.pause(0.3)
    await pilot.press("enter")
    await settle(pilot)


@pytest.mark.parametrize("mode", MODES)
async def test_words_find_their_command_on_every_screen(mode: str) -> None:
    app = lens_app(screen=mode, model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        histories = ["generate.history", "causes.maps"]
        for name, command in zip(found(app, "history"), histories[:: -1 if mode == "causes" else 1], strict=False):
            assert described(command) in name
        assert found(app, "help")[0].startswith("Everywhere: these keys")
        assert any(described("generate.export") in name for name in found(app, "export")[:3])
        assert any(name.startswith("Load: load the model") for name in found(app, "model")[:8])
        assert found(app, "what is fvu")[0] == "What is FVU?"
        assert found(app, "paper")[0] == "Theme: paper"
        assert found(app, "quite unheard of") == []
        names = found(app, "e")
        assert len(set(names)) == len(names) or mode == "steer", "each command once"


async def test_of_two_matches_the_nearer_and_the_whole_word_come_first() -> None:
    here = Command("Lens: find a token", "", "", int)
    there = Command("Load: find a token", "", "", int, 1)
    part = Command("Lens: finding", "", "", int)
    assert rank("find", here) > rank("find", there) > rank("find", part) > 0
    assert rank("find token", part) == 0
    assert rank("export", Command("Generate: write the run", "generate export", "", int)) > 0


@pytest.mark.parametrize("mode", MODES)
async def test_before_a_letter_is_typed_the_screens_own_commands_are_first(mode: str) -> None:
    app = lens_app(screen=mode, model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        here = [command.name for command in ScreenCommands(app.screen).commands()]
        await pilot.press("colon")
        await settle(pilot)
        await pilot.pause(0.3)
        options = app.screen.query_one(CommandList).options
        shown = [option.hit.text for option in options]  # type: ignore[attr-defined]
        assert shown[: len(here)] == here
        assert len(shown) > len(here)


async def test_a_command_of_another_screen_goes_there_and_is_done() -> None:
    app = lens_app(screen="load", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await asked(pilot, "history runs")
        await settle(pilot, lambda: isinstance(app.screen, HistoryScreen))
        assert app.current_mode == "generate"


async def test_what_needs_a_cursor_there_only_goes_there() -> None:
    app = lens_app(screen="load", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        rows = app.store.session.steers
        await asked(pilot, "delete the row u brings")
        await settle(pilot, lambda: app.current_mode == "steer")
        assert app.store.session.steers == rows


async def test_a_model_is_loaded_by_name() -> None:
    app = lens_app(screen="load")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await asked(pilot, "load 1b")
        await settle(pilot, lambda: app.opening.model == "mlx-community/gemma-3-1b-it-4bit")


def test_commands_from_afar_are_keys() -> None:
    assert set(by_id()) >= WITHOUT_CURSOR


async def test_a_palette_is_closed_once_however_its_keys_are_bunched() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for key in ("colon", "enter", "escape", "escape"):
            app.simulate_key(key)
        await settle(pilot)
        assert app.is_running
        assert not isinstance(app.screen, CommandPalette)


async def test_the_sheet_lists_live_keys_and_filters() -> None:
    app = lens_app(screen="steer", model="demo", keys={"steer.zero": "Z"})
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("?")
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)
        await pilot.press(*"scale to zero")
        await settle(pilot)
        text = screen_text(app)
        line = next(line for line in text.splitlines() if "steer.zero" in line)
        assert " Z " in line
        assert "app.run" not in text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
async def test_no_word_of_the_sheet_is_cut(mode: str, size: tuple[int, int]) -> None:
    app = lens_app(screen=mode, model="demo")
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        keys = [key.description for key, _ in live(app)]
        await pilot.press("?")
        await settle(pilot)
        assert whole(app, keys)
        await pilot.press("tab")
        await settle(pilot)
        title = dict(SCREENS)[mode]
        assert whole(app, [term.means for term in glossary.on_screen(title)])
        assert whole(app, [term.unit_and_source for term in glossary.on_screen(title)])


def live(app: Any) -> list[Any]:
    from lens_tui.tui.screens.everywhere import live_keys

    return live_keys(app.screen)


def whole(app: Any, texts: list[str]) -> bool:
    """Whether each of the texts is in the sheet's lines as they are drawn, their column read from top to bottom."""
    sheet = app.screen.query_one("#keys", RowList)
    width = sheet.scrollable_content_region.width - 2  # the room of a caret
    column = " ".join(" ".join(app.screen._draw(line, width)[0].plain[16:].split()) for line in sheet.rows)
    drawn = "".join(column.split())
    for text in texts:
        missing = [word for word in text.split() if "".join(word.split()) not in drawn]
        assert missing == [], (text, missing)
    return "…" not in column.replace("FIT", "")


async def test_every_number_of_the_glossary_answers_in_the_sheet() -> None:
    app = lens_app(screen="features", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("?", "tab", *"fvu")
        await settle(pilot)
        text = screen_text(app)
        assert "▐Numbers▌" in text
        assert "variance unexplained" in " ".join(text.split())
        assert "unit: share, 0 up" in text
        assert "Mean number of features" not in text
        await pilot.press("escape")
        await settle(pilot)
        assert app.current_mode == "features"
        assert not isinstance(app.screen, HelpScreen)


async def test_the_palette_explains_a_number() -> None:
    app = lens_app(screen="load", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await asked(pilot, "perplexity own")
        await settle(pilot, lambda: isinstance(app.screen, HelpScreen))
        assert "▐Numbers▌" in str(app.screen.query_one("#pages", Static).content)
        assert "unit: effective choices" in screen_text(app)


async def test_the_numbers_begin_with_those_of_the_pane_that_has_the_focus() -> None:
    async with opened("features") as (app, pilot):
        for pane in ("text-pane", "card-pane"):
            within = app.screen.query_one(f"#{pane}", Pane)
            widget = next(node for node in within.walk_children(Widget) if node.focusable)
            app.screen.set_focus(widget)
            await pilot.pause()
            await pilot.press("?", "tab")
            await settle_opened(app, pilot)
            names = [line.head for line in app.screen.query_one("#keys", RowList).rows if line.head]
            assert within.explains
            assert names[0] == glossary.by_id(within.explains[0]).name
            await pilot.press("escape")
            await settle_opened(app, pilot)


async def test_the_measure_under_the_doses_cursor_is_explained_first() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("v")
        await settle(pilot)
        await pilot.press("j", "j")
        await settle(pilot)
        dose = app.screen.query_one(DosePane)
        measure = dose.chart.series[dose.chart.row].name
        await pilot.press("?", "tab")
        await settle(pilot)
        table = app.screen.query_one("#keys", RowList)
        assert table.rows[0].head == glossary.by_id(measure).name


def test_what_panes_explain_is_in_the_glossary() -> None:
    for pane in (TextPane(), FeaturePane(lambda: ()), DosePane()):
        assert pane.explains
        for name in pane.explains:
            assert glossary.by_id(name).means
