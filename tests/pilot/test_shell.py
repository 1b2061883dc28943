"""The app as a whole: modes, jobs and events, quitting, sizes, keys."""

from __future__ import annotations

import time
from typing import Any

import pytest
from textual.geometry import Size
from textual.pilot import Pilot

from lens_tui.records import LensError
from lens_tui.tui.app import FRAME, REMARK, LensApp
from lens_tui.tui.host import BUSY, FAILED
from lens_tui.tui.keys import KEYS, SCREENS, by_id
from lens_tui.tui.screens.everywhere import ThemeScreen
from lens_tui.tui.screens.form import ErrorScreen, Field, FormScreen
from lens_tui.tui.widgets.frame import LensScreen, Status, TooSmall, footer_keys, takes_text
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import FakeWorker

SIZES = [(120, 36), (80, 24)]


@pytest.mark.parametrize("size", SIZES)
async def test_digits_switch_screens_and_the_header_says_where(size: tuple[int, int]) -> None:
    app = lens_app()
    async with app.run_test(size=size) as pilot:
        for number, (mode, title) in enumerate(SCREENS, 1):
            await pilot.press(str(number))
            await settle(pilot)
            assert app.current_mode == mode
            assert f"▐{number} {title}▌" in screen_text(app).splitlines()[0]


async def test_opening_the_demo_loads_model_sae_prompt_and_two_arms() -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        session = app.store.session
        assert session.model is not None
        assert session.sae == "layer_4_width_8k_l0_medium"
        assert session.prompt
        assert [arm.name for arm in session.arms()] == ["baseline", "cookery", "dialogue"]
        assert not app.store.undo(), "what a model opens with is no edit to undo"
        submitted = app.worker.submitted  # type: ignore[attr-defined]
        kinds = [jobs.LoadModel, jobs.BareVectors, jobs.LoadSAE, jobs.VectorGiven, jobs.VectorGiven]
        assert [type(job) for job in submitted] == kinds
        assert [type(one) for one in submitted[1].of] == [jobs.VectorFromFeature, jobs.VectorFromFile]
        for row in session.steers:
            assert row.residual_norm == 42.5
            assert len(row.promoted) == len(row.suppressed) == 10


async def test_run_pressed_while_loading_runs_when_ready() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        assert worker.job_ids(jobs.Compare) == []
        worker.release()
        await settle(pilot, lambda: bool(worker.job_ids(jobs.Compare)))


@pytest.mark.parametrize("overtakes", [True, False])
async def test_what_a_run_said_while_the_sae_loads_stands(overtakes: bool) -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        while not worker.job_ids(jobs.LoadSAE):
            worker.release(1)
            await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        if overtakes:  # as the worker's thread has it
            worker._queue.appendleft(worker._queue.pop())
        worker.release()
        await settle(pilot, lambda: not app.busy)
        assert not app.opening.going
        assert "tokens each" in screen_text(app)
        assert "is ready" not in screen_text(app)


async def test_a_run_waits_for_the_weights_and_the_arms_but_not_for_the_sae() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        while not worker.job_ids(jobs.LoadSAE):
            assert app.opening.arming
            worker.release(1)
            await settle(pilot)
        assert app.opening.going
        assert not app.opening.arming
        assert app.store.session.sae is None
        assert [arm.name for arm in app.store.session.arms()] == ["baseline", "cookery", "dialogue"]
        assert "cookery" in screen_text(app)
        assert not app.store.undo()
        await pilot.press("r")
        await settle(pilot, lambda: bool(worker.job_ids(jobs.Compare)))
        app.store.update(prompt="Another")
        worker.release()
        await settle(pilot)
        assert not app.opening.going
        assert app.store.session.sae == "layer_4_width_8k_l0_medium"


async def test_a_run_goes_before_what_there_is_to_say_of_the_bench() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        while not worker.job_ids(jobs.VectorGiven):
            worker.release(1)
            await settle(pilot)
        assert worker.job_ids(jobs.Compare) < worker.job_ids(jobs.VectorGiven)
        compare = worker.submitted[worker.job_ids(jobs.Compare)[0] - 1]
        assert [arm.name for arm in compare.arms] == ["baseline", "cookery", "dialogue"]  # type: ignore[attr-defined]
        app.store.edit_steer(app.store.session.steers[0].id, scale=3.0)
        worker.stop()  # as one who stops the run: what waited behind it is asked for again
        worker.release()
        await settle(pilot)
        norms = {(row.scale, row.residual_norm, len(row.promoted)) for row in app.store.session.steers}
        assert {(norm, count) for _, norm, count in norms} == {(42.5, 10)}
        assert app.store.undo(), "what is said of a vector is no edit"
        assert [row.residual_norm for row in app.store.session.steers] == [42.5, 42.5]
        assert 3.0 not in {row.scale for row in app.store.session.steers}
        assert "vector" not in app.activity.note, "what nobody asked for takes no news away"
        run = app.screen.run  # type: ignore[attr-defined]
        assert [row.residual_norm for row in run.steers] == [None, None]
        assert [row.residual_norm for row in app.store.described(run.steers)] == [42.5, 42.5]


async def test_what_there_is_to_say_of_a_bench_is_not_asked_of_the_next_model() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        while not worker.job_ids(jobs.VectorGiven):
            worker.release(1)
            await settle(pilot)
        app.opening.unload()
        worker.stop(worker.job_ids(jobs.VectorGiven)[0])
        worker.release()
        await settle(pilot)
        assert len(worker.job_ids(jobs.VectorGiven)) == 1
        assert not app.busy
        assert not isinstance(app.screen, ErrorScreen)


async def test_run_without_a_model_leads_to_load() -> None:
    app = lens_app(screen="steer")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("r")
        await settle(pilot)
        assert app.current_mode == "load"


async def test_progress_shows_in_the_status_row_and_stop_is_offered() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        worker.release(6)
        await settle(pilot)
        row = screen_text(app).splitlines()[-2]
        assert app.activity.state == BUSY
        assert "weights" in row
        assert "MB" in row
        assert row.rstrip().endswith("x stop")
        await pilot.press("x")
        await settle(pilot)
        assert worker.stopped == [None]


async def test_a_failed_job_is_one_sentence_that_can_be_closed() -> None:
    worker = FakeWorker(failures={jobs.LoadModel: LensError("There is no model there.", "Check the path.")})
    app = lens_app(worker, model="somewhere/else")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, ErrorScreen)
        text = screen_text(app)
        assert "There is no model there." in text
        assert "Check the path." in text
        assert app.activity.state == FAILED
        await pilot.press("escape")
        assert isinstance(app.screen, LensScreen)
        assert "There is no model there." in screen_text(app).splitlines()[-2]


async def test_events_of_a_replaced_job_are_dropped() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker)
    heard: list[tuple[str, ev.Event]] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        first = app.submit(jobs.RandomVector("a", 1), "slot", lambda event: heard.append(("a", event)))
        app.submit(jobs.RandomVector("b", 1), "slot", lambda event: heard.append(("b", event)))
        assert worker.stopped == [first]
        worker.release()
        await settle(pilot, lambda: not app.busy)
        assert {name for name, _ in heard} == {"b"}
        assert any(isinstance(event, ev.VectorMade) for _, event in heard)


async def test_forgetting_a_slot_silences_it() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker)
    heard: list[ev.Event] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.submit(jobs.RandomVector("a", 1), "slot", heard.append)
        app.forget("slot")
        worker.release()
        await settle(pilot)
        assert heard == []
        assert not app.busy


async def test_a_wake_just_before_the_frame_ends_is_not_lost() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.submit(jobs.RandomVector("a", 1), "slot", lambda event: None)
        for _ in range(3):
            app._last_drain = time.monotonic() - FRAME + 1e-6
            worker.release(1)
            app.on_worker_wake()
        await settle(pilot, lambda: not app.busy)


async def test_idle_means_no_timers() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert [timer for timer in app._timers if not timer._active.is_set()] == list(app._timers)


@pytest.mark.parametrize(("size", "polite"), [((59, 20), True), ((60, 15), True), ((60, 16), False)])
async def test_too_small_is_one_polite_line(size: tuple[int, int], polite: bool) -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        text = screen_text(app)
        assert (f"needs 60×16; this is {size[0]}×{size[1]}" in text) is polite
        assert ("Models" in text) is not polite


@pytest.mark.parametrize(
    ("key", "shows"),
    [("?", "type to filter"), (":", "load the model"), ("error", "That did not work"), ("form", "kept")],
)
async def test_too_small_hides_a_dialogue_and_keeps_its_focus(key: str, shows: str) -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        if key == "error":
            app.push_screen(ErrorScreen("It is broken.", "Mend it."))
        elif key == "form":
            app.push_screen(FormScreen("Name", [Field("name", "Name", "kept")]))
        else:
            await pilot.press(key)
        await settle(pilot)
        dialogue, focused = app.screen, app.focused
        assert shows in screen_text(app)
        for size in ((20, 5), (59, 20), (60, 15)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            said = " ".join(screen_text(app).split())
            assert said == f"mlx-lens-tui needs 60×16; this is {size[0]}×{size[1]}."
            assert (app.screen, app.focused) == (dialogue, focused)
        await pilot.resize_terminal(120, 36)
        await settle(pilot)
        assert shows in screen_text(app)
        assert (app.screen, app.focused) == (dialogue, focused)
        await pilot.resize_terminal(50, 12)
        await pilot.press("escape")
        await settle(pilot)
        assert app.screen is not dialogue
        assert " ".join(screen_text(app).split()) == "mlx-lens-tui needs 60×16; this is 50×12."
        await pilot.resize_terminal(120, 36)
        await settle(pilot)
        assert app.focused is not None


@pytest.mark.parametrize("dialogue", [False, True])
async def test_too_small_is_not_covered_by_what_is_said(dialogue: bool) -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await settle(pilot)
        if dialogue:
            app.push_screen(ErrorScreen("It is broken.", "Mend it."))
        app.notify("Said a moment ago.", timeout=600)
        await settle(pilot)
        assert "Said a moment ago." in screen_text(app)
        await pilot.resize_terminal(20, 5)
        app.notify("Said now.", timeout=600)
        await settle(pilot)
        assert " ".join(screen_text(app).split()) == "mlx-lens-tui needs 60×16; this is 20×5."
        await pilot.resize_terminal(120, 36)
        await settle(pilot)
        assert "Said now." in screen_text(app)


async def test_too_small_again_before_the_last_time_is_over() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        app.push_screen(ErrorScreen("It is broken.", "Mend it."))
        await settle(pilot)
        for size in (Size(20, 5), Size(120, 36), Size(20, 5)):
            app.screen._screen_resized(size)
        await settle(pilot)
        assert [cover.display for cover in app.screen.query(TooSmall)] == [True]


async def test_too_small_and_back_keeps_the_focus() -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("i", "h", "tab")
        focused, whole = app.focused, screen_text(app)
        assert focused is not None
        await pilot.resize_terminal(20, 5)
        await settle(pilot)
        await pilot.resize_terminal(120, 36)
        await settle(pilot)
        assert app.focused is focused
        assert screen_text(app) == whole


async def test_another_size_gives_no_focus_where_there_was_none() -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("h")
        assert app.focused is not None
        app.screen._screen_resized(app.size)
        app.screen.set_focus(None)  # as what is about to get it finds it: a table that comes with a layout, say
        await settle(pilot)
        assert app.focused is None


async def test_resizing_while_it_runs() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        for size in ((50, 10), (80, 24), (200, 60)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            lines = screen_text(app).splitlines()
            assert len(lines) == size[1]
            assert ("Details" in "\n".join(lines)) == (size[0] >= 60)


async def test_q_quits_only_when_idle() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker, model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
        assert app.is_running
        worker.release()
        await settle(pilot)
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running


@pytest.mark.parametrize("keys", [("ctrl+q",), ("ctrl+c", "ctrl+c")])
async def test_quitting_at_once(keys: tuple[str, ...]) -> None:
    app = lens_app(FakeWorker(hold=True), model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        await pilot.pause()
        assert not app.is_running


async def test_one_ctrl_c_does_not_quit() -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.is_running


async def test_a_second_ctrl_c_quits_as_long_as_the_remark_that_says_so_stands() -> None:
    for ago, running in ((REMARK - 1, False), (REMARK + 1, True)):
        app = lens_app()
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            app._last_interrupt = time.monotonic() - ago
            await pilot.press("ctrl+c")
            await pilot.pause()
            assert app.is_running is running


async def test_ctrl_q_quits_from_a_text_field_and_from_a_dialogue() -> None:
    for keys in (("/",), ("?",)):
        app = lens_app()
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            await pilot.press(*keys)
            await pilot.press("ctrl+q")
            await pilot.pause()
            assert not app.is_running


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", [mode for mode, _ in SCREENS])
async def test_every_key_of_the_table_is_live_and_does_something(mode: str, size: tuple[int, int]) -> None:
    """Each key shown by ``?`` resolves to an action that exists where it is bound."""
    app = lens_app(model="demo", screen=mode)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        live = {active.binding.id: active for active in app.screen.active_bindings.values() if active.binding.id}
        wanted = {key.id for key in KEYS if key.scope in ("app", mode)}
        assert wanted <= set(live)
        for active in live.values():
            name = active.binding.action.partition("(")[0].rpartition(".")[2]
            owners = (active.node, app.screen, app)
            assert any(hasattr(owner, f"action_{name}") for owner in owners), active.binding


LEAVE = ("app.quit", "app.interrupt")
# They open the same screens and dialogues from everywhere: pressed on one screen.
ELSEWHERE = ("show(", "theme", "keys", "command_palette")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", [mode for mode, _ in SCREENS])
async def test_pressing_every_key_breaks_nothing_and_the_footer_stays_true(mode: str, size: tuple[int, int]) -> None:
    app = lens_app(model="demo", screen=mode)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        for key, active in list(app.screen.active_bindings.items()):
            action = active.binding.action.rpartition(".")[2]
            if (active.binding.id or "").startswith(LEAVE) or (mode != "generate" and action.startswith(ELSEWHERE)):
                continue
            await pilot.press(key)
            await back_to(mode, pilot)
            assert footer_words(app) <= live_words(app)
        await settle(pilot)
        assert app.is_running


def footer_words(app: LensApp) -> set[str]:
    """The keys that the footer shows."""
    pairs, tail = footer_keys(app.screen, takes_text(app.screen.focused))
    return {cap for caps, _ in [*pairs, *tail] for cap in caps.split()} - {"⏎", "esc"}


def live_words(app: LensApp) -> set[str]:
    """The caps of the keys that work."""
    return {app.get_key_display(active.binding) for active in app.screen.active_bindings.values() if active.enabled}


async def back_to(mode: str, pilot: Pilot[Any]) -> None:
    """Where a key led elsewhere, let it get there and come back; out of a text field in any case."""
    app = pilot.app
    if app.current_mode != mode or not isinstance(app.screen, LensScreen) or takes_text(app.screen.focused):
        await settle(pilot)
    while not isinstance(app.screen, LensScreen):
        await pilot.press("escape")
        await pilot.pause()
    if app.current_mode != mode:
        app.switch_mode(mode)
        await pilot.pause()
    if takes_text(app.screen.focused):
        await pilot.press("escape")


async def test_keys_that_come_in_one_read_close_a_dialogue_once() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for key in ("colon", "T", "question_mark"):
            below = app.screen
            await pilot.press(key)
            await settle(pilot)
            dialogue = app.screen
            assert dialogue is not below
            for _ in range(3):  # as when the keys were read before the first of them had been acted on
                dialogue.dismiss(None)
            await settle(pilot)
            assert app.screen is below


@pytest.mark.parametrize("next_key", ["question_mark", "colon", "4", "T"])
async def test_a_run_begins_whatever_key_came_with_the_one_that_asked_for_it(next_key: str) -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.simulate_key("r")
        app.simulate_key(next_key)
        submitted: list[jobs.Job] = app.worker.submitted  # type: ignore[attr-defined]
        await settle(pilot, lambda: any(isinstance(job, jobs.Compare) for job in submitted))


async def test_what_was_done_last_is_news_for_a_while_and_on_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        assert "demo is ready" in screen_text(app)
        await pilot.press("1")
        await settle(pilot)
        assert app.screen.query_one(Status).render().plain.strip() == "○ idle"  # type: ignore[union-attr]
        monkeypatch.setattr("lens_tui.tui.app.NEWS", 0.05)
        app.tell("Something was done.")
        assert app.activity.note == "Something was done."
        await settle(pilot, lambda: not app.activity.note)


async def test_a_users_keys_replace_ours_and_trade_places() -> None:
    trade = {"app.undo": "U", "app.redo": "u"}
    app = lens_app(screen="steer", model="demo", keys={**trade, "steer.delete": "X", "steer.dose": "Z"})
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("d")
        assert len(app.store.session.steers) == 2
        await pilot.press("X")
        assert len(app.store.session.steers) == 1
        await pilot.press("U")
        assert len(app.store.session.steers) == 2
        await pilot.press("u")
        assert len(app.store.session.steers) == 1
        assert "Z dose" in screen_text(app).splitlines()[-1]


async def test_what_is_wrong_in_the_settings_is_shown_once_up() -> None:
    app = lens_app(keys={"app.hlep": "f1"}, theme="nowhere")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        text = screen_text(app)
        assert "app.hlep" in text
        assert "nowhere" in text
        assert app.theme == "ink"


async def test_themes_preview_and_escape_goes_back() -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("T")
        await settle(pilot)
        assert isinstance(app.screen, ThemeScreen)
        await pilot.press("j", "j")
        await pilot.pause()
        assert app.theme == "ember"
        await pilot.press("escape")
        assert app.theme == "ink"
        await pilot.press("T")
        await pilot.press("j", "enter")
        await settle(pilot)
        assert app.theme == "contrast"


async def test_tint_goes_round_and_no_color_begins_with_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        seen = [app.tint]
        for _ in range(4):
            await pilot.press("t")
            seen.append(app.tint)
        assert seen == ["tint", "bars", "digits", "off", "tint"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert lens_app().tint == "bars"


async def test_the_mode_is_named_in_the_footer() -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "NORMAL" in screen_text(app).splitlines()[-1]
        await pilot.press("/")
        await settle(pilot)
        assert "INSERT" in screen_text(app).splitlines()[-1]
        await pilot.press("q", "1")
        assert app.is_running
        await pilot.press("escape")
        await settle(pilot)
        assert "NORMAL" in screen_text(app).splitlines()[-1]


async def test_maximize_and_back() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("m")
        await settle(pilot)
        text = screen_text(app)
        assert "Details" not in text
        rows = text.splitlines()
        assert rows[0].startswith(" lens")  # header, status and footer stay where they are
        assert rows[1] == rows[-3] == "─" * 120
        assert "Models" in rows[2]
        assert "─" not in "".join(rows[2:-3])
        await pilot.press("m")
        await settle(pilot)
        assert "Details" in screen_text(app)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
@pytest.mark.parametrize(("screen", "pane"), [("1", "#details"), ("2", "#direction")])
async def test_a_pane_of_a_set_size_has_the_whole_room_when_maximised(
    size: tuple[int, int], screen: str, pane: str
) -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press(screen)
        await settle(pilot)
        one = app.screen.query_one(pane)
        next(child for child in one.query("*") if child.focusable).focus()
        await pilot.press("m")
        await settle(pilot)
        assert app.screen.maximized is one
        assert one.outer_size.width == size[0]
        assert one.outer_size.height >= size[1] - 6


def test_every_footer_word_belongs_to_keys_that_stand_together() -> None:
    words = [key.footer for key in by_id().values() if key.footer]
    assert all(len(word) <= 12 for word in words)


async def test_a_widget_whose_handler_broke_handles_the_next_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LensApp, "goes_on", True)
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        models = app.screen.query_one("#list", RowList)

        def broken() -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(models, "action_last", broken)
        monkeypatch.setattr(models, "on_blur", broken)
        await pilot.press("G")
        await settle(pilot)
        assert isinstance(app.screen, ErrorScreen)
        await pilot.press("escape")
        await pilot.press("tab", "shift+tab")
        await settle(pilot)
        while isinstance(app.screen, ErrorScreen):
            await pilot.press("escape")
            await settle(pilot)
        models.focus()
        before = models.cursor
        await pilot.press("j")
        await settle(pilot)
        assert models.cursor == before + 1
