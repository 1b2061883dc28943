"""What is painted of a change is what Textual itself would paint of it, from fewer widgets."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from textual._compositor import ChopsUpdate, Compositor, LayoutUpdate
from textual.app import App, ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from lens_tui.tui.keys import SCREENS
from lens_tui.tui.widgets.dirty_compositor import DirtyCompositor
from tests.tui.opened import opened, settle

IDLE_MOVES = re.compile(r"\x1b\[\d+;\d+H(?=\x1b\[\d+;\d+H|\n)")
"""A move of the cursor that another one or the end of the line follows at once."""


class Overlapping(App[None]):
    """Widgets beside, in front of and out of sight behind one another, some of them scrolled and half clipped."""

    CSS = """
    Screen { layers: base above; }
    Horizontal { height: 10; }
    .lane { width: 1fr; border: round green; padding: 0 1; }
    #over { layer: above; offset: 7 4; width: 18; height: 6; background: red 40%; }
    VerticalScroll { height: 6; scrollbar-size: 1 1; }
    #foot { dock: bottom; height: 2; }
    """

    def get_default_screen(self) -> Screen[Any]:
        screen = super().get_default_screen()
        screen._compositor = DirtyCompositor()
        return screen

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static("one word after another " * 9, classes="lane")
            yield Static("日本語の文 " * 20, classes="lane")
        with VerticalScroll():
            yield Static("\n".join(f"line {number} of many" for number in range(30)))
        yield Static("in front " * 8, id="over")
        yield Static("at the foot", id="foot")


def sent(update: ChopsUpdate | None) -> list[tuple[int, int, Any]]:
    """What an update puts where: row, first cell, and the strip."""
    assert update is not None
    out = []
    for y, left, right in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if x < right and end > left:
                out.append((y, x, strip))
    return out


def both(compositor: Compositor, dirty: set[Region]) -> tuple[list[Any], list[Any]]:
    """What the compositor sends for some changed regions, and what Textual's own does for them."""
    compositor._dirty_regions = set(dirty)
    ours = sent(compositor.render_partial_update())
    compositor._dirty_regions = set(dirty)
    kind, compositor.__class__ = compositor.__class__, Compositor
    try:
        return ours, sent(compositor.render_partial_update())
    finally:
        compositor.__class__ = kind


def somewhere(draw: random.Random, width: int, height: int) -> Region:
    x, y = draw.randrange(width), draw.randrange(height)
    return Region(x, y, draw.randint(1, width - x), draw.randint(1, min(4, height - y)))


async def test_any_changes_are_painted_as_textual_paints_them() -> None:
    draw = random.Random(3)
    app = Overlapping()
    async with app.run_test(size=(50, 24)) as pilot:
        app.query_one(VerticalScroll).scroll_to(y=7, animate=False)
        await pilot.pause()
        compositor = app.screen._compositor
        assert type(compositor) is DirtyCompositor
        for _ in range(200):
            ours, textuals = both(compositor, {somewhere(draw, 50, 24) for _ in range(draw.randint(1, 5))})
            assert ours == textuals
            assert all(strip is not None for *_, strip in ours)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_change_of_generate_is_painted_as_textual_paints_it(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        app.action_run()
        await settle(app, pilot)
        compositor = app.screen._compositor
        assert isinstance(compositor, DirtyCompositor)
        draw = random.Random(0)
        for count in (1, 1, 2, 3, 5, 8) * 6:
            dirty = {somewhere(draw, *size) for _ in range(count)}
            ours, textuals = both(compositor, dirty)
            assert ours == textuals, dirty


async def test_the_terminal_gets_what_it_would_get() -> None:
    """But for moves of the cursor to where nothing is written."""
    async with opened("generate") as (app, pilot):
        await settle(app, pilot)
        compositor, draw = app.screen._compositor, random.Random(1)
        for _ in range(30):
            dirty, written = {somewhere(draw, 120, 36) for _ in range(4)}, []
            for paint in (Compositor.render_partial_update, DirtyCompositor.render_partial_update):
                compositor._dirty_regions = set(dirty)
                update = paint(compositor)  # type: ignore[arg-type]
                assert update is not None
                written.append(IDLE_MOVES.sub("", update.render_segments(app.console) + "\n"))
            assert written[0] == written[1]


def whole(compositor: Compositor, paint: Callable[[Any], LayoutUpdate]) -> list[list[Strip]]:
    """The strips of every row of the whole screen, nothing of it kept from before."""
    for widget in compositor.visible_widgets:
        widget._styles_cache.clear()
    return [list(row) for row in paint(compositor).strips]


async def test_the_whole_screen_is_painted_as_textual_paints_it() -> None:
    app, draw = Overlapping(), random.Random(5)
    async with app.run_test(size=(50, 24)) as pilot:
        compositor = app.screen._compositor
        for _ in range(5):
            app.query_one(VerticalScroll).scroll_to(y=draw.randrange(20), animate=False)
            app.query_one("#over").styles.offset = draw.randrange(40), draw.randrange(20)
            await pilot.pause()
            ours = whole(compositor, DirtyCompositor.render_full_update)
            assert ours == whole(compositor, Compositor.render_full_update)
            assert len(ours) == 24
            assert all(strip is not None for row in ours for strip in row)


@pytest.mark.parametrize("screen", [name for name, _ in SCREENS])
async def test_each_whole_screen_is_painted_as_textual_paints_it(screen: str) -> None:
    async with opened(screen, size=(100, 30)) as (app, _):
        compositor = app.screen._compositor
        ours = whole(compositor, DirtyCompositor.render_full_update)
        assert ours == whole(compositor, Compositor.render_full_update)
        assert len(ours) == 30


async def test_of_the_whole_screen_nothing_is_rendered_that_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Overlapping()
    async with app.run_test(size=(50, 24)):
        rendered: dict[Widget, int] = {}
        render = Widget.render_lines

        def counted(widget: Widget, crop: Region) -> list[Strip]:
            rendered[widget] = rendered.get(widget, 0) + crop.height
            return render(widget, crop)

        monkeypatch.setattr(Widget, "render_lines", counted)
        app.screen._compositor.render_full_update()
        lanes = app.query_one(Horizontal)
        assert lanes not in rendered  # its two lanes cover it
        assert {rendered[lane] for lane in lanes.children} == {10}
        assert rendered[app.screen] == 24 - 10 - 6 - 2  # what is below the lanes and the list, but for the foot


async def test_nothing_is_rendered_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("generate") as (app, pilot):
        app.action_run()
        await settle(app, pilot)
        view = app.screen.lanes.lanes[1].view  # type: ignore[attr-defined]
        rendered: list[tuple[Widget, Region]] = []
        render = Widget.render_lines

        def counted(widget: Widget, crop: Region) -> list[Strip]:
            rendered.append((widget, crop))
            return render(widget, crop)

        monkeypatch.setattr(Widget, "render_lines", counted)
        compositor = app.screen._compositor
        compositor._dirty_regions = {Region(view.region.x, view.region.y + 1, view.region.width, 1)}
        compositor.render_partial_update()
        assert rendered == [(view, Region(0, 1, view.region.width, 1))]
        compositor._dirty_regions = set()
        assert compositor.render_partial_update() is None
