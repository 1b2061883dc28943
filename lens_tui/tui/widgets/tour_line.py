"""The step of the tour, two rows over the status."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from lens_tui.tui.host import host
from lens_tui.tui.tour import STEPS

MOST_ROWS = 3


class TourLine(Widget):
    """What to do now in the tour; takes no room while there is none."""

    DEFAULT_CSS = """
    TourLine {
        height: auto; max-height: 3; padding: 0 1; display: none;
        background: $surface; border-left: wide $accent;
    }
    TourLine.-on { display: block; }
    """

    def on_mount(self) -> None:
        """Follow the tour."""
        self.watch(self.app, "tour_step", self._step, init=True)

    def _step(self, step: int) -> None:
        self.set_class(step >= 0, "-on")
        self.refresh(layout=True)
        if step < 0:
            self._tell(0)

    def on_resize(self) -> None:
        """Remarks come to stand over it."""
        self._tell(self.outer_size.height)

    def _tell(self, height: int) -> None:
        for rows in range(1, MOST_ROWS + 1):
            self.screen.set_class(rows == height, f"-tour-{rows}")

    def render(self) -> RenderResult:
        """Number, what to do, and how to leave."""
        app = host(self)
        if app.tour_step < 0:
            return Content("")
        said = STEPS[app.tour_step].text(app.key_text)
        head = f"{app.tour_step + 1}/{len(STEPS)}  "
        return Content.assemble((head, "bold $accent"), said, (f"  {app.key_text('app.tour')} leaves", "$muted"))
