"""Keys as they come over a slow line: many in one read, each acted on before the last one's screen is there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from textual import events

from lens_tui.tui.keys import KEYS
from tests.apps import lens_app, settle

LEAVE = ("app.quit", "app.quit_idle", "app.interrupt", "app.suspend")
BUNCHES = 30


def every_key() -> list[str]:
    """The keys of the table, and those that dialogues and fields live on."""
    table = [key for row in KEYS if row.id not in LEAVE for key in row.keys.split(",")]
    return [*table, *["escape", "enter", "tab"] * 6, "shift+tab", "backspace", "a", "7", "full_stop"]


@pytest.mark.parametrize("seed", [1, 17, 23])
async def test_no_bunch_of_keys_breaks_anything(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in a handler ends an app without a terminal, and raises here."""
    dice, keys = random.Random(seed), every_key()
    monkeypatch.chdir(tmp_path)  # exports are among what is done
    app = lens_app(model="demo", screen="generate")
    monkeypatch.setattr(app, "exit", lambda *_, **__: None)  # the palette's commands are among what is done
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        for _ in range(BUNCHES):
            for key in dice.choices(keys, k=dice.choice((1, 2, 3, 8))):
                app.simulate_key(key)
            if dice.random() < 0.2:
                app.screen.post_message(events.Paste("pasted\nlines \x1b[31m"))
            await pilot.pause(0.02)
        await settle(pilot)
        assert app.is_running
