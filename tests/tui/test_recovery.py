"""A session that was cut off is offered again, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui import demo
from lens_tui.records import Sampling, paths
from lens_tui.records.session_file import (
    CutOff,
    SavedSession,
    forget_session,
    interrupted_sessions,
    own_file,
    resumable_sessions,
    save_session,
)
from lens_tui.tui.preferences import Preferences, preferences, remember_theme
from lens_tui.tui.recovery import saved, steers_of
from lens_tui.tui.screens.form import ChoiceScreen
from lens_tui.worker import jobs
from tests.apps import NOW, lens_app, screen_text, settle
from tests.fakes import DEMO_SAE, FakeWorker
from tests.folders import read_session

FIRST, SECOND = (steer.scale for steer in demo.starter().steers)


async def cut_off() -> SavedSession:
    """A session as the disk has it when the app dies: the demo, one scale changed, one row off."""
    app = lens_app(model="demo", screen="steer", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("b", "j", "space")
        await settle(pilot)
        app.recovery.end(well=False)
        session = read_session()
    forget_session()
    assert session is not None
    return session


async def test_every_change_is_on_the_disk() -> None:
    session = await cut_off()
    assert (session.model, session.sae, session.screen) == ("demo", DEMO_SAE.path, "steer")
    assert session.prompt
    assert [(row.scale, row.enabled) for row in session.steers] == [(-FIRST, True), (SECOND, False)]


async def test_an_app_that_is_ended_in_the_middle_of_a_word_keeps_its_letters() -> None:
    app = lens_app(model="demo", screen="generate", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("i", "ctrl+u", "h", "a", "l")
        app.recovery.end(well=False)
        session = read_session()
    assert session is not None
    assert session.prompt.endswith("hal")


async def test_taking_it_up_puts_everything_back(tmp_path: Path) -> None:
    session = await cut_off()
    worker = FakeWorker()
    path = tmp_path / "cut-off.json"
    save_session(session, path)
    app = lens_app(worker, cut_off=lambda: [CutOff(path, NOW - 3600, session)])
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "The last session was cut off" in screen_text(app)
        assert "demo, 2 vectors in 2 arms · 60 min ago" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        assert app.current_mode == "steer"
        assert worker.submitted == [jobs.LoadModel("demo"), jobs.LoadSAE(DEMO_SAE.path)]
        now = app.store.session
        assert [(row.vector.name, row.scale, row.enabled, row.arm) for row in now.steers] == [
            ("cookery", -FIRST, True, 1),
            ("dialogue", SECOND, False, 2),
        ]
        assert (now.prompt, now.sampling, now.sae) == (session.prompt, session.sampling, DEMO_SAE.id)
        assert not app.store.undo()


async def test_starting_afresh_forgets_it(tmp_path: Path) -> None:
    path = tmp_path / "cut-off.json"
    path.touch()
    found = [CutOff(path, 0.0, SavedSession("demo", "", "steer", "hello", Sampling()))]
    app = lens_app(cut_off=lambda: found)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, ChoiceScreen)
        await pilot.press("2")
        await settle(pilot)
        assert app.store.session.prompt == ""
        assert app.worker.submitted == []  # type: ignore[attr-defined]
        assert not path.exists()


async def test_a_second_kill_while_it_is_taken_up_loses_nothing(tmp_path: Path) -> None:
    session = await cut_off()
    path = tmp_path / "cut-off.json"
    save_session(session, path)
    worker = FakeWorker(hold=True)
    app = lens_app(worker, cut_off=lambda: [CutOff(path, NOW, session)], autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert app.store.session.prompt == session.prompt
        app.recovery.end(well=False)  # killed while the model loads
    assert read_session(own_file()) is None
    again = read_session(path)
    assert again is not None
    assert (again.model, again.sae, len(again.steers)) == ("demo", DEMO_SAE.path, 2)


async def test_once_it_is_taken_up_the_new_file_stands_for_the_old(tmp_path: Path) -> None:
    session = await cut_off()
    path = tmp_path / "cut-off.json"
    save_session(session, path)
    app = lens_app(FakeWorker(), cut_off=lambda: [CutOff(path, NOW, session)], autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        app.recovery.end(well=False)
    assert not path.exists()
    again = read_session(own_file())
    assert again is not None
    assert (again.model, again.sae, len(again.steers)) == ("demo", DEMO_SAE.path, 2)


async def test_a_session_whose_model_cannot_be_loaded_is_kept(tmp_path: Path) -> None:
    session = SavedSession("no/such", "its/sae", "steer", "hello")
    path = tmp_path / "cut-off.json"
    save_session(session, path)
    app = lens_app(FakeWorker(hold=True), cut_off=lambda: [CutOff(path, NOW, session)], autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        app.opened(False)
        app.recovery.end(well=False)
    assert read_session(path) == session
    mine = read_session(own_file())
    assert mine is not None
    assert (mine.model, mine.sae, mine.prompt) == ("no/such", "its/sae", "hello")


async def test_several_are_offered_one_after_the_other_and_not_now_keeps_them(tmp_path: Path) -> None:
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.json"
        path.touch()
        found.append(CutOff(path, NOW - number, SavedSession(f"m/{number}")))
    app = lens_app(cut_off=lambda: found)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "and 2 before it" in screen_text(app)
        assert "m/0" in screen_text(app)
        await pilot.press("2")
        await settle(pilot)
        assert "m/1" in screen_text(app)
        await pilot.press("3")
        await settle(pilot)
        assert not isinstance(app.screen, ChoiceScreen)
    assert [item.path.exists() for item in found] == [False, True, True]


async def test_what_the_disk_says_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    paths.sessions_folder().parent.mkdir(parents=True)
    paths.sessions_folder().write_text("a file where the folder should be")
    app = lens_app(model="demo", screen="steer", autosave=True)
    told: list[str] = []
    monkeypatch.setattr(app, "tell", told.append)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot, lambda: bool(told))
        await pilot.press("b", "j", "b")
        await settle(pilot)
        app.recovery.end(well=False)
    assert len(told) == 1
    assert told[0].startswith("This session is not being kept. Could not write")


async def test_one_of_a_newer_version_is_said_and_kept(tmp_path: Path) -> None:
    save_session(SavedSession("demo"), file := paths.sessions_folder() / "1.json")
    text = file.read_text().replace('"version":1', '"version":99')
    file.write_text(text)
    app = lens_app(cut_off=interrupted_sessions)
    async with app.run_test(size=(120, 24)) as pilot:
        await settle(pilot)
        assert "newer version" in screen_text(app)
        assert not isinstance(app.screen, ChoiceScreen)
    assert file.read_text() == text


async def test_a_proper_end_leaves_nothing_to_take_up() -> None:
    app = lens_app(model="demo", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.recovery.end(well=True)
    assert read_session() is None


async def test_steers_survive_the_round_trip() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        session = app.store.session
        again = steers_of(saved(session, "demo", "steer"))
    for old, new in zip(session.steers, again, strict=True):
        assert (old.vector, old.layer, old.scale, old.arm) == (new.vector, new.layer, new.scale, new.arm)


def test_preferences_come_from_the_settings_and_say_what_is_wrong() -> None:
    assert preferences() == Preferences()
    paths.settings_file().parent.mkdir(parents=True)
    paths.settings_file().write_text(
        '[look]\ntheme = "paper"\n[keys]\nsteer.zero = "Z"\n"app.run" = "R"\n[generate]\nseed = 3\n'
    )
    found = preferences()
    assert (found.theme, found.keys, found.problems) == ("paper", {"steer.zero": "Z", "app.run": "R"}, ())
    assert found.sampling is not None
    assert found.sampling.seed == 3
    remember_theme("ember")
    assert preferences().theme == "ember"
    assert preferences().keys == found.keys
    paths.settings_file().write_text("[look]\nthem = 3\n")
    assert "there is no setting look.them" in preferences().problems[0]


async def test_resume_takes_up_the_newest_unasked(tmp_path: Path) -> None:
    session = await cut_off()
    worker = FakeWorker()
    path = tmp_path / "cut-off.json"
    save_session(session, path)
    found = [CutOff(path, NOW - 3600, session), CutOff(tmp_path / "older.json", NOW - 7200, session)]
    app = lens_app(worker, cut_off=lambda: found, resume=True)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        assert not isinstance(app.screen, ChoiceScreen)
        assert "Taken up: demo, 2 vectors" in screen_text(app)
        assert worker.submitted == [jobs.LoadModel("demo"), jobs.LoadSAE(DEMO_SAE.path)]
        assert [row.scale for row in app.store.session.steers] == [-FIRST, SECOND]


async def test_resume_without_a_session_says_so() -> None:
    app = lens_app(resume=True)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        assert "There is no session to take up." in screen_text(app)


async def test_a_proper_end_is_resumed_only_on_demand() -> None:
    app = lens_app(model="demo", screen="steer", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("b")
        await settle(pilot)
        app.recovery.end(well=True)
    assert interrupted_sessions() == []
    (last,) = resumable_sessions()
    assert last.session is not None
    assert [row.scale for row in last.session.steers] == [-FIRST, SECOND]
