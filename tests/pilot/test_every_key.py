"""Every key that `?` lists on a screen gives a sign of life: to be seen, or said.

Keys are pressed in every pane of these screens, with nothing loaded and with all that a day brings. A key of movement
may stand at its end: then its opposite comes first. What it does is the other tests' matter; here it must not be mute.
"""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widget import Widget

from lens_tui.tui.app import LensApp
from lens_tui.tui.keys import SCREENS, split
from lens_tui.tui.screens import generate_screen
from lens_tui.tui.screens.everywhere import live_keys
from lens_tui.tui.widgets.frame import LensScreen, Scroll, takes_text
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.tui.widgets.token_view import TokenView
from tests.apps import painted
from tests.fakes import FakeWorker
from tests.tui.opened import app_on, fill, settle

SIZES = [(120, 36), (80, 24)]
ENDS = {"app.quit", "app.quit_idle"}
"""The keys that leave: tests/pilot/test_shell.py presses them."""
OPPOSITE = {
    "move.down": "k", "move.up": "j", "move.left": "l", "move.right": "h",
    "move.first": "G", "move.last": "g", "move.page_down": "ctrl+u", "move.page_up": "ctrl+d",
}  # fmt: skip

WALKS = [(mode, size) for mode, _ in SCREENS for size in SIZES if mode != "generate" or size == SIZES[-1]]
"""Generate has the most keys and lanes to press them in: there one size is enough."""

UP_AND_DOWN = {"move.down", "move.up", "move.page_down", "move.page_up"}


class Seen:
    """What a person could notice: the picture, its screen, what was said, and work that shows while it goes."""

    def __init__(self, app: LensApp) -> None:
        self.app = app
        self.said: list[str] = []
        app.notify = self._hear  # type: ignore[method-assign]

    def _hear(self, message: str, **_: Any) -> None:
        self.said.append(message)

    def now(self) -> object:
        worker = self.app.worker
        assert isinstance(worker, FakeWorker)
        return [list(strip) for strip in painted(self.app)], len(self.said), id(self.app.screen), len(worker.submitted)

    async def after(self, pilot: Pilot[Any], key: str) -> bool:
        """Press a key; whether anything came of it, which is waited for until nothing runs any more."""
        before = self.now()
        await pilot.press(key)
        if self.now() != before:
            return True
        await settle(self.app, pilot)
        return self.now() != before


def has_room(widget: Widget | None, key: str) -> bool:
    """Whether a cursor could move there."""
    if isinstance(widget, RowList):
        return len(widget.rows) > 1
    if isinstance(widget, TokenView):
        return len(widget._layout_of.lines) > 1 if key in UP_AND_DOWN else len(widget.tokens) > 1
    if isinstance(widget, Scroll):
        return widget.max_scroll_y > 0
    return not (isinstance(widget, HeatGrid) and widget.blank)


async def back(app: LensApp, pilot: Pilot[Any], mode: str, loaded: bool, widget: Widget) -> None:
    """Close what a key opened, and have on the bench again what it took away."""
    while not isinstance(app.screen, LensScreen) or takes_text(app.screen.focused) or app.screen.maximized:
        await pilot.press("escape")
    if widget.is_attached and not widget.size:  # another pane has taken its room
        await pilot.press("escape")
        await settle(app, pilot)
    if app.current_mode != mode:
        app.action_show(mode)
        await settle(app, pilot)
    if loaded and (len(app.store.session.arms()) < 3 or app.store.session.model is None):
        fill(app)
        await settle(app, pilot)


async def silent_keys(app: LensApp, pilot: Pilot[Any], mode: str, loaded: bool) -> list[str]:
    """The keys that nothing came of, with the pane in which they were pressed: each where it is live first.

    Those of movement are pressed in every pane.
    """
    seen, found, done = Seen(app), [], set()
    for place in range(len(app.screen.focus_chain)):
        chain = app.screen.focus_chain
        widget = chain[min(place, len(chain) - 1)]
        if takes_text(widget):  # there the keys are letters
            continue
        app.screen.set_focus(widget)
        await pilot.pause()
        for key, _ in live_keys(app.screen):
            if key.id in ENDS or key.id in done:
                continue
            if key.scope != "move":
                done.add(key.id)
            if not widget.is_attached and app.screen.focused is not None:  # a lane that a key took away
                widget = app.screen.focused
            if widget.is_attached and app.screen.focused is not widget:
                app.screen.set_focus(widget)
            part = split(key.keys)[0]
            came = await seen.after(pilot, part)
            if not came and key.scope == "move":
                came = not has_room(widget, key.id) or await seen.after(pilot, OPPOSITE[key.id])
            if not came:
                found.append(f"{key.id} {part} in {widget.id or type(widget).__name__}")
            await back(app, pilot, mode, loaded, widget)
            if app.busy:  # what a key began must not move the next one's pane meanwhile
                await settle(app, pilot)
    return found


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "empty"])
@pytest.mark.parametrize(("mode", "size"), WALKS, ids=[f"{mode}-{size[0]}" for mode, size in WALKS])
async def test_no_key_of_the_help_is_mute(
    mode: str, size: tuple[int, int], loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that begins by itself, after the rest that follows a change of scale, would clear a lane under a key.
    monkeypatch.setattr(generate_screen, "REST", 3600.0)
    app = app_on(mode)
    async with app.run_test(size=size) as pilot:
        if loaded:
            fill(app)
            await settle(app, pilot)
            if mode in ("generate", "features", "lens"):
                await pilot.press("r")  # then there are texts of arms to go to
                await settle(app, pilot)
                app.action_show(mode)
        await settle(app, pilot)
        silent = await silent_keys(app, pilot, mode, loaded)
        assert not silent, "; ".join(silent)
