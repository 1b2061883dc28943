"""What must not happen before the first frame: imports, in a fresh process that paints it, and sheets read twice."""

from __future__ import annotations

import subprocess
import sys

import pytest
from textual.css.stylesheet import Stylesheet

from lens_tui.records import paths
from lens_tui.tui.app import LensApp
from tests.fakes import FakeWorker

HEAVY = (
    *("numpy", "pydantic", "huggingface_hub", "mlx", "sqlite3", "typer", "logging.handlers"),
    *("textual.widgets._text_area", "lens_tui.tasks.models"),
)
PAINT = """
import asyncio, sys
from lens_tui.tui.start import make_app
from lens_tui.worker.thread import Worker

async def main():
    app = make_app(Worker(), demo={demo})
    at = []
    app.after_first_frame(lambda: at.extend(name for name in {heavy} if name in sys.modules))
    app.after_first_frame(lambda: (print("painted", *at), app.exit()))
    async with app.run_test(size=(80, 24)):
        pass

asyncio.run(main())
"""
COMMAND = """
import sys
from lens_tui.cli import main
sys.argv = ["mlx-lens-tui", *{asked}]
try:
    main()
finally:
    print("typer" in sys.modules)
"""


@pytest.mark.parametrize("demo", [False, True])
@pytest.mark.parametrize("settings", ["", "[generate]\ntemp = 0.5\n"])
def test_the_first_frame_brings_nothing_heavy(demo: bool, settings: str) -> None:
    if settings:
        paths.settings_file().parent.mkdir(parents=True)
        paths.settings_file().write_text(settings)
    done = subprocess.run(
        [sys.executable, "-c", PAINT.format(demo=demo, heavy=HEAVY)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[:1] == ["painted"], done.stderr


@pytest.mark.parametrize(("asked", "parsed"), [([], False), (["--demo"], False), (["--demo", "--theme", "ink"], True)])
def test_the_usual_starts_need_no_parser_of_options(asked: list[str], parsed: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(asked=asked)],
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "The app needs a terminal" in done.stderr
    assert done.stdout.split() == [str(parsed)]


async def test_no_screen_has_the_sheets_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[str] = []
    reparse = Stylesheet.reparse

    def counted(sheet: Stylesheet) -> None:
        again.append(app.current_mode)
        reparse(sheet)

    monkeypatch.setattr(Stylesheet, "reparse", counted)
    app = LensApp(FakeWorker())
    async with app.run_test(size=(120, 36)) as pilot:
        for mode in ("steer", "generate", "features", "lens"):
            app.action_show(mode)
            await pilot.pause()
            assert app.screen.has_class("-wide", "-tall")
    assert again == []
