"""The features of what the arms write, on the Generate screen."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from rich.cells import cell_len
from textual.content import Content

from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.widgets.feature_card import FeatureMarks
from lens_tui.tui.widgets.lane import Lane
from lens_tui.tui.widgets.lane_foot import ListedFeature, feature_lines
from lens_tui.worker import jobs
from lens_tui.worker.events import ArmFeatures
from tests.fake_words import split
from tests.fakes import DEMO_SAE, TEXTS, FakeWorker

from .opened import jobs_of, opened, screen_of, screen_text, settle


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_run_reads_its_features_while_it_writes(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        (job,) = jobs_of(app, jobs.Compare)
        assert isinstance(job, jobs.Compare)
        assert job.sae == DEMO_SAE.id
        assert not jobs_of(app, jobs.ReadWritten)  # all of it came while it was written
        assert "features of the last 8 tokens" in screen_text(app)
        figures = f"7   5.00 {'█' * 20}" if size[1] > 30 else "7  5.0 █ → things"
        assert figures in screen_text(app)
        assert "→ things about 7" in screen_text(app)
        for lane in screen_of(app, GenerateScreen).lanes.lanes:
            if not lane.has_class("-away"):
                assert lane.view.size.height >= 2
        await pilot.press("F")
        await settle(app, pilot)
        assert "features of the last" not in screen_text(app)


async def test_a_run_without_them_is_read_when_they_are_asked_for() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        await pilot.press("F")
        await settle(app, pilot)
        (job,) = jobs_of(app, jobs.ReadWritten)
        assert isinstance(job, jobs.ReadWritten)
        assert (job.run, job.prompt, job.feature) == (run.job, run.prompt, -1)
        assert [arm[0] for arm in job.arms] == [arm.arm.interventions for arm in run.arms]
        assert [arm[1] for arm in job.arms] == [tuple(token.token_id for token in arm.tokens) for arm in run.arms]
        assert "features of the last 8 tokens" in screen_text(app)


async def test_the_explained_token_lists_its_features_in_every_arm() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        await pilot.press("g", "l", "l", "l", "l")
        await settle(app, pilot)
        shown = screen_text(app)
        at = screen_of(app, GenerateScreen).lanes.lanes[0].step
        assert at is not None
        assert shown.count(f"features of {at} ") == 3
        await pilot.press("escape")
        await settle(app, pilot)
        assert "features of the last 8 tokens" in screen_text(app)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_token_that_is_explained_leaves_its_text_in_sight(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        lane = app.screen.query_one(Lane)
        before = lane.view.size.height
        await pilot.press("h")
        await settle(app, pilot)
        assert lane.has_class("-inspecting")
        assert lane.view.size.height >= 4
        await pilot.press("escape")
        await settle(app, pilot)
        assert lane.view.size.height == before


async def test_a_feature_shades_every_lane_by_its_activation() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        await pilot.press("/", "7", "enter")
        await settle(app, pilot)
        last = jobs_of(app, jobs.ReadWritten)[-1]
        assert isinstance(last, jobs.ReadWritten)
        assert last.feature == 7
        assert "f7 things about 7" in screen_text(app)
        for arm, lane in enumerate(screen_of(app, GenerateScreen).lanes.lanes):
            words = split(TEXTS[arm])[: len(lane.view.tokens)]
            levels = [level > 0 for level in lane.view._levels]
            assert levels == ["o" in word for word in words]
            assert max(lane.view._levels) == 1 + int(7 * (4 + arm) / 6) if arm < 2 else 7
        await pilot.press("}")
        await settle(app, pilot)
        assert screen_of(app, GenerateScreen).measure == "feature"
        await pilot.press("v")
        await settle(app, pilot)
        assert screen_of(app, GenerateScreen).measure == "surprise"


async def test_without_an_sae_the_key_says_where_one_is() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(sae=None)
        await pilot.press("F", "}", "/", "z")
        await settle(app, pilot)
        assert not screen_of(app, GenerateScreen).features.on


LABEL = "'little' before a name of an animal"


@pytest.mark.parametrize("size", [(120, 36), (115, 40), (80, 36), (160, 36), (200, 36)])
async def test_no_label_is_cut_in_five_lanes_where_there_are_rows_for_it(size: tuple[int, int]) -> None:
    async with opened("generate", size, steers=4) as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        text = screen_text(app)
        lanes = [lane for lane in screen_of(app, GenerateScreen).lanes.lanes if not lane.has_class("-away")]
        for lane in lanes:
            _, rows, _ = lane.features.listed
            assert rows
            for row in rows:
                if cell_len(row.name.plain) + 2 <= lane.features.content_size.width:
                    assert row.name.plain in text, (row.name.plain, lane.size)
            assert lane.view.size.height >= 2


@pytest.mark.parametrize("width", [20, 22, 37, 38, 43, 44, 60])
@pytest.mark.parametrize("height", [24, 36])
@pytest.mark.parametrize("name", [LABEL, "[red]x[/]", "\u65e5\u672c\u8a9e" * 20, ""])
def test_lines_of_features_stay_in_their_width(width: int, height: int, name: str) -> None:
    marks = FeatureMarks(True, True, 0.72)
    rows = tuple(ListedFeature(place * 999, 20.0 - 6 * place, Content(name), marks) for place in range(1, 4))
    lines = feature_lines("features of the last 8 tokens", rows, "none", width, height)
    assert all(line.cell_length <= width for line in lines)
    assert len(lines) == 1 + (2 if width < 44 and height >= 34 else 1) * len(rows)
    assert all(str(row.feature) in "".join(line.plain for line in lines) for row in rows)
    if name == LABEL and width == 38:
        shown = "\n".join(
            line.plain for line in feature_lines("", (replace(rows[0], marks=FeatureMarks()),), "", 38, height)
        )
        assert (name if height >= 34 else name[:24]) in shown


def test_a_list_without_features_says_so_within_its_width() -> None:
    lines = feature_lines("features of the last 8 tokens", (), "none is active, or they are being read", 22, 24)
    assert lines[0].plain == "last 8 tokens"
    assert all(line.cell_length <= 22 for line in lines)


async def test_a_feature_that_is_typed_before_any_is_listed_shades_and_lists_them_all() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("/", "7", "enter")
        await settle(app, pilot)
        assert {job.feature for job in jobs_of(app, jobs.ReadWritten) if isinstance(job, jobs.ReadWritten)} == {-1, 7}
        assert all(lane.features.listed[1] for lane in screen_of(app, GenerateScreen).lanes.lanes)
        assert "none is active" not in screen_text(app)
        assert any(max(lane.view._levels) for lane in screen_of(app, GenerateScreen).lanes.lanes)


async def test_what_comes_of_an_earlier_run_leaves_the_lists_of_the_one_that_shows() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("F", "r")  # the reading of the first gives way to the second, and may end after it
        await settle(app, pilot)
        screen = screen_of(app, GenerateScreen)
        first, shown = screen.history
        listed = [lane.features.listed for lane in screen.lanes.lanes]
        assert all(rows for _, rows, _ in listed)
        ids, values = np.array([[7]], np.int32), np.array([[5.0]], np.float32)
        late = ArmFeatures(first.job, DEMO_SAE.id, 0, 0, ids, values, ((7, "late", True),), ())
        screen.features.take(app, first, late)
        assert screen.run is shown
        assert [lane.features.listed for lane in screen.lanes.lanes] == listed


async def test_features_asked_for_while_a_run_writes_without_them_say_when_they_come() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("r")
        cast("FakeWorker", app.worker).release(6)
        await pilot.pause(0.2)
        await pilot.press("F")
        await pilot.pause()
        assert "they are read once the run has ended" in " ".join(screen_text(app).split())
        cast("FakeWorker", app.worker).release(10_000)
        await settle(app, pilot)
        assert all(lane.features.listed[1] for lane in screen_of(app, GenerateScreen).lanes.lanes)


async def test_the_features_of_a_sets_prompt_are_listed_once_it_is_written_and_of_every_prompt() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("F", "S", "enter")
        cast("FakeWorker", app.worker).release(8)
        await pilot.pause(0.2)
        screen = screen_of(app, GenerateScreen)
        assert screen.run is not None
        assert screen.run.going
        cast("FakeWorker", app.worker).release(100_000)
        await settle(app, pilot)
        for _ in range(2):
            assert screen.run is not None
            assert all(lane.features.listed[1] for lane in screen.lanes.lanes), screen.run.prompt
            await pilot.press("n")
            await settle(app, pilot)
