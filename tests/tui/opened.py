"""The app as the tests of screens meet it: a fake worker, a model, an SAE and two arms on the bench."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from textual.pilot import Pilot

from lens_tui.tui.app import LensApp
from lens_tui.worker.jobs import Job
from tests.apps import PATIENCE, lens_app, screen_text
from tests.fakes import DEMO_MODEL, DEMO_SAE, FakeWorker, unit_vector
from tests.quick_pilot import due_within, in_a_thread, nothing_due, one_wait

__all__ = ["PROMPT", "app_on", "fill", "jobs_of", "opened", "screen_of", "screen_text", "settle"]

Shown = TypeVar("Shown")
Asked = TypeVar("Asked", bound=Job)

WHILE = 0.12
"""How many seconds ahead nothing is due in an app that has settled: longer than a cursor rests."""

PROMPT = "Once upon a time, there was"


def app_on(screen: str, **worker: Any) -> LensApp:
    """The app opening on a screen; its clock stands still."""
    return lens_app(FakeWorker(**worker), screen=screen)


@asynccontextmanager
async def opened(
    screen: str, size: tuple[int, int] = (120, 36), steers: int = 2, **worker: Any
) -> AsyncIterator[tuple[LensApp, Pilot[None]]]:
    """A running app with a model loaded, a prompt written and ``steers`` arms on the bench."""
    app = app_on(screen, **worker)
    async with app.run_test(size=size) as pilot:
        fill(app, steers)
        await settle(app, pilot)
        yield app, pilot


def fill(app: LensApp, steers: int = 2) -> None:
    """What a user would have after loading the demo."""
    app.store.update(model=DEMO_MODEL, saes=(DEMO_SAE,), sae=DEMO_SAE.id, prompt=PROMPT)
    rows: list[tuple[str, float, dict[str, Any]]] = [
        ("dogs", 24.0, {"max_activation": 12.0}),
        ("sadness", 8.0, {}),
        ("verse", 5.0, {}),
        ("sea", 3.0, {}),
    ]
    for name, scale, facts in rows[:steers]:
        app.store.add_steer(unit_vector(name, **facts), scale=scale, residual_norm=40.0)


def screen_of(app: LensApp, kind: type[Shown]) -> Shown:
    """The screen that shows, which is of this kind."""
    assert isinstance(app.screen, kind)
    return app.screen


def jobs_of(app: LensApp, kind: type[Asked]) -> list[Asked]:
    """The jobs of a kind that the worker was given, in order."""
    return [job for job in cast("FakeWorker", app.worker).submitted if isinstance(job, kind)]


async def settle(app: LensApp, pilot: Pilot[None]) -> None:
    """Wait until the worker has nothing to do, or to give, and nothing will begin by itself (the cursor has rested)."""
    worker = app.worker
    assert isinstance(worker, FakeWorker)
    deadline = time.monotonic() + PATIENCE
    with one_wait(app):
        await pilot.pause(0)
        while True:
            still = await nothing_due(app, WHILE, WHILE)
            # What was begun late in that while, on a busy machine, is due after its end: the cursor rests yet. So does
            # what a thread is late with: a path that is copied, a list that is read.
            at_ease = worker.held or (worker.idle and not app.busy and not due_within(app, WHILE))
            if still and not in_a_thread(app) and at_ease:
                break
            assert time.monotonic() < deadline, "the app did not settle"
        await pilot.pause(0)
