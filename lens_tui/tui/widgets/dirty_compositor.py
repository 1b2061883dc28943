"""Painting only what has changed, where what has changed lies far apart, and of it only what is seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from textual._compositor import ChopsUpdate, Compositor, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

Span = tuple[int, int]
"""Cells of a row, from the first to behind the last."""


class DirtyCompositor(Compositor):
    """A compositor that asks a widget for lines where it is the foremost one over what has changed, and for no others.

    Textual asks every widget inside the rectangle around all changes for all of its lines. While lanes are written that
    rectangle is the screen: some thirty widgets handed over lines that had not changed, thirty times a second, which
    was most of what the screen takes from the model. Of the whole screen it asks every container for all of its lines,
    though the widgets in it cover them: half of the time of a first paint. The picture is the same.
    """

    _changed: dict[int, list[Span]] | None = None

    def render_full_update(self, simplify: bool = False) -> LayoutUpdate:
        """The whole screen."""
        width, height = self.size
        self._changed = {y: [(0, width)] for y in range(height)}
        try:
            return super().render_full_update(simplify)
        finally:
            self._changed = None

    def render_partial_update(self) -> ChopsUpdate | None:
        """The spans that changed since the last one; ``None`` if there are none."""
        screen = self.size.region
        shown = [region.intersection(screen) for region in self._dirty_regions]
        changed: dict[int, list[Span]] = {}
        for y, left, right in self._regions_to_spans(shown):
            changed.setdefault(y, []).append((left, right))
        self._changed = changed
        try:
            return super().render_partial_update()
        finally:
            self._changed = None

    def _get_renders(self, crop: Region | None = None) -> Iterable[tuple[Region, Region, list[Strip]]]:
        return super()._get_renders(crop) if self._changed is None else self._foremost(self._changed)

    def _foremost(self, bare: dict[int, list[Span]]) -> Iterator[tuple[Region, Region, list[Strip]]]:
        """For each widget, front to back, the rows in which it covers cells of ``bare`` that nothing before it did."""
        for widget, (region, clip) in self.visible_widgets.items():
            if not bare:
                return
            seen = region.intersection(clip)
            rows = [y for y in seen.line_range if y in bare and _uncover(bare, y, seen.x, seen.right)]
            for top, bottom in _runs(rows):
                part = Region(seen.x, top, seen.width, bottom - top)
                yield region, part, widget.render_lines(part.translate((-region.x, -region.y)))


def _uncover(bare: dict[int, list[Span]], y: int, left: int, right: int) -> bool:
    """Take the cells of a row from ``left`` to ``right`` out of ``bare``; whether there were any."""
    spans = bare[y]
    rest = [(start, min(end, left)) for start, end in spans if start < left]
    rest += [(max(start, right), end) for start, end in spans if end > right]
    if sum(end - start for start, end in rest) == sum(end - start for start, end in spans):
        return False
    if rest:
        bare[y] = rest
    else:
        del bare[y]
    return True


def _runs(rows: list[int]) -> Iterator[Span]:
    """Rising numbers as stretches without a gap: the first, and one behind the last."""
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield rows[start], rows[at - 1] + 1
            start = at
