"""Monitors on Generate: asked for, read token by token, as shade, bars and number; kept and taken elsewhere."""

from __future__ import annotations

import csv
import io
from typing import cast

import pytest

from lens_tui.records.gates import Monitor, Watched, monitor_of
from lens_tui.records.run_store import RunStore
from lens_tui.tasks.run_command import as_command
from lens_tui.tasks.run_export import FORMATS, as_csv, as_data, as_markdown, from_data
from lens_tui.tui.app import LensApp
from lens_tui.tui.recovery import saved
from lens_tui.tui.run_text import RunText
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.monitors import feature_monitor
from lens_tui.tui.token_shades import MonitorLine, monitor_lines
from lens_tui.worker import jobs
from tests.fake_probes import fake_readings
from tests.fakes import DEMO_SAE, FakeWorker, unit_vector

from .opened import opened, screen_of, screen_text, settle

HOSTILE = "\x1b]52;c;aGk=\x07[red]x[/red]\u202e"


def last_job(app: LensApp) -> jobs.Compare:
    worker = cast("FakeWorker", app.worker)
    return next(job for job in reversed(worker.submitted) if isinstance(job, jobs.Compare))


def shown_run(app: LensApp) -> RunText:
    run = screen_of(app, GenerateScreen).run
    assert run is not None
    return run


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_feature_reads_every_token_of_the_run_made_again(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        assert last_job(app).monitors == ()
        await pilot.press("A", "tab", *"75", "tab", "delete", *"0.5", "enter")
        await pilot.pause(0.5)  # the run is made again after a rest
        await settle(app, pilot)
        # A number that is typed is the feature that is read, whatever was chosen above it.
        watched = Watched(feature_monitor(DEMO_SAE, 75), 0.5)
        assert last_job(app).monitors == (watched,)
        screen = screen_of(app, GenerateScreen)
        assert screen.measure == "monitor"
        for arm, lane in enumerate(lane for lane in screen.lanes.lanes if lane.text is not None):
            assert lane.text is not None
            count = len(lane.text.tokens)
            read = [fake_readings(1, arm, step)[0] for step in range(count)]
            assert [lane.view._levels[step] > 0 for step in range(count)] == [value > 0.5 for value in read]
            assert max(lane.view._levels) == 7
        text = screen_text(app)
        assert "shade: f75 above 0.5" in text
        assert " above 0.5" in text.split("shade:")[1]
        await pilot.press("l", "l")
        await settle(app, pilot)
        step = screen.lanes.lanes[1].step
        assert step is not None
        value = fake_readings(1, 1, step)[0]
        assert f"f75 {value:.2f} {'>' if value > 0.5 else '≤'} 0.5" in screen_text(app)


async def test_the_shade_goes_through_the_monitors_and_back() -> None:
    async with opened("generate") as (app, pilot):
        monitors = tuple(Watched(monitor_of(unit_vector(name, 4))) for name in ("verse", "sea"))
        app.store.update(monitors=monitors)
        await pilot.press("r")
        await settle(app, pilot)
        seen = []
        for _ in range(5):
            await pilot.press("v")
            await settle(app, pilot)
            seen.append(screen_text(app).split("shade: ")[1].split("  ")[0].split("\n")[0].strip())
        assert seen[0].startswith("KL")
        assert seen[1].startswith("not in the baseline")
        assert seen[2].startswith("verse above 0")
        assert seen[3].startswith("sea above 0")
        assert seen[4].startswith("own surprise")
        assert "KL ▁" in screen_text(app) or "KL ▂" in screen_text(app) or "nat" in screen_text(app)


async def test_a_monitor_is_left_off_and_its_threshold_changed() -> None:
    async with opened("generate") as (app, pilot):
        monitors = tuple(Watched(monitor_of(unit_vector(name, 4))) for name in ("verse", "sea"))
        app.store.update(monitors=monitors)
        await pilot.press("A", "2")
        await settle(app, pilot)
        await pilot.press("end", "backspace", *"1.5", "enter")
        await settle(app, pilot)
        assert [item.threshold for item in app.store.session.monitors] == [1.5, 0.0]
        await pilot.press("A", "5")
        await settle(app, pilot)
        assert [item.monitor.name for item in app.store.session.monitors] == ["verse"]


async def test_while_a_run_writes_it_is_shaded_as_far_as_it_is_read() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(monitors=(Watched(monitor_of(unit_vector("verse", 4)), -10.0),))
        worker = cast("FakeWorker", app.worker)
        worker.hold()
        await pilot.press("r", "v", "v", "v")
        worker.release(20)
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[0]
        assert lane.text is not None
        assert lane.view._levels[: len(lane.text.tokens)].count(0) == 1  # the newest goes in with the next step
        worker.release()
        await settle(app, pilot)
        assert 0 not in lane.view._levels[: len(lane.text.tokens)]


async def test_the_history_the_session_and_exports_keep_monitors_and_readings() -> None:
    async with opened("generate") as (app, pilot):
        watched = Watched(feature_monitor(DEMO_SAE, 75), 0.5), Watched(monitor_of(unit_vector("a|b", 2)))
        app.store.update(monitors=watched)
        await pilot.press("r")
        await settle(app, pilot)
        record = shown_run(app).record()
        assert [item.monitor.name for item in record.monitors] == ["f75", "a|b"]
        assert record.arms[1].read(1) == [fake_readings(2, 1, step)[1] for step in range(len(record.arms[1].tokens))]
        assert saved(app.store.session, "demo", "generate").monitors == watched
        for kept in (RunStore(app.history).keep(record), None):
            again = RunStore(app.history).get(kept) if kept else from_data(as_data(record))
            assert again is not None
            assert [(item.monitor.name, item.threshold) for item in again.monitors] == [("f75", 0.5), ("a|b", 0.0)]
            assert [[arm.read(at) for at in (0, 1)] for arm in again.arms] == [
                [arm.read(at) for at in (0, 1)] for arm in record.arms
            ]
        rows = list(csv.DictReader(io.StringIO(as_csv(record))))
        assert float(rows[0]["read:f75"]) == fake_readings(2, 0, 0)[0]
        assert "a\\|b > 0" in as_markdown(record)
        assert "--monitor 'f75@4>0.5'" in as_command(record)
        compile(FORMATS["py"](record), "run.py", "exec")
        assert "monitors=monitors" in FORMATS["py"](record)
        app.store.update(monitors=())
        await pilot.press("H", "enter")
        await settle(app, pilot)
        assert [item.monitor.name for item in app.store.session.monitors] == ["f75", "a|b"]


async def test_hostile_names_of_monitors_do_no_harm() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(monitors=(Watched(monitor_of(unit_vector(HOSTILE, 4))),))
        await pilot.press("r", "v", "v", "v")
        await settle(app, pilot)
        for key in ("l", "A", "escape"):
            await pilot.press(key)
            await settle(app, pilot)
            shown = screen_text(app)
            assert "\x1b" not in shown
            assert "\u202e" not in shown
        assert "[red]x" in screen_text(app)
        record = shown_run(app).record()
        for name in ("md", "csv", "py", "json"):
            assert "\x1b" not in FORMATS[name](record)
            assert "\u202e" not in FORMATS[name](record)


def test_shade_and_bars_stand_about_the_threshold() -> None:
    line = MonitorLine("verse", 1.0, -3.0, 4.0, (1.0, 1.01, 4.0, None, -3.0))
    assert [line.shade(value) for value in line.values] == [0, 1, 7, 0, 0]
    assert [line.bar(value) for value in line.known] == [3, 4, 7, 0]
    assert line.above == "2 of 4 above 1"
    assert line.at(2) == "verse 4.00 > 1"
    assert line.at(3) == "verse –"
    assert line.at(9) == "verse –"
    flat = MonitorLine("f", 0.0, 0.0, 0.0, (0.0, 0.0))
    assert [flat.shade(0.0), flat.bar(0.0)] == [0, 3]


async def test_a_monitor_has_one_scale_in_all_lanes() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(monitors=(Watched(Monitor("m", 4, vector=unit_vector("m"))),))
        await pilot.press("r")
        await settle(app, pilot)
        lines = monitor_lines(shown_run(app))
        assert len({(arm[0].low, arm[0].high) for arm in lines}) == 1
        assert lines[0][0].high == max(value for arm in lines for value in arm[0].known)
