"""Vectors from files and to files on Steer; what was measured of them survives a crash; what was refused is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from textual.pilot import Pilot

from lens_tui import demo
from lens_tui.records import Add, Arm, SteeringVector, TokenWeight, paths
from lens_tui.records.codec import from_json, to_json
from lens_tui.records.interventions import BenchRow
from lens_tui.records.run import ArmRecord, RunRecord
from lens_tui.records.session_file import save_session
from lens_tui.records.vector_formats import load_vectors, save_vectors
from lens_tui.records.vector_formats.own import write_one
from lens_tui.tasks.run_command import as_command
from lens_tui.tui.app import LensApp
from lens_tui.tui.format import figure
from lens_tui.tui.recovery import saved, steers_of
from lens_tui.tui.screens.form import FormScreen
from lens_tui.tui.screens.history_screen import run_text
from lens_tui.tui.screens.steer_forms import VectorFileScreen, a_file, free
from lens_tui.tui.session import Session, SessionStore
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import DEMO_MODEL, FakeWorker, unit_vector
from tests.folders import read_session
from tests.tui.opened import fill


async def choose_file(pilot: Pilot[None]) -> None:
    await pilot.press("a", "7")
    await settle(pilot)
    assert isinstance(pilot.app.screen, VectorFileScreen)


def steer_app() -> LensApp:
    return lens_app(FakeWorker(), screen="steer")


async def test_a_vector_of_the_folder_goes_onto_the_bench() -> None:
    kept = unit_vector("tide", 6)
    file = write_one(kept)
    paths.vectors_folder().joinpath("broken.safetensors").write_bytes(b"nothing")
    app = steer_app()
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app, steers=0)
        await settle(pilot)
        await choose_file(pilot)
        shown = screen_text(app)
        assert "tide" in shown
        assert "resid_post 6 of demo" in shown
        assert "cannot be read" in shown
        await pilot.press("j", "enter")  # after the broken one
        await settle(pilot)
        assert isinstance(app.worker, FakeWorker)
        assert app.worker.submitted[-1] == jobs.VectorFromFile(str(file))
        (row,) = app.store.session.steers
        assert (row.vector.name, row.layer) == ("tide", 6)
        assert np.array_equal(row.vector.direction, kept.direction)


async def test_a_ready_vector_of_the_bundled_model_comes_with_its_scale() -> None:
    ready = demo.vectors()[1]
    app = steer_app()
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app, steers=0)
        await settle(pilot)
        await choose_file(pilot)
        assert all(f"scale {one.scale:g}" in screen_text(app) for one in demo.vectors())
        await pilot.press("j", "enter")
        await settle(pilot)
        (row,) = app.store.session.steers
        assert (row.vector.name, row.layer, row.scale) == (ready.name, ready.layer, ready.scale)


async def test_another_model_is_not_offered_them() -> None:
    app = steer_app()
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app, steers=0)
        app.store.update(model=replace(DEMO_MODEL, name="org/other"))
        await settle(pilot)
        await choose_file(pilot)
        assert "another file" in screen_text(app)
        assert demo.vectors()[0].name not in screen_text(app)


async def test_a_file_elsewhere_is_typed_with_its_layer(tmp_path: Path) -> None:
    file = save_vectors(unit_vector("tide", 2), tmp_path / "tide.npy")
    app = steer_app()
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app, steers=0)
        await settle(pilot)
        await choose_file(pilot)
        await pilot.press("slash")
        await settle(pilot)
        assert isinstance(app.screen, FormScreen)
        app.screen.query_one("#path").value = str(file)  # type: ignore[attr-defined]
        app.screen.query_one("#layer").value = "5"  # type: ignore[attr-defined]
        await pilot.press("enter")
        await settle(pilot)
        assert [row.layer for row in app.store.session.steers] == [5]


async def test_saving_writes_the_direction_at_the_rows_layer(tmp_path: Path) -> None:
    file = tmp_path / "dogs.gguf"
    app = steer_app()
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app, steers=1)
        await settle(pilot)
        (row,) = app.store.session.steers
        app.store.edit_steer(row.id, layer=3)
        for path in (str(file), ""):
            await pilot.press("w")
            await settle(pilot)
            app.screen.query_one("#path").value = path  # type: ignore[attr-defined]
            await pilot.press("enter")
            await settle(pilot)
        (own,) = load_vectors(paths.vectors_folder() / "dogs.safetensors")
        (theirs,) = load_vectors(file)
        for read in (own, theirs):
            assert read.layer == 3
            np.testing.assert_allclose(read.direction, row.vector.direction, rtol=0, atol=1e-6)


def test_what_a_path_needs(tmp_path: Path) -> None:
    there = tmp_path / "there.npy"
    there.touch()
    assert a_file(str(there)) == ""
    assert all(a_file(path) for path in ("", str(tmp_path), str(tmp_path / "no.npy")))
    assert free("") == free(str(tmp_path / "new.npy")) == ""
    assert all(free(str(path)) for path in (there, tmp_path / "no folder" / "new.npy"))


def test_what_was_measured_of_a_vector_is_taken_up_again(tmp_path: Path) -> None:
    store = SessionStore(Session())
    moved = (TokenWeight(3, " sea", 1.5), TokenWeight(4, " blue", 0.25))
    store.add_steer(unit_vector("sea"), residual_norm=41.5, promoted=moved, suppressed=moved[:1])
    store.add_steer(unit_vector("plain"))
    file = tmp_path / "session.json"
    save_session(saved(store.session, "demo", "steer"), file)
    session = read_session(file)
    assert session is not None
    first, second = steers_of(session)
    assert (first.residual_norm, first.promoted, first.suppressed) == (41.5, moved, moved[:1])
    assert (second.residual_norm, second.promoted, second.suppressed) == (None, (), ())


def test_a_session_of_before_has_nothing_measured(tmp_path: Path) -> None:
    import json

    file = tmp_path / "session.json"
    store = SessionStore(Session())
    store.add_steer(unit_vector("sea"), residual_norm=41.5)
    save_session(saved(store.session, "demo", "steer"), file)
    data = json.loads(file.read_text())
    for name in ("residual_norm", "promoted", "suppressed"):
        del data["steers"][0][name]
    file.write_text(json.dumps(data))
    session = read_session(file)
    assert session is not None
    assert session.steers[0].residual_norm is None


async def test_a_refused_change_and_a_notice_are_said_and_stay_in_the_status_row() -> None:
    app = lens_app(FakeWorker(hold=True), screen="generate")
    async with app.run_test(size=(120, 30)) as pilot:
        fill(app)
        await pilot.press("r")
        await settle(pilot)
        number = app.book.in_slot("run")
        assert number is not None
        with app.batch_update():
            app._deliver(ev.DialRefused(number, 1, "There is no layer 99.", "Use 0 to 7."), app.activity)
        await pilot.pause()
        assert any("There is no layer 99. Use 0 to 7." in said.message for said in app._notifications)
        assert app._remark.startswith("dogs continues as it was.")
        app._deliver(ev.Notice(number, "The history cannot be written.", "Free some space."), app.activity)
        assert app._remark == "The history cannot be written. Free some space."
        assert isinstance(app.worker, FakeWorker)
        app.worker.release()
        await settle(pilot)
        assert "○ The history cannot be written. Free some space." in screen_text(app)


def test_what_is_not_known_is_a_dash() -> None:
    assert [figure(value, 3) for value in (0.25, float("nan"), None)] == ["0.250", "–", "–"]


def test_a_vector_keeps_what_it_is_through_a_file(tmp_path: Path) -> None:
    vector = replace(unit_vector("sea", 2), norm=3.5)
    (read,) = load_vectors(save_vectors(vector, tmp_path / "sea.safetensors"))
    assert isinstance(read, SteeringVector)
    assert (read.name, read.layer, read.norm, read.model) == ("sea", 2, 3.5, "demo")


async def test_a_set_of_several_layers_is_one_row_with_one_scale(tmp_path: Path) -> None:
    kept = [replace(unit_vector(f"tide {layer}", layer), norm=2.0 + layer) for layer in (2, 3, 4)]
    file = save_vectors(kept, paths.vectors_folder() / "tides.gguf")
    app = steer_app()
    async with app.run_test(size=(120, 36)) as pilot:
        fill(app, steers=0)
        await settle(pilot)
        await choose_file(pilot)
        assert "a set of several layers" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        (row,) = app.store.session.steers
        assert (row.layers, row.scale, row.step) == ((2, 3, 4), 1.0, 0.1)
        shown = screen_text(app)
        assert "L2–4" in shown
        assert "× as made" in shown
        assert "of 3 layers: 2, 3, 4" in shown
        await pilot.press("plus", "greater_than_sign")  # the layers stay
        await settle(pilot)
        (row,) = app.store.session.steers
        assert (row.layers, row.scale) == ((2, 3, 4), 1.1)
        (_, arm) = app.store.session.arms()
        assert [record.layer for record in arm.interventions] == [2, 3, 4]
        scales = [cast(Add, record).scale for record in arm.interventions]
        np.testing.assert_allclose(scales, [1.1 * one.norm for one in kept], rtol=1e-5)
        again = from_json(BenchRow, json.loads(json.dumps(to_json(row))))
        assert again.layers == row.layers
        assert again.interventions()[2].id == f"{row.id}@4"
    run = RunRecord("demo", "Once", (ArmRecord(Arm("baseline")), ArmRecord(arm)))
    assert f"{file}@all*1.1" in as_command(run)
    (restored,) = run_text(run).steers
    assert (restored.layers, restored.scale) == ((2, 3, 4), 1.1)
