"""Make the pictures of the pages from the real app, the real worker and the bundled model.

    python screenshots/make.py                    # writes screenshots/*.svg
    python screenshots/make.py lens history-two   # only those of these jobs

A picture is taken when the worker is idle, so that two runs on one machine give the same text.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from screenshots.jobs import JOBS, Job  # noqa: E402

WIDE, NARROW = (120, 36), (80, 24)

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from lens_tui.tui.app import LensApp

    Scene = Callable[[Pilot[None], "Shoot"], Awaitable[None]]
    Shoot = Callable[[str], None]


async def idle(pilot: Pilot[None], seconds: float = 900.0) -> None:
    """Wait until no job runs or waits and the last events are painted."""
    app: LensApp = pilot.app  # type: ignore[assignment]
    quiet = 0
    for _ in range(int(seconds / 0.1)):
        await pilot.pause(0.1)
        quiet = 0 if app.busy or app.opening.going else quiet + 1
        if quiet >= 6:
            return
    sys.exit("the worker did not become idle")


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Press keys one by one and wait for what they set going."""
    for key in keys:
        await pilot.press(key)
    await idle(pilot)


def job_scene(job: Job) -> Scene:
    """A job of the pages, done by its keys; what is typed comes in one go."""

    async def scene(pilot: Pilot[None], shoot: Shoot) -> None:
        await idle(pilot)
        for part in job.parts:
            await press(pilot, *part)
        shoot(job.picture)

    return scene


async def help_page(pilot: Pilot[None], shoot: Shoot) -> None:
    """The table of keys."""
    await idle(pilot)
    await press(pilot, "question_mark")
    shoot("keys")


async def small(pilot: Pilot[None], shoot: Shoot) -> None:
    """The same at 80 by 24."""
    await idle(pilot)
    await press(pilot, "r")
    shoot("generate-80x24")
    await press(pilot, "4")
    await press(pilot, "l", "l", "l")
    shoot("features-80x24")


def themes_scene(theme: str) -> Scene:
    """One picture of the running comparison in a theme."""

    async def scene(pilot: Pilot[None], shoot: Shoot) -> None:
        await idle(pilot)
        await press(pilot, "r")
        shoot(f"generate-{theme}")

    return scene


async def play(scene: Scene, size: tuple[int, int], theme: str | None = None) -> None:
    """Run one scene in a fresh app with a fresh worker."""
    from lens_tui.tui.start import make_app
    from lens_tui.worker.thread import Worker

    worker = Worker()
    app = make_app(worker, demo=True, theme=theme)
    try:
        async with app.run_test(size=size, notifications=True) as pilot:

            def shoot(name: str) -> None:
                (HERE / f"{name}.svg").write_text(app.export_screenshot(title="mlx-lens-tui"), encoding="utf-8")
                print(f"screenshots/{name}.svg")

            await scene(pilot, shoot)
    finally:
        worker.close(10.0)


def main(wanted: Sequence[str]) -> None:
    """Make every picture, or those of the jobs that are named."""
    from lens_tui.tui.themes import DEFAULT_THEME

    scenes: list[tuple[Scene, tuple[int, int], str | None]] = [(help_page, WIDE, None), (small, NARROW, None)]
    others = sorted(path.stem for path in (HERE.parent / "themes").glob("*.toml") if path.stem != DEFAULT_THEME)
    scenes += [(themes_scene(theme), WIDE, theme) for theme in others]
    if wanted:
        scenes.clear()
    for job in JOBS:
        if job.picture in wanted or (job.picture and not wanted):
            scenes.append((job_scene(job), WIDE, None))
    for scene, size, theme in scenes:
        # Settings, history and the session of whoever runs this stay out of the pictures, and of each other's.
        with tempfile.TemporaryDirectory() as home:
            os.environ["LENS_TUI_HOME"] = home
            asyncio.run(play(scene, size, theme))


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    os.environ["COLORTERM"] = "truecolor"
    main(sys.argv[1:])
