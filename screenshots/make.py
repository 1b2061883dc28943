"""Make the pictures of the README from the real app, the real worker and the bundled model.

    python screenshots/make.py            # writes screenshots/*.svg

A picture is taken when the worker is idle, so that two runs on one machine give the same text.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
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


async def tour(pilot: Pilot[None], shoot: Shoot) -> None:
    """The README's first five minutes."""
    await idle(pilot)
    await press(pilot, "r")
    shoot("generate")
    await press(pilot, "4", "right_square_bracket", "right_square_bracket")
    await press(pilot, *["l"] * 3)
    shoot("features")
    await press(pilot, "s", "2")
    shoot("steer")
    await press(pilot, "k", "k", "v")
    shoot("dose")
    await press(pilot, "v")
    await press(pilot, "5")
    shoot("lens")
    await press(pilot, "1")
    shoot("load")
    await press(pilot, "question_mark")
    shoot("keys")
    await press(pilot, "escape")


async def small(pilot: Pilot[None], shoot: Shoot) -> None:
    """The same at 80 by 24."""
    await idle(pilot)
    await press(pilot, "r")
    shoot("generate-80x24")
    await press(pilot, "4", "l", "l", "l")
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


def main() -> None:
    """Make every picture."""
    from lens_tui.tui.themes import DEFAULT_THEME

    others = sorted(path.stem for path in (HERE.parent / "themes").glob("*.toml") if path.stem != DEFAULT_THEME)
    asyncio.run(play(tour, WIDE))
    asyncio.run(play(small, NARROW))
    for theme in others:
        asyncio.run(play(themes_scene(theme), WIDE, theme))


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    os.environ["COLORTERM"] = "truecolor"
    with tempfile.TemporaryDirectory() as home:
        # Settings, history and the session of whoever runs this stay out of the pictures.
        os.environ["LENS_TUI_HOME"] = home
        main()
