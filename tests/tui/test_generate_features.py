"""The features of what the arms write, on the Generate screen."""

from __future__ import annotations

from typing import cast

import pytest

from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.worker import jobs
from tests.fake_words import split
from tests.fakes import DEMO_SAE, TEXTS, FakeWorker

from .opened import opened, screen_text, settle


def screen_of(app: LensApp) -> GenerateScreen:
    assert isinstance(app.screen, GenerateScreen)
    return app.screen


def sent(app: LensApp, kind: type[jobs.Job]) -> list[jobs.Job]:
    return [job for job in cast("FakeWorker", app.worker).submitted if isinstance(job, kind)]


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_run_reads_its_features_while_it_writes(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        (job,) = sent(app, jobs.Compare)
        assert isinstance(job, jobs.Compare)
        assert job.sae == DEMO_SAE.id
        assert not sent(app, jobs.ReadWritten)  # all of it came while it was written
        assert "features of the last 8 tokens" in screen_text(app)
        assert "7   5.00 ████   → things" in screen_text(app)
        for lane in screen_of(app).lanes.lanes:
            if not lane.has_class("-away"):
                assert lane.view.size.height >= 2
        await pilot.press("F")
        await settle(app, pilot)
        assert "features of the last" not in screen_text(app)


async def test_a_run_without_them_is_read_when_they_are_asked_for() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        run = screen_of(app).run
        assert run is not None
        await pilot.press("F")
        await settle(app, pilot)
        (job,) = sent(app, jobs.ReadWritten)
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
        at = screen_of(app).lanes.lanes[0].step
        assert at is not None
        assert shown.count(f"features of {at} ") == 3
        await pilot.press("escape")
        await settle(app, pilot)
        assert "features of the last 8 tokens" in screen_text(app)


async def test_a_feature_shades_every_lane_by_its_activation() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("F", "r")
        await settle(app, pilot)
        await pilot.press("/", "7", "enter")
        await settle(app, pilot)
        last = sent(app, jobs.ReadWritten)[-1]
        assert isinstance(last, jobs.ReadWritten)
        assert last.feature == 7
        assert "f7 things about 7" in screen_text(app)
        for arm, lane in enumerate(screen_of(app).lanes.lanes):
            words = split(TEXTS[arm])[: len(lane.view.tokens)]
            levels = [level > 0 for level in lane.view._levels]
            assert levels == ["o" in word for word in words]
            assert max(lane.view._levels) == 1 + int(7 * (4 + arm) / 6) if arm < 2 else 7
        await pilot.press("}")
        await settle(app, pilot)
        assert screen_of(app).measure == "feature"
        await pilot.press("v")
        await settle(app, pilot)
        assert screen_of(app).measure == "surprise"


async def test_without_an_sae_the_key_says_where_one_is() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(sae=None)
        await pilot.press("F", "}", "/", "z")
        await settle(app, pilot)
        assert not screen_of(app).features.on
