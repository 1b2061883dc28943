"""Jump labels, and going on to what a search found."""

from __future__ import annotations

import numpy as np
import pytest

from lens_tui.tui.keys import SCREENS
from lens_tui.tui.screens.jump_screen import JumpScreen, names, targets
from lens_tui.tui.screens.lens_screen import ReadoutScreen
from lens_tui.tui.screens.load_screen import LoadScreen
from lens_tui.tui.widgets.frame import LensScreen
from lens_tui.tui.widgets.row_list import RowList
from tests.apps import lens_app
from tests.apps import settle as settle_plain
from tests.tui.opened import opened, screen_text, settle


@pytest.mark.parametrize("count", [0, 1, 26, 27, 300])
def test_no_label_begins_another(count: int) -> None:
    made = names(count)
    assert len(set(made)) == count
    assert not any(other != name and other.startswith(name) for name in made for other in made)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
@pytest.mark.parametrize("mode", [mode for mode, _ in SCREENS])
async def test_each_label_goes_to_its_place(mode: str, size: tuple[int, int]) -> None:
    async with opened(mode, size) as (app, pilot):
        below = app.screen
        first = len(targets(below))
        assert first
        for number in range(first):
            places = targets(below)  # what is in sight may follow the cursor
            label, place = names(len(places))[number % len(places)], places[number % len(places)]
            await pilot.press("f")
            await settle(app, pilot)
            assert isinstance(app.screen, JumpScreen)
            assert screen_text(app).split("\n")[place.at.y][place.at.x] == label
            await pilot.press(label)
            await settle(app, pilot)
            assert app.screen is below
            focused = below.focused
            assert focused is not None
            assert focused in below.focus_chain
            if isinstance(focused, RowList) and focused.rows:
                row = focused.content_region.y + focused.cursor * focused.row_height - focused.scroll_offset.y
                assert row == place.at.y
            await pilot.press("escape")
            await settle(app, pilot)


async def test_what_is_no_label_closes_and_a_resize_too() -> None:
    async with opened("steer") as (app, pilot):
        for key in ("escape", "full_stop"):
            await pilot.press("f")
            await pilot.press(key)
            await settle(app, pilot)
            assert isinstance(app.screen, LensScreen)
        await pilot.press("f")
        await settle(app, pilot)
        await pilot.resize_terminal(100, 30)
        await settle(app, pilot)
        assert isinstance(app.screen, LensScreen)


async def test_n_goes_through_what_the_filter_of_load_found() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await settle_plain(pilot)
        assert isinstance(app.screen, LoadScreen)
        await pilot.press("n")
        await settle_plain(pilot)
        assert "There is no filter" in screen_text(app)
        await pilot.press("/", *"gemma", "enter")
        await settle_plain(pilot)
        rows = app.screen.query_one("#list", RowList)
        seen = []
        for key in ("n", "n", "N"):
            await pilot.press(key)
            seen.append(rows.cursor)
        assert len(rows.rows) == 2
        assert seen == [1, 0, 1]


async def test_n_goes_to_the_next_cell_that_predicts_the_followed_token() -> None:
    async with opened("lens") as (app, pilot):
        screen = app.screen
        assert isinstance(screen, ReadoutScreen)
        lens = screen.read_out
        assert lens is not None
        lens.target_ranks[:] = 3
        lens.target_ranks[1, 2] = lens.target_ranks[2, 0] = 0
        assert int(np.sum(lens.target_ranks == 0)) == 2
        seen = []
        for key in ("n", "n", "n", "N"):
            await pilot.press(key)
            await pilot.pause()
            seen.append((screen.grid.row, screen.grid.column))
        assert seen[1:] == [{(1, 2): (2, 0), (2, 0): (1, 2)}[seen[0]], seen[0], seen[1]]


async def test_n_goes_to_the_next_token_where_the_shaded_feature_is_active() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("n")
        await settle(app, pilot)
        await pilot.press("F", "r")
        await settle(app, pilot)
        await pilot.press("]", "right_curly_bracket")
        await settle(app, pilot)
        screen = app.screen
        lane = screen.lanes.focused_lane  # type: ignore[attr-defined]
        known = screen.features.of(app, screen.run)  # type: ignore[attr-defined]
        assert lane is not None
        assert known is not None
        arm = screen.run.arms.index(lane.text)  # type: ignore[attr-defined]
        active = [at for at, value in enumerate(known.values(arm)) if value > 0]
        assert active
        lane.view.move_to(0)
        seen = []
        for _ in range(len(active)):
            await pilot.press("n")
            seen.append(lane.view.cursor)
        assert sorted(seen) == active
        await pilot.press("N")
        assert lane.view.cursor == seen[-2] if len(active) > 1 else seen[-1]


async def test_n_goes_through_the_rows_of_the_bench_with_what_was_typed() -> None:
    async with opened("steer", steers=4) as (app, pilot):
        rows = app.screen.query_one("#rows", RowList)
        before = rows.cursor
        await pilot.press("n")
        await settle(app, pilot)
        assert rows.cursor == before
        await pilot.press("/", *"s", "enter")  # dogs, sadness, verse, sea
        await settle(app, pilot)
        assert rows.cursor == 0
        seen = []
        for key in ("n", "n", "N", "N", "N"):
            await pilot.press(key)
            seen.append(rows.cursor)
        assert seen == [1, 2, 1, 0, 3]
