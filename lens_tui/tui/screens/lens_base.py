"""What every screen is made of: the frame, a body between two hairlines, and the session.

A screen is one file here with a ``.tcss`` of the same name beside it. It
subclasses :class:`LensScreen`, sets ``mode``, yields its panes from ``body``
and, where it cares, overrides ``session_changed``. A pane with a state of its own
is a widget that keeps it; the screen takes messages from one pane to another. It asks for work with
``self.lens.submit(job, slot, handler)``; the handler gets that job's events
until the job ends or another job takes its slot.
"""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from lens_tui.tui.host import LensHost, host
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.frame import Footer, Hairline, Header, Status, takes_text

MIN_WIDTH, MIN_HEIGHT = 60, 16


class LensScreen(Screen[None], inherit_bindings=False):
    """The base of every screen that has a mode.

    CSS classes follow the size of the terminal: ``-narrow`` below 100 columns,
    ``-wide`` from there; ``-flat`` below 22 rows, ``-short`` below 30, ``-tall`` from there. Below
    60 x 16 one line says what is needed and nothing else shows.
    """

    mode: ClassVar[str] = ""
    AUTO_FOCUS: ClassVar[str | None] = None
    HORIZONTAL_BREAKPOINTS = [
        (0, "-tiny-w"),
        (MIN_WIDTH, "-narrow"),
        (100, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-h"), (MIN_HEIGHT, "-flat"), (22, "-short"), (30, "-tall")]
    ALLOW_IN_MAXIMIZED_VIEW = "Header, Status, Footer, Hairline, TooSmall"
    DEFAULT_CSS = """
    LensScreen {
        background: $background; color: $foreground; layers: base;
        & > #body { height: 1fr; }
        & > TooSmall { display: none; }
        &.-tiny-w > *, &.-tiny-h > * { display: none; }
        &.-tiny-w > TooSmall, &.-tiny-h > TooSmall { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        # Styles are applied as the screen is mounted. A count left behind has Textual parse every sheet of the app
        # again when the screen first shows: about a quarter of the time that takes.
        self._css_update_count = self.app._css_update_count
        # The size's classes. Textual sets them after the first layout: each screen would flash in that of another size.
        ranges = (self.HORIZONTAL_BREAKPOINTS, self.VERTICAL_BREAKPOINTS)
        for length, breakpoints in zip(self.app.size, ranges, strict=True):
            self.add_class(*self._get_breakpoint_classes(length, breakpoints or []), update=False)

    @property
    def lens(self) -> LensHost:
        """The app, typed."""
        return host(self)

    @property
    def session(self) -> Session:
        """The session as it is now."""
        return self.lens.store.session

    def compose(self) -> ComposeResult:
        """Frame and body."""
        yield Header(self.mode)
        yield Hairline()
        with Container(id="body"):
            yield from self.body()
        yield Hairline()
        yield Status()
        yield Footer()
        yield TooSmall()

    def body(self) -> ComposeResult:
        """The panes of the screen."""
        yield from ()

    def on_mount(self) -> None:
        """Follow the session and focus the first pane."""
        self.lens.store.subscribe(self._session_changed)
        self.session_changed(Session(), self.session)
        if self.focused is None:
            self.focus_first()

    def focus_first(self) -> None:
        """Focus what the screen begins with: the first widget that can take it."""
        if self.focus_chain:
            self.set_focus(self.focus_chain[0])

    def _session_changed(self, old: Session, new: Session) -> None:
        if self.is_mounted:
            self.session_changed(old, new)

    def session_changed(self, old: Session, new: Session) -> None:
        """The session changed, whichever screen shows. Compare the fields you care about."""

    def on_key(self, event: events.Key) -> None:
        """Escape leaves text, then gives the focus back to the first pane."""
        if event.key != "escape":
            return
        event.stop()
        if self.maximized is not None:
            self.minimize()
        elif takes_text(self.focused):
            self.leave_text()
        else:
            self.focus_first()

    def leave_text(self) -> None:
        """Escape was pressed in a text field."""
        self.focus_first()


class TooSmall(Static):
    """One polite line for a terminal that is too small."""

    def on_resize(self, event: events.Resize) -> None:
        """Say the size that is needed and the one that is."""
        size = self.app.size
        self.update(Content(f"mlx-lens-tui needs {MIN_WIDTH}×{MIN_HEIGHT}; this is {size.width}×{size.height}."))
