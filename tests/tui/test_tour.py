"""The tour: five steps, each done by the keys it names, left and taken up again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.widgets._toast import Toast

from lens_tui.tui.keys import by_id
from lens_tui.tui.tour import STEPS, TourLine
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import FakeWorker


def test_every_key_that_a_step_names_is_one() -> None:
    assert len(STEPS) == 5
    for step in STEPS:
        named = re.findall(r"\{([^}]*)\}", step.says)
        assert named
        assert set(named) <= set(by_id())
        caps = step.text(lambda name: f"<{name}>")
        assert re.findall(r"<([^>]*)>", caps) == named
        assert "{" not in caps


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_steps_are_done_by_their_keys(size: tuple[int, int], tmp_path: Path) -> None:
    file, worker = tmp_path / "tour", FakeWorker()
    app = lens_app(worker, tour=file)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert "ctrl+t begins a tour" in screen_text(app).replace("^t", "ctrl+t")
        await pilot.press("ctrl+t")
        await settle(pilot)
        assert jobs.LoadModel("demo") in worker.submitted
        seen = []
        for keys in (["r"], ["4"], ["j", "s"], ["2", "+"], ["3", "r"]):
            text = screen_text(app)
            seen.append(next(number for number in range(1, 6) if f"{number}/5" in text))
            assert "leaves" in text
            for key in keys:
                await pilot.press(key)
                await settle(pilot)
        assert seen == [1, 2, 3, 4, 5]
        assert app.tour_step == -1
        assert "/5  " not in screen_text(app)
        assert file.read_text() == "5"


async def test_it_can_be_left_and_taken_up_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "tour"
    app = lens_app(model="demo", screen="generate", tour=file)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+t", "r")
        await settle(pilot)
        assert app.tour_step == 1
        await pilot.press("ctrl+t")
        await settle(pilot)
        assert app.tour_step == -1
        assert "takes the tour up" in screen_text(app)
        await pilot.press("4")
        await settle(pilot)
        assert file.read_text() == "1"
    again = lens_app(model="demo", screen="load", tour=file)
    async with again.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "New here?" not in screen_text(again)
        await pilot.press("ctrl+t")
        await settle(pilot)
        assert again.tour_step == 1
        assert again.current_mode == "generate"


async def test_without_a_file_nobody_is_invited() -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "tour" not in screen_text(app)


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_a_remark_does_not_cover_what_the_tour_says(size: tuple[int, int]) -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+t")
        app.say("a remark of some words")
        await settle(pilot)
        toast, line = (app.screen.query_one(kind).region for kind in (Toast, TourLine))
        assert line.height > 0
        assert toast.height > 0
        assert toast.bottom <= line.y
        await pilot.press("ctrl+t")
        await settle(pilot)
        assert app.screen.query(Toast).last().region.bottom == size[1] - 2, "what is said is whole, over the status"
