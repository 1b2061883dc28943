"""No line leaves the app with a control character or a lone surrogate in it.

All foreign text has been through ``records.sanitise`` long before, but some text, one day, may not have been.
"""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from lens_tui.records.sanitise import sanitise_token


class NoControls(LineFilter):
    """Replaces what a terminal would act on by something to see; clean lines pass untouched."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with their text made safe."""
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [_safe(segment) for segment in segments]


def _safe(segment: Segment) -> Segment:
    if segment.control or segment.text.isprintable():
        return segment
    return Segment(sanitise_token(segment.text), segment.style)
