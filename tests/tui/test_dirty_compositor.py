"""What is painted of a change is what Textual itself would paint of it, from fewer widgets."""

from __future__ import annotations

import random

import pytest
from textual._compositor import Compositor
from textual.geometry import Region
from textual.widget import Widget

from lens_tui.tui.widgets.dirty_compositor import DirtyCompositor

from .opened import opened, settle


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_change_is_painted_as_textual_paints_it(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        compositor = app.screen._compositor
        assert isinstance(compositor, DirtyCompositor)
        draw = random.Random(0)
        for count in (1, 1, 2, 3, 5, 8) * 6:
            regions = {_somewhere(draw, size) for _ in range(count)}
            written = []
            for paint in (Compositor.render_partial_update, DirtyCompositor.render_partial_update):
                compositor._dirty_regions = set(regions)
                update = paint(compositor)
                assert update is not None
                written.append(update.render_segments(app.console))
            assert written[0] == written[1], regions


async def test_what_lies_between_two_changes_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("generate") as (app, pilot):
        await settle(app, pilot)
        compositor, asked = app.screen._compositor, []
        lines = Widget.render_lines

        def counted(widget: Widget, crop: Region) -> object:
            asked.append(crop.height)
            return lines(widget, crop)

        monkeypatch.setattr(Widget, "render_lines", counted)
        width, height = app.size
        ends = {Region(0, 0, 1, 1), Region(width - 1, height - 1, 1, 1)}
        for paint in (Compositor.render_partial_update, DirtyCompositor.render_partial_update):
            asked.clear()
            compositor._dirty_regions = set(ends)
            paint(compositor)  # type: ignore[arg-type]
            of_all = len(asked) == len(compositor.visible_widgets)
            assert of_all is (paint is Compositor.render_partial_update)


def _somewhere(draw: random.Random, size: tuple[int, int]) -> Region:
    x, y = draw.randrange(size[0]), draw.randrange(size[1])
    return Region(x, y, draw.randint(1, size[0] - x), draw.randint(1, min(3, size[1] - y)))
