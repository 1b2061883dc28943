"""Contrast, marks, dense features and lists on the Features screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lens_tui.records.feature_lists import FeatureLists
from lens_tui.records.store import Store
from lens_tui.tui.screens.feature_list_pane import FeatureListsScreen
from lens_tui.tui.screens.features_screen import FeaturesScreen
from lens_tui.tui.screens.form import FormScreen
from lens_tui.worker import jobs
from tests.fakes import DEMO_SAE

from .opened import jobs_of, opened, screen_of, screen_text, settle


async def test_two_sets_of_texts_are_contrasted_and_the_best_goes_to_the_bench() -> None:
    async with opened("features") as (app, pilot):
        await pilot.press("D")
        await pilot.pause()
        await pilot.press(*"a | b | c", "tab", "tab", *"d | e | f | g", "enter")
        await settle(app, pilot)
        assert isinstance(app.screen, FormScreen)  # three texts are too few: what was typed is still there
        assert "3 texts against 4" in screen_text(app)
        await pilot.press("end", *" | z", "enter")
        await settle(app, pilot)
        screen = screen_of(app, FeaturesScreen)
        job = jobs_of(app, jobs.ContrastTexts)[-1]
        assert job == jobs.ContrastTexts(DEMO_SAE.id, ("a", "b", "c", "z"), ("d", "e", "f", "g"))
        assert screen.list.features == (100, 101, 102, 103)
        shown = screen_text(app)
        assert "AUC     d     p" in shown
        assert "4 against 4 texts" in shown
        row = "100 1.00  +2.5  .001"
        assert row in shown
        ends = [
            next(line.index(part) + len(part) for line in shown.splitlines() if part in line)
            for part in (row, "d     p")
        ]
        assert ends[0] == ends[1]  # each name stands over the last digit of its column
        await pilot.press("j", "s")
        await settle(app, pilot)
        assert app.store.session.steers[-1].vector.origin.facts["feature"] == 101
        await pilot.press("escape")
        await settle(app, pilot)
        assert screen.list.listing is None
        assert screen.list.list.has_focus


async def test_a_list_of_one_feature_is_said_in_the_singular() -> None:
    async with opened("features") as (app, pilot):
        await pilot.press("space", "w")
        await pilot.pause()
        assert "A list of 1 marked feature of" in screen_text(app)
        await pilot.press(*"alone", "enter")
        await settle(app, pilot)
        await pilot.press("W")
        await pilot.pause()
        assert re.search(r"alone +1 feature  +· ", screen_text(app))


async def test_marked_features_are_kept_opened_deleted_and_brought_back() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        rows = screen.list.features
        await pilot.press("w")
        await pilot.pause()
        assert isinstance(app.screen, FeaturesScreen)  # nothing is marked
        await pilot.press("space", "j", "j", "space", "j", "space", "space")
        await settle(app, pilot)
        assert tuple(screen.list.marked) == (rows[0], rows[2])
        assert "✓ 2 marked" in screen_text(app)
        await pilot.press("w")
        await pilot.pause()
        await pilot.press(*"sea words", "enter")
        await settle(app, pilot)
        assert not screen.list.marked
        await pilot.press("W")
        await pilot.pause()
        assert "sea words" in screen_text(app)
        await pilot.press("d")
        await pilot.pause()
        assert "none yet" in screen_text(app)
        await pilot.press("u", "enter")
        await settle(app, pilot)
        assert screen_of(app, FeaturesScreen).list.features == (rows[0], rows[2])
        assert "sea words" in screen_text(app)
    with Store() as store:
        (kept,) = FeatureLists(store).all(DEMO_SAE.id)
        assert (kept.name, kept.features) == ("sea words", (rows[0], rows[2]))


async def test_a_list_is_written_where_one_says(tmp_path: Path) -> None:
    with Store() as store:
        FeatureLists(store).keep(DEMO_SAE.id, "a b", [5, 7])
    async with opened("features") as (app, pilot):
        await pilot.press("W")
        await pilot.pause()
        assert isinstance(app.screen, FeatureListsScreen)
        await pilot.press("e")
        await pilot.pause()
        await pilot.press("ctrl+u", *str(tmp_path / "l.csv"), "enter")
        await settle(app, pilot)
        assert jobs_of(app, jobs.ExportFeatures) == [
            jobs.ExportFeatures(DEMO_SAE.id, "a b", (5, 7), str(tmp_path / "l.csv"))
        ]


async def test_dense_features_are_left_out_until_they_are_asked_for() -> None:
    async with opened("features", dense={}) as (app, pilot):
        first = screen_of(app, FeaturesScreen).list.features[0]
    async with opened("features", dense={first: 0.72}) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        assert first not in screen.list.features
        assert "1 dense left out" in screen_text(app)
        await pilot.press("z")
        await settle(app, pilot)
        assert screen.list.features[0] == first
        assert "≋72%" in screen_text(app)


async def test_the_scale_of_a_feature_on_the_bench_follows_plus_and_minus() -> None:
    async with opened("features", steers=0) as (app, pilot):
        await pilot.press("+")
        assert not app.store.session.steers
        await pilot.press("s")
        await settle(app, pilot)
        (row,) = app.store.session.steers
        await pilot.press("+")
        assert app.store.session.steers[0].scale == row.moved(1).scale
        await pilot.press("-")
        assert app.store.session.steers[0].scale == row.moved(1).moved(-1).scale


async def test_where_there_is_one_text_the_cursor_stays() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        before = screen.text.view.cursor
        assert before is not None
        await pilot.press("]")
        await settle(app, pilot)
        assert screen.text.view.cursor == before


async def test_another_page_begins_at_its_top() -> None:
    async with opened("features", (80, 24)) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        scroll = screen.query_one("#card-scroll")
        await pilot.press("v")
        await settle(app, pilot)
        assert scroll.scroll_offset.y > 0
        await pilot.press("j")
        await settle(app, pilot)
        assert scroll.scroll_offset.y == 0


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_what_words_found_has_the_whole_row_for_its_name(size: tuple[int, int]) -> None:
    async with opened("features", size) as (app, pilot):
        await pilot.press("/", *"a rather long label", "enter")
        await settle(app, pilot)
        row = screen_of(app, FeaturesScreen).list._draw_row((17, 0.0), 40)[0].plain
        assert row.startswith("    17   ")
        assert "0.00" not in row
