"""From the history: a run is made again and held against what it was, and two runs are looked at side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.history_screen import HistoryScreen, TwoRunsScreen
from lens_tui.worker import jobs
from tests.tui.opened import opened, screen_text, settle


def said(app: LensApp) -> str:
    """The last thing that was said over the screen."""
    return [notice.message for notice in app._notifications][-1]


async def test_a_run_is_made_again_with_the_same_arms_and_changes() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        screen = app.screen
        assert isinstance(screen, GenerateScreen)
        old = screen.run
        assert old is not None
        changed = tuple(replace(item, scale=3.0) for item in old.arms[1].arm.interventions)  # type: ignore[call-arg]
        name = changed[0].id
        old.arms[1].tokens = [
            replace(token, scales=((name, 24.0 if token.index < 3 else 3.0),)) for token in old.arms[1].tokens
        ]
        await pilot.press("H", "r")
        await settle(app, pilot)
        again = screen.run
        assert again is not None
        assert again is not old
        job = [job for job in app.worker.submitted if isinstance(job, jobs.Compare)][-1]  # type: ignore[attr-defined]
        assert job.arms == tuple(text.arm for text in old.arms)
        assert (job.prompt, job.sampling, job.raw) == (old.prompt, old.sampling, old.raw)
        assert job.changes == ((1, 3, changed),)
        count = sum(len(arm.tokens) for arm in old.arms)
        assert app.activity.note == f"The same {count} tokens."


async def test_a_token_that_differs_is_named() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        screen = app.screen
        assert isinstance(screen, GenerateScreen)
        old = screen.run
        assert old is not None
        old.arms[2].tokens[1] = replace(old.arms[2].tokens[1], token_id=999, token="[red]x")
        await pilot.press("H", "r")
        await settle(app, pilot)
        await pilot.pause()
        assert said(app).startswith("sadness differs from token 1 on")
        assert "in place of “[red]x”" in said(app)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_two_runs_stand_side_by_side(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("r")
        await settle(app, pilot)
        screen = app.screen
        assert isinstance(screen, GenerateScreen)
        first = screen.history[0]
        first.arms[1].tokens[2] = replace(first.arms[1].tokens[2], token_id=999)
        await pilot.press("H", "space")
        await pilot.pause()
        assert "◆ is taken: space on another shows both" in screen_text(app)
        await pilot.press("j", "space")
        await settle(app, pilot)
        both = app.screen
        assert isinstance(both, TwoRunsScreen)
        assert [column.title for column in both.columns] == ["dogs", "dogs"]
        assert [column.view.mark for column in both.columns] == [2, 2]
        assert "dogs differs from token 2 on" in " ".join(screen_text(app).split())
        await pilot.press("l", "l")
        await pilot.pause()
        left, right = (column.view for column in both.columns)
        assert left.cursor is not None
        assert left.cursor == right.cursor
        await pilot.press("right_square_bracket")
        assert [column.title for column in both.columns] == ["sadness", "sadness"]
        await pilot.press("escape")
        assert isinstance(app.screen, HistoryScreen)


async def test_runs_that_were_asked_different_things_are_not_held_against_each_other() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        app.store.update(prompt="Something else")
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("H", "space", "j", "space")
        await settle(app, pilot)
        assert isinstance(app.screen, TwoRunsScreen)
        assert "They were asked different things (prompts)" in screen_text(app)
        assert "tokenizer" not in screen_text(app)
