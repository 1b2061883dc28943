"""Index and train from the app: the forms, what they ask of the worker, going on, and what becomes of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui.tui.screens.features_screen import FeaturesScreen
from lens_tui.tui.screens.work_forms import Unfinished, begin, unfinished
from lens_tui.worker import jobs

from .opened import app_on, jobs_of, opened, screen_text, settle
from .test_generate import worker_of


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
@pytest.mark.parametrize("screen", ["load", "features"])
async def test_a_text_is_indexed_in_three_keys(screen: str, size: tuple[int, int]) -> None:
    async with opened(screen, size) as (app, pilot):
        await pilot.press("I")
        await pilot.pause()
        assert "train" in screen_text(app)
        await pilot.press("1")
        await pilot.pause()
        shown = screen_text(app)
        assert "Index a text" in shown
        assert "bundled" in shown
        await pilot.press("enter")
        await settle(app, pilot)
        sae = app.store.session.sae
        assert jobs_of(app, jobs.IndexText) == [jobs.IndexText((sae or "",), "bundled", full=True)]
        assert unfinished("demo") == ()
        assert app.store.session.work_done == 1


async def test_the_page_of_a_feature_is_read_again_when_an_index_came() -> None:
    async with opened("features") as (app, pilot):
        assert isinstance(app.screen, FeaturesScreen)
        before = sum(isinstance(job, jobs.ReadFeature) for job in worker_of(app).submitted)
        assert before
        await pilot.press("I", "1", "enter")
        await settle(app, pilot)
        assert sum(isinstance(job, jobs.ReadFeature) for job in worker_of(app).submitted) > before
        assert app.screen.page.pages


async def test_a_training_is_asked_for_with_all_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    async with opened("load") as (app, pilot):
        await pilot.press("I", "2")
        await pilot.pause()
        fields = {"text": str(tmp_path / "t.txt"), "layers": "0-2", "width": "512", "k": "8", "tokens": "1000"}
        from textual.widgets import Input

        for name, value in fields.items():
            app.screen.query_one(f"#{name}", Input).value = value
        from lens_tui.tui.widgets.entry import Pick

        app.screen.query_one("#kind", Pick).place = 2
        await pilot.press("enter")
        await settle(app, pilot)
        (job,) = jobs_of(app, jobs.TrainSAE)
        assert job == jobs.TrainSAE(
            fields["text"], (0, 1, 2), "transcoder", True, "resid_post", "batchtopk", 512, 8, 1000
        )
        assert app.store.session.work == ""


async def test_a_wrong_layer_or_text_stays_in_the_form() -> None:
    async with opened("load") as (app, pilot):
        await pilot.press("I", "2")
        await pilot.pause()
        from textual.widgets import Input

        app.screen.query_one("#layers", Input).value = "99"
        await pilot.press("enter")
        await pilot.pause()
        assert "layer needs a layer from 0 to" in screen_text(app)
        app.screen.query_one("#layers", Input).value = "1"
        app.screen.query_one("#text", Input).value = "/none/there"
        await pilot.press("enter")
        await pilot.pause()
        assert "text needs a file or folder that is there" in screen_text(app)
        assert not jobs_of(app, jobs.TrainSAE)


async def test_what_was_stopped_is_gone_on_with_after_a_restart() -> None:
    async with opened("load", hold=True) as (app, pilot):
        await pilot.press("I", "1", "enter")
        await pilot.pause()
        worker_of(app).release(6)
        await settle(app, pilot)
        assert app.activity.stage == "indexing"
        (going,) = unfinished("demo")
        assert 0 < going.share < 1  # noted while it goes: whoever is killed notes nothing at the end
        await pilot.press("x")
        worker_of(app).release()
        await settle(app, pilot)
        (work,) = unfinished("demo")
        assert 0 < work.share < 1
        first = jobs_of(app, jobs.IndexText)
    async with opened("load") as (app, pilot):  # another process, as far as it knows
        await pilot.press("I")
        await pilot.pause()
        assert "go on" in screen_text(app)
        assert work.title in screen_text(app)
        await pilot.press("3")
        await settle(app, pilot)
        assert jobs_of(app, jobs.IndexText) == first
        assert unfinished("demo") == ()


async def test_what_cannot_be_gone_on_with_says_why() -> None:
    begin(Unfinished("index", "demo", "index gone", {"text": "bundled", "sae": "gone", "tokens": "", "keep": "x"}))
    async with opened("load") as (app, pilot):
        await pilot.press("I", "3")
        await pilot.pause()
        assert "gone is not beside the model" in screen_text(app)


async def test_without_a_model_it_says_what_is_missing() -> None:
    app = app_on("load")
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.pause()
        await pilot.press("I")
        await pilot.pause()
        assert any("need a model" in note.message for note in app._notifications)


async def test_work_that_has_to_wait_for_another_job_says_so() -> None:
    async with opened("load", hold=True) as (app, pilot):
        await pilot.press("I", "1", "enter")
        await pilot.pause()
        waits = "It begins when what runs now is done."
        assert waits not in [note.message for note in app._notifications]
        worker_of(app).release(6)
        await settle(app, pilot)
        await pilot.press("2", "v", "1")
        await settle(app, pilot)
        await pilot.press("I", "1", "enter")
        await pilot.pause()
        assert waits in [note.message for note in app._notifications]
