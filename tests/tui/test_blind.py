"""Blind judgement on Generate: no lane says which it is, a key prefers one, the tally reveals and is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from lens_tui.records import Arm, Sampling
from lens_tui.records.judgements import JudgementStore, wilson
from lens_tui.records.run_store import RunStore
from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.blind_screen import BlindScreen, interval_bar
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.worker import jobs
from lens_tui.worker.events import RunKept
from tests.fakes import PROMPTS
from tests.tui.opened import opened, screen_text, settle

NAMES = ("dogs", "sadness", "baseline")


def blind(app: LensApp) -> BlindScreen:
    assert isinstance(app.screen, BlindScreen)
    return app.screen


async def start(app: LensApp, pilot: Pilot[None], **sampling: float) -> BlindScreen:
    app.store.update(sampling=Sampling(max_tokens=20, **sampling))  # type: ignore[arg-type]
    await pilot.press("B")
    await settle(app, pilot)
    return blind(app)


def shown(screen: BlindScreen) -> list[str]:
    return ["".join(lane.view.tokens) for lane in screen._lanes]


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_nothing_on_the_screen_says_which_lane_is_which(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        screen = await start(app, pilot, temp=0.7)
        run = screen._run
        assert run is not None
        assert sorted(shown(screen)) == sorted(arm.text for arm in run.arms)
        said = screen_text(app)
        assert not any(name in said for name in (*NAMES, "24.0", "ppl", "KL"))
        assert [lane.title for lane in screen._lanes] == ["A", "B", "C"]
        below_the_letter = {lane.view.region.y - lane.region.y for lane in screen._lanes}
        assert below_the_letter == {2 if size[0] > 80 else 1}, "stacked lanes give their rows to the text"


async def test_the_order_is_drawn_anew_for_every_trial() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7)
        seen = set()
        for _ in range(12):
            seen.add(tuple(screen._order))
            await pilot.press("n")
            await settle(app, pilot)
        assert len(seen) > 1


async def test_a_preference_counts_for_the_arm_that_stood_there_and_the_next_seed_follows() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7, seed=5)
        first = screen._order[1]
        await pilot.press("2")
        await settle(app, pilot)
        assert screen._session.sampling.seed == 6
        await pilot.press("0")
        await settle(app, pilot)
        assert [item.chosen for _, item in screen._judged] == [first, None]
        assert "2 judged, 1 tie" in screen_text(app)
        assert not any(name in screen_text(app) for name in NAMES)
        await pilot.press("u")
        assert [item.chosen for _, item in screen._judged] == [first]
        await pilot.press("v")
        await pilot.pause()
        said = screen_text(app)
        assert all(name in said for name in NAMES)
        assert "21% to 100%" in said  # Wilson of 1 in 1
        await pilot.press("1")  # what is known cannot be judged
        assert len(screen._judged) == 1
        compares = [job for job in app.worker.submitted if isinstance(job, jobs.Compare)]  # type: ignore[attr-defined]
        assert [job.sampling.seed for job in compares] == [5, 6, 7]


async def test_what_was_judged_is_counted_while_the_next_texts_are_written() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7)
        app.worker.hold()  # type: ignore[attr-defined]
        await pilot.press("n", "v")
        await pilot.pause()
        assert not screen._revealed, "nothing was judged yet"
        app.worker.release()  # type: ignore[attr-defined]
        await settle(app, pilot)
        app.worker.hold()  # type: ignore[attr-defined]
        await pilot.press("2", "v")
        await pilot.pause()
        assert "21% to 100%" in screen_text(app)
        app.worker.release()  # type: ignore[attr-defined]
        await settle(app, pilot)
        await pilot.press("1")  # its names are known
        assert len(screen._judged) == 1


async def test_greedy_texts_are_judged_once_a_prompt() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot)
        await pilot.press("1", "1")
        await settle(app, pilot)
        assert len(screen._judged) == 1
        await pilot.press("i", "ctrl+u", *"Sea", "enter")
        await settle(app, pilot)
        assert blind(app)._session.prompt == "Sea"
        await pilot.press("escape")
        assert not isinstance(app.screen, BlindScreen)


async def test_a_trial_that_is_left_while_it_is_written_is_stopped_and_coming_back_goes_on() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7, seed=5)
        await pilot.press("2")
        await settle(app, pilot)
        app.worker.hold()  # type: ignore[attr-defined]
        await pilot.press("1")
        await pilot.pause()
        left = screen._run
        assert left is not None
        assert left.going
        await pilot.press("escape")
        app.worker.release()  # type: ignore[attr-defined]
        await settle(app, pilot)
        assert isinstance(app.screen, GenerateScreen)
        assert left.state == "stopped"
        assert app.worker.stopped == [screen._job]  # type: ignore[attr-defined]
        assert "was being written is stopped. 2 are judged: B goes on" in " ".join(
            notice.message for notice in app._notifications
        )
        await pilot.press("B")
        await settle(app, pilot)
        again = blind(app)
        assert again is not screen
        assert "2 judged, 0 ties" in screen_text(app)
        assert again._run is not left
        assert again._session.sampling.seed == 7
        await pilot.press("u")
        assert len(again._judged) == 1
        await pilot.press("v")
        await pilot.pause()
        assert "share of 1 that were no tie" in screen_text(app)


async def test_a_trial_written_behind_one_that_was_taken_back_is_stopped_too() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7)
        app.worker.hold()  # type: ignore[attr-defined]
        await pilot.press("1", "u", "escape")
        app.worker.release()  # type: ignore[attr-defined]
        await settle(app, pilot)
        assert screen._made is not screen._run
        assert screen._made is not None
        assert screen._made.state == "stopped"


async def test_a_trial_that_can_still_be_judged_shows_again_and_other_arms_begin_anew() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7, seed=5)
        await pilot.press("2")
        await settle(app, pilot)
        waiting = screen._run
        await pilot.press("escape", "B")
        await settle(app, pilot)
        assert blind(app)._run is waiting
        assert len(blind(app)._judged) == 1
        await pilot.press("escape", "i", "ctrl+u", *"Sea", "escape", "B")
        await settle(app, pilot)
        assert blind(app)._session.prompt == "Sea"
        assert "1 judged" in screen_text(app), "the arms are the same: the tally goes on"
        await pilot.press("escape", "plus", "B")
        await settle(app, pilot)
        assert "0 judged" in screen_text(app)


async def test_what_is_known_is_not_shown_again_to_be_judged() -> None:
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot, temp=0.7, seed=5)
        await pilot.press("v", "escape", "B")
        await settle(app, pilot)
        assert blind(app)._session.sampling.seed == 6
        assert blind(app)._run is not screen._run
    async with opened("generate") as (app, pilot):
        screen = await start(app, pilot)  # greedy: there is no other text
        await pilot.press("v", "escape", "B")
        await settle(app, pilot)
        assert blind(app)._run is screen._run
        assert blind(app)._revealed
        await pilot.press("1")
        assert not blind(app)._judged


async def test_a_set_that_is_left_goes_on_at_the_trial_it_was_left_at() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("S", "down", "down", "3", "enter")
        await settle(app, pilot)
        await pilot.press("B", "1")
        await settle(app, pilot)
        await pilot.press("escape", "B")
        await settle(app, pilot)
        assert "trial 2 of 3" in screen_text(app)
        await pilot.press("1", "1")
        await settle(app, pilot)
        assert blind(app)._revealed
        await pilot.press("escape", "B")
        await settle(app, pilot)
        assert "share of 3 that were no tie over 3 prompts" in screen_text(app)
        await pilot.press("1")
        assert len(blind(app)._judged) == 3


async def test_judgements_are_kept_beside_their_runs(tmp_path: Path) -> None:
    async with opened("generate") as (app, pilot):
        database = tmp_path / "runs.db"
        app.history = database
        screen = await start(app, pilot)
        run = screen._run
        assert run is not None
        number = RunStore(database).begin("demo", "p", [Arm("baseline"), Arm("a"), Arm("b")], Sampling())
        run.apply(RunKept(0, number))
        wanted = screen._order[2]
        await pilot.press("3")
        await app.workers.wait_for_complete()
        (kept,) = JudgementStore(RunStore(database)).list(number)
        assert (kept.chosen, kept.shown) == (wanted, tuple(screen._order))
        await pilot.pause()
        await pilot.press("u")
        await app.workers.wait_for_complete()
        assert JudgementStore(RunStore(database)).list() == []


async def test_without_a_steered_lane_there_is_nothing_to_judge() -> None:
    async with opened("generate", steers=0) as (app, pilot):
        await pilot.press("B")
        await pilot.pause()
        assert not isinstance(app.screen, BlindScreen)


def test_the_bar_of_an_interval() -> None:
    assert interval_bar(0.0, 0.5, 1.0, 9) == "┣━━━●━━━┫"
    assert interval_bar(0.25, None, 0.75, 9) == "──┣━━━┫──"


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_set_is_judged_one_trial_a_prompt_with_a_tally_over_all(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        await pilot.press("S", "down", "down", "3", "enter")
        await settle(app, pilot)
        asked = len(app.worker.submitted)  # type: ignore[attr-defined]
        await pilot.press("B")
        await settle(app, pilot)
        screen = blind(app)
        assert f"trial 1 of 3 · seed 0 · {PROMPTS[0]}"[:50] in screen_text(app)
        assert sorted(shown(screen)) == sorted(arm.text for arm in screen._trials[0].arms)
        await pilot.press("n")
        assert screen._run is screen._trials[1]  # not judged for now
        wanted = []
        for trial in (1, 2, 0):
            assert screen._run is screen._trials[trial]
            assert not any(name in screen_text(app) for name in NAMES)
            wanted.append(screen._order.index(0))
            await pilot.press(str(wanted[-1] + 1))
            await settle(app, pilot)
        assert screen._revealed
        said = screen_text(app)
        assert "share of 3 that were no tie over 3 prompts" in said
        low, high = wilson(3, 3)
        assert f"{low:.0%} to {high:.0%}" in said
        assert [item.chosen for _, item in screen._judged] == [0, 0, 0]
        await pilot.press("1", "n", "i")
        assert len(screen._judged) == 3
        await pilot.press("u")
        await settle(app, pilot)
        assert screen._run is screen._trials[0]
        assert len(screen._judged) == 2
        assert len(app.worker.submitted) == asked  # type: ignore[attr-defined]
        await pilot.press("escape")
        await settle(app, pilot)
        assert isinstance(app.screen, GenerateScreen)
        assert app.screen.set is not None


async def test_a_set_that_is_written_or_has_too_many_arms_is_not_judged_and_says_why() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("S", "down", "down", "3", "enter")
        await pilot.pause()
        await pilot.press("B")
        await pilot.pause()
        assert "not all there" in [notice.message for notice in app._notifications][-1]
    async with opened("generate") as (app, pilot):
        await pilot.press(
            "S", "down", "down", "1", "down", *"1", "space", "2", "space", "3", "space", "4", "space", "5"
        )
        await pilot.press("enter")
        await settle(app, pilot)
        await pilot.press("B")
        await settle(app, pilot)
        assert isinstance(app.screen, GenerateScreen)
        assert "at most 5 texts; this set has 6" in [notice.message for notice in app._notifications][-1]
