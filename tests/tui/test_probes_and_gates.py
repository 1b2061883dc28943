"""Probes made on Steer, what they are used as, and gates: on the bench, in a lane's head, in what is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from textual.pilot import Pilot

from lens_tui.records import LensError, paths
from lens_tui.records.gates import Gate, Watched, gate_sign, gate_text, monitor_of
from lens_tui.records.probe import kept_probes
from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.form import ChoiceScreen, FormScreen
from lens_tui.tui.screens.monitors import ALWAYS, FEATURE, called, feature_monitor, gate_asked, sources_of
from lens_tui.tui.screens.probe_forms import ProbeLayersScreen
from lens_tui.worker import jobs
from tests.fakes import DEMO_SAE, FakeWorker, unit_vector

from .opened import opened, screen_text, settle

HOSTILE = "\x1b]52;c;aGk=\x07[red]x[/red]\u202e"


def worker_of(app: LensApp) -> FakeWorker:
    return cast("FakeWorker", app.worker)


async def type_probe(pilot: Pilot[Any], name: str = "mood") -> None:
    """The form of a probe, filled in; enter fits it."""
    await pilot.press("a", "8", *name, "tab", *"a1|a2", "tab", *"b1|b2", "enter")
    app = pilot.app
    assert isinstance(app, LensApp)
    await settle(app, pilot)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_probe_is_made_kept_and_steered_with(size: tuple[int, int]) -> None:
    async with opened("steer", size) as (app, pilot):
        await type_probe(pilot)
        assert worker_of(app).submitted[-1] == jobs.TrainProbes("mood", ("a1", "a2"), ("b1", "b2"))
        assert isinstance(app.screen, ProbeLayersScreen)
        shown = screen_text(app)
        assert "mood: which layer?  (8 examples, 4 folds)" in shown
        assert "0.950" in shown
        assert "0.500 (0.750)" in shown
        assert kept_probes() == []
        await pilot.press("enter")  # the best is under the cursor
        await settle(app, pilot)
        ((_, kept),) = kept_probes()
        assert (kept.vector.name, kept.layer, kept.held_out.value) == ("mood", 5, 0.95)
        await pilot.press("1")
        await settle(app, pilot)
        row = app.store.session.steers[-1]
        assert (row.vector.origin.kind, row.layer) == ("probe", 5)
        await pilot.press("G")
        await settle(app, pilot)
        assert "AUC  0.950 held out, 0.500 at random" in screen_text(app)


async def test_a_file_of_labels_layers_and_kind(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"text": "x", "label": 1}))
    async with opened("steer") as (app, pilot):
        await pilot.press("a", "9")
        await settle(app, pilot)
        await pilot.press(*str(file), "tab", "tab", "left", "tab", "delete", "delete", "delete")
        await pilot.press("home", "delete", "delete", "delete", *"4,2", "tab", "right", "enter")
        await settle(app, pilot)
        asked = jobs.TrainProbes("talk", path=str(file), kind="ridge", layers=(2, 4), over="mean")
        assert worker_of(app).submitted[-1] == asked
        assert "R2 of examples held out" in screen_text(app)
        await pilot.press("escape")
        await settle(app, pilot)
        assert isinstance(app.screen, FormScreen)  # what was typed
        assert kept_probes() == []


async def test_what_fails_comes_back_with_what_was_typed() -> None:
    error = LensError("There are too few examples.", "Give more.")
    async with opened("steer", failures={jobs.TrainProbes: error}) as (app, pilot):
        await type_probe(pilot)
        shown = screen_text(app)
        assert "There are too few examples. Give more." in shown
        assert "a1|a2" in shown


async def test_a_probe_is_read_with_or_gates_a_row_that_it_reads_early_enough_for() -> None:
    async with opened("steer") as (app, pilot):
        await type_probe(pilot)
        await pilot.press("enter", "3")  # layer 5, the row is at 4
        await settle(app, pilot)
        assert isinstance(app.screen, ChoiceScreen)
        assert app.store.session.steers[0].gate is None
        await pilot.press("2")
        await settle(app, pilot)
        (watched,) = app.store.session.monitors
        assert (watched.monitor.name, watched.monitor.layer, watched.threshold) == ("mood", 5, 0.0)
        assert watched.monitor.bias == -0.5
        await type_probe(pilot, "tone")
        await pilot.press("k", "k", "enter", "3")  # layer 3
        await settle(app, pilot)
        gate = app.store.session.steers[1].gate  # the cursor is on the last row
        assert gate is not None
        assert (gate.monitor.name, gate.monitor.layer) == ("tone", 3)
        assert "if tone>0" in screen_text(app)
        await pilot.press("u")
        assert app.store.session.steers[1].gate is None


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_gate_of_a_feature_reaches_the_run_and_the_head_of_its_lane(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press("K")
        await settle(app, pilot)
        assert "Gate of dogs" in screen_text(app)
        await pilot.press("left", "tab", *"75", "tab", "right", "tab", "delete", *"0.5", "enter")
        await settle(app, pilot)
        gate = app.store.session.steers[0].gate
        assert gate == Gate(feature_monitor(DEMO_SAE, 75), 0.5, "below")
        assert "if f75<0.5" in screen_text(app)
        await pilot.press("r")
        await settle(app, pilot)
        job = next(job for job in worker_of(app).submitted if isinstance(job, jobs.Compare))
        assert job.arms[1].interventions[0].gate == gate
        await pilot.press("K")
        await settle(app, pilot)
        await pilot.press("enter")  # as it was
        await settle(app, pilot)
        assert app.store.session.steers[0].gate == gate


async def test_a_gate_without_a_number_or_read_too_late_is_asked_again() -> None:
    async with opened("steer") as (app, pilot):
        late = monitor_of(unit_vector("late", 6))
        app.store.update(monitors=(Watched(late),))
        await pilot.press("K", "left", "enter")
        await settle(app, pilot)
        assert "feature needs a number from 0 to 8191" in screen_text(app)
        await pilot.press("escape", "K", "right", "enter")
        await settle(app, pilot)
        assert "late · layer 6 is read too late for a row at layer 4" in screen_text(app)


async def test_hostile_names_do_no_harm_in_forms_rows_and_heads() -> None:
    async with opened("steer") as (app, pilot):
        monitor = monitor_of(unit_vector(HOSTILE, 4))
        app.store.edit_steer(app.store.session.steers[0].id, gate=Gate(monitor, 1.0))
        for key in ("K", "escape", "3", "K"):
            await pilot.press(key)
            await settle(app, pilot)
            shown = screen_text(app)
            assert "\x1b" not in shown
            assert "\u202e" not in shown
        assert "[red]x[/red]" in screen_text(app)


def test_what_the_form_means_and_how_a_gate_is_written() -> None:
    probe = monitor_of(unit_vector("verse", 2))
    sources = {called(probe): probe}
    values = {"reads": called(probe), "side": "above", "threshold": "1.5", "feature": ""}
    gate = gate_asked(values, sources, DEMO_SAE, 4)
    assert gate == Gate(probe, 1.5)
    assert isinstance(gate, Gate)
    assert gate_sign(gate) == "if verse>1.5"
    assert gate_text(gate) == "where verse is above 1.5 at layer 2"
    assert gate_asked({**values, "reads": ALWAYS}, sources, DEMO_SAE, 4) is None
    assert isinstance(gate_asked(values, sources, DEMO_SAE, 1), str)
    typed = {**values, "reads": FEATURE, "feature": "75"}
    assert gate_asked(typed, sources, DEMO_SAE, 4) == Gate(feature_monitor(DEMO_SAE, 75), 1.5)


async def test_kept_probes_are_sources_and_other_vectors_of_the_folder_are_not() -> None:
    async with opened("steer") as (app, pilot):
        await type_probe(pilot)
        await pilot.press("enter", "4")
        await settle(app, pilot)
        (paths.vectors_folder() / "broken.safetensors").write_bytes(b"no")
        assert "mood (probe) · layer 5" in sources_of(app.store.session)
        app.store.update(model=None)
        assert "mood (probe) · layer 5" not in sources_of(app.store.session)
