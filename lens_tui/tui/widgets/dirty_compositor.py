"""Painting only what has changed, where what has changed lies far apart."""

from __future__ import annotations

from collections.abc import Sequence

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.widget import Widget


class DirtyCompositor(Compositor):
    """A compositor that asks only those widgets for lines that a changed region touches, and only for lines near it.

    Textual asks every widget inside the rectangle around all changes for all of its lines. While lanes are written that
    rectangle is the screen: some thirty widgets handed over lines that had not changed, thirty times a second, which
    was most of what the screen takes from the model.
    """

    _touched: dict[Widget, tuple[Region, Region]] | None = None

    @property
    def visible_widgets(self) -> dict[Widget, tuple[Region, Region]]:
        """Widgets with their regions and clips, front to back; while changes are painted, those that they touch."""
        return super().visible_widgets if self._touched is None else self._touched

    def render_partial_update(self) -> ChopsUpdate | None:
        """The changes, as Textual writes them; ``None`` if there are none."""
        _ = self.cuts  # where lines are cut is decided by all widgets
        changed = tuple(self._dirty_regions)
        visible = super().visible_widgets.items()
        touched = {widget: (region, _rows(region, clip, changed)) for widget, (region, clip) in visible}
        self._touched = {widget: (region, rows) for widget, (region, rows) in touched.items() if rows}
        try:
            return super().render_partial_update()
        finally:
            self._touched = None


def _rows(region: Region, clip: Region, changed: Sequence[Region]) -> Region:
    """Of what shows of a widget the rows from the first change to the last, as wide as before; empty for no change."""
    seen = region.intersection(clip)
    parts = [part for part in changed if seen.overlaps(part)]
    if not parts:
        return Region()
    top, bottom = min(part.y for part in parts), max(part.bottom for part in parts)
    return clip.intersection(Region(clip.x, top, clip.width, bottom - top))
