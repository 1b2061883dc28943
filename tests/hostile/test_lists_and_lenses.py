"""Hostile text in lists of features and in what layers say through either lens."""

from __future__ import annotations

from lens_tui.records.feature_lists import FeatureLists
from lens_tui.records.store import Store
from lens_tui.tui.screens.feature_lists_screen import FeatureListsScreen
from tests.fakes import DEMO_SAE
from tests.hostile.test_generate_places import SIZES, WRITABLE
from tests.hostile.test_screen import HOSTILE, assert_tame
from tests.tui.opened import opened, settle


@SIZES
async def test_names_of_lists(size: tuple[int, int]) -> None:
    with Store() as store:
        lists = FeatureLists(store)
        for place, text in enumerate(WRITABLE):
            if text.strip():
                lists.keep(DEMO_SAE.id, text[:80], [place, place + 1])
    async with opened("features", size) as (app, pilot):
        await pilot.press("W")
        await settle(app, pilot)
        assert isinstance(app.screen, FeatureListsScreen)
        for _ in range(3):
            await pilot.press("e")
            await pilot.pause()
            assert_tame(app)
            await pilot.press("escape", "d")
            await pilot.pause()
            assert_tame(app)
            await pilot.press("u", "j", "j")
            await pilot.pause()
            assert_tame(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert_tame(app)
        assert app.is_running


@SIZES
async def test_layers_read_through_either_lens(size: tuple[int, int]) -> None:
    async with opened("lens", size) as (app, pilot):
        for text in HOSTILE[:-1]:
            app.store.update(prompt=text[:200])
            await settle(app, pilot)
            await pilot.press("M", "l", "k")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("enter")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("escape")
        assert app.is_running
