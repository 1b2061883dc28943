"""The hairline between two panes: upright when they stand side by side, flat when they are stacked."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget


class Divider(Widget):
    """One cell wide or one cell high, whichever its size says."""

    DEFAULT_CSS = "Divider { width: 1; height: 1fr; color: $hairline; }"

    def render(self) -> RenderResult:
        """A thin line in the longer direction."""
        if self.size.width > 1:
            return Content("─" * self.size.width)
        return Content("\n".join("│" * self.size.height))
