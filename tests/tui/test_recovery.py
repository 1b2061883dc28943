"""A session that was cut off is offered again, whole."""

from __future__ import annotations

from lens_tui import demo
from lens_tui.records import Sampling, paths
from lens_tui.records.session_file import SavedSession, read_session
from lens_tui.tui.preferences import Preferences, preferences, remember_theme
from lens_tui.tui.recovery import saved, steers_of
from lens_tui.tui.screens.form import ChoiceScreen
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import DEMO_SAE, FakeWorker

FIRST, SECOND = (steer.scale for steer in demo.starter().steers)


async def cut_off() -> SavedSession:
    """A session as the disk has it when the app dies: the demo, one scale changed, one row off."""
    app = lens_app(open_model="demo", start="steer", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("b", "j", "space")
        await settle(pilot)
        app.recovery.end(well=False)
        session = read_session()
    assert session is not None
    return session


async def test_every_change_is_on_the_disk() -> None:
    session = await cut_off()
    assert (session.model, session.sae, session.screen) == ("demo", DEMO_SAE.path, "steer")
    assert session.prompt
    assert [(row.scale, row.enabled) for row in session.steers] == [(-FIRST, True), (SECOND, False)]


async def test_taking_it_up_puts_everything_back() -> None:
    session = await cut_off()
    worker = FakeWorker()
    app = lens_app(worker, take_up=session)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "The last session was cut off" in screen_text(app)
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


async def test_starting_afresh_leaves_it() -> None:
    app = lens_app(take_up=SavedSession("demo", "", "steer", "hello", Sampling()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, ChoiceScreen)
        await pilot.press("2")
        await settle(pilot)
        assert app.store.session.prompt == ""
        assert app.worker.submitted == []  # type: ignore[attr-defined]


async def test_a_proper_end_leaves_nothing_to_take_up() -> None:
    app = lens_app(open_model="demo", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.recovery.end(well=True)
    assert read_session() is None


async def test_steers_survive_the_round_trip() -> None:
    app = lens_app(open_model="demo")
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
