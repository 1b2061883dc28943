"""What must not be imported before the first frame, in a fresh process that paints it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "pydantic", "huggingface_hub", "mlx", "sqlite3")
PAINT = """
import asyncio, sys
from lens_tui.tui.run import make_app
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


@pytest.mark.parametrize("demo", [False, True])
def test_the_first_frame_brings_nothing_heavy(demo: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAINT.format(demo=demo, heavy=HEAVY)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[:1] == ["painted"], done.stderr
