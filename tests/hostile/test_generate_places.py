"""Hostile text in the places of Generate: turns of a chat, tables of sets, live features, the history, blind trials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual import events
from textual.pilot import Pilot

from lens_tui.records import Arm, Sampling, Token
from lens_tui.records.chat import Turn
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.records.run_store import RunStore
from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.history_screen import HistoryScreen, TwoRunsScreen
from lens_tui.tui.set_text import SetText
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text
from tests.fakes import DEMO_MODEL, DEMO_SAE, FakeWorker
from tests.hostile.test_screen import HOSTILE, assert_tame
from tests.tui.opened import fill, jobs_of, opened, screen_of, settle

SIZES = pytest.mark.parametrize("size", [(120, 36), (80, 24)])
WRITABLE = tuple(text.encode("utf-8", "replace").decode() for text in HOSTILE)


@asynccontextmanager
async def generated(size: tuple[int, int], *keys: str) -> AsyncIterator[tuple[LensApp, Pilot[None]]]:
    async with opened("generate", size) as (app, pilot):
        for key in keys:
            await pilot.press(key)
            await settle(app, pilot)
        yield app, pilot


@SIZES
async def test_turns_of_a_chat_and_the_prompt_as_it_is_read(size: tuple[int, int]) -> None:
    async with generated(size) as (app, pilot):
        for text in HOSTILE:
            thought = Turn("assistant", f"<think>{text}</think>{text}")
            app.store.update(
                model=replace(DEMO_MODEL, takes_chat=True), chat=True, turns=(Turn(text, text), thought), prompt=text
            )
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("O", "c")
            await settle(app, pilot)
            assert_tame(app)
            # Display forms come made safe from the worker; markup in them is text.
            screen_of(app, GenerateScreen).talk._take(
                ev.PromptRead(1, (1, 2), ("[b]x[/b]", "[@click=app.quit]y[/]"), (("user", 0, 1),))
            )
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("O", "c")
            await settle(app, pilot)
        assert app.is_running


@SIZES
async def test_tables_of_sets(size: tuple[int, int]) -> None:
    async with generated(size) as (app, pilot):
        items = tuple(PromptItem(text, text) for text in HOSTILE)
        arms = tuple(Arm(text) for text in HOSTILE[:4])
        made = SetText.begin(1, jobs.ComparePrompts(arms, items), app.store.session)
        screen_of(app, GenerateScreen).sets.all.append(made)
        screen_of(app, GenerateScreen).show_set(made)
        made.apply(ev.SetStarted(1, "[b]mine[/b]", items, arms, (1, 2)))
        for _ in range(2 * len(items)):
            screen_of(app, GenerateScreen)._sync()
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("n", "v")
        await pilot.press("H")
        await settle(app, pilot)
        assert_tame(app)
        assert app.is_running


@SIZES
async def test_live_features(size: tuple[int, int]) -> None:
    async with generated(size, "F", "r") as (app, pilot):
        screen = screen_of(app, GenerateScreen)
        assert screen.run is not None
        ids = np.arange(len(HOSTILE), dtype=np.int32)[None].repeat(8, 0)
        for labelled in (True, False):
            names = tuple((place, text, labelled) for place, text in enumerate(HOSTILE))
            for arm in range(3):
                found = ev.ArmFeatures(1, DEMO_SAE.id, arm, 12, ids, 9.0 - ids.astype(np.float32), names, ((1, 0.7),))
                screen._take(screen.run, found)
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("}", "z", "l", "}", "z", "escape")
            await settle(app, pilot)
            assert_tame(app)


def hostile_run(text: str) -> RunRecord:
    plain, other = (tuple(Token(place, place, text, text, -1.0, arm) for place in range(3)) for arm in (0, 1))
    arms = (ArmRecord(Arm("baseline"), plain, text * 3, "stop"), ArmRecord(Arm(text), other[:2], text * 2, "length"))
    return RunRecord(text, text, arms, Sampling(), state="done", turns=(Turn(text, text),))


@SIZES
async def test_the_history_and_two_of_its_runs(size: tuple[int, int], tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    store = RunStore(database)
    for text in WRITABLE:
        store.keep(hostile_run(text))
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=size, notifications=True) as pilot:
        fill(app)
        await settle(app, pilot)
        for place in range(0, len(WRITABLE), 2):
            await pilot.press("H")
            await settle(app, pilot)
            assert isinstance(app.screen, HistoryScreen)
            assert_tame(app)
            await pilot.press(*["j"] * place, "space", "j", "space")
            await settle(app, pilot)
            assert_tame(app)
            if isinstance(app.screen, TwoRunsScreen):
                await pilot.press("right_square_bracket", "l", "l", "escape")
            await settle(app, pilot)
            await pilot.press("enter")  # put back
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("c", "B")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("v", "escape", "escape", "escape")
            await settle(app, pilot)
            if not isinstance(app.screen, GenerateScreen):
                await pilot.press("escape")
                await settle(app, pilot)
        assert app.is_running


@SIZES
async def test_what_is_pasted_among_the_lanes(size: tuple[int, int]) -> None:
    async with generated(size, "r") as (app, pilot):
        for text in HOSTILE:
            await pilot.press("escape")
            (app.focused or app.screen).post_message(events.Paste(f"{text}\r{text}"))
            await settle(app, pilot)
            assert_tame(app)
        assert "lines" in screen_text(app)


@pytest.mark.parametrize("mark", ["\u202e", "\x1b[31m"])
async def test_a_prompt_of_a_set_is_typed_and_pasted(mark: str) -> None:
    async with generated((80, 24), "S", "down") as (app, pilot):
        focused: Any = app.focused
        focused.post_message(events.Paste(f"a{mark}\r\nb|c\r"))
        await settle(app, pilot)
        assert_tame(app)
        await pilot.press("enter", "d", "enter", "enter")
        await settle(app, pilot)
        (job,) = jobs_of(app, jobs.ComparePrompts)
        assert [item.text for item in job.prompts] == [f"a{mark}", "b|c", "d"]
        assert_tame(app)
