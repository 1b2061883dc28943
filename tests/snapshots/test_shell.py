"""Pictures of the shell, Load and Steer. After a change that was meant: `pytest tests/snapshots --snapshot-update`."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from lens_tui.records import LensError
from lens_tui.worker import jobs
from tests.apps import FakeCatalog, lens_app, settle
from tests.fakes import FakeWorker

pytestmark = [pytest.mark.usefixtures("still_cursor")]
SIZES = {"wide": (120, 36), "narrow": (80, 24)}
Before = Callable[[Pilot[Any]], Awaitable[None]]


def after(*keys: str, release: int = 0) -> Before:
    """Settle, press keys one after the other, settle."""

    async def run(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        if release:
            pilot.app.worker.release(release)  # type: ignore[attr-defined]
            await settle(pilot)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)

    return run


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_load(snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(lens_app(model="demo"), terminal_size=size, run_before=after("j"))


def test_load_nothing(snap_compare: Any) -> None:
    assert snap_compare(lens_app(catalog=FakeCatalog(())), terminal_size=(80, 24), run_before=after())


def test_load_in_progress(snap_compare: Any) -> None:
    app = lens_app(FakeWorker(hold=True), model="demo")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after(release=6))


def test_load_filter(snap_compare: Any) -> None:
    assert snap_compare(lens_app(), terminal_size=(80, 24), run_before=after("/", "2", "7"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_steer(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=size, run_before=after("j", "+", "+", "space"))


@pytest.mark.parametrize("theme", ["paper", "ember", "contrast"])
def test_steer_themes(snap_compare: Any, theme: str) -> None:
    app = lens_app(screen="steer", model="demo", theme=theme)
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("b"))


def test_steer_without_colour(snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = lens_app(screen="steer", model="demo")
    assert "NO_COLOR" in os.environ
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("j"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_dose(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=size, run_before=after("v", "l", "j", "j"))


def test_dose_without_colour(snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("v", "G"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_search(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="steer", model="demo", theme="paper")
    assert snap_compare(app, terminal_size=size, run_before=after("F", "1"))


def test_modes(snap_compare: Any) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("M", "P", "P", "j", "M", "M", "P", "k"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_layers(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="steer", model="demo")
    typed = ("a", "2", *"joy", "enter", *"a|b", "enter", *"c|d", "enter", "j")
    assert snap_compare(app, terminal_size=size, run_before=after(*typed))


def test_sum_form(snap_compare: Any) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("a", "5"))


def test_steer_nothing(snap_compare: Any) -> None:
    assert snap_compare(lens_app(screen="steer"), terminal_size=(80, 24), run_before=after())


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_help(snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(lens_app(screen="steer", model="demo"), terminal_size=size, run_before=after("?"))


def test_form(snap_compare: Any) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("a", "2", "enter"))


def test_choice(snap_compare: Any) -> None:
    app = lens_app(screen="steer", model="org/name")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("a", "down"))


def test_themes(snap_compare: Any) -> None:
    app = lens_app(screen="steer", model="demo")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("T", "j"))


def test_error(snap_compare: Any) -> None:
    problem = LensError("There is no model at somewhere/else.", "Give a folder, a hub id like org/name, or demo.")
    app = lens_app(FakeWorker(failures={jobs.LoadModel: problem}), model="somewhere/else")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after())


def test_too_small(snap_compare: Any) -> None:
    assert snap_compare(lens_app(), terminal_size=(59, 15), run_before=after())
