"""The tour: five steps on the bundled model, done with the app's own keys, left and taken up at any time.

The step where one is stands in two rows over the status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from lens_tui.records import LensError
from lens_tui.records.read_files import read_text

from .host import IDLE, LensHost, host
from .session import Session

_log = logging.getLogger(__name__)

Keys = Callable[[str], str]
"""From a key's id to its cap."""


@dataclass(frozen=True, slots=True)
class TourStep:
    """One step: what it says, with ``{id}`` where the cap of a key goes, and whether a change did what it asks."""

    says: str
    done: Callable[[Session, Session], bool] = lambda old, new: False
    screen: str = ""

    def text(self, key: Keys) -> str:
        """What it says, with the keys as they are now."""
        words = self.says.split("{")
        parts = (part.split("}", 1) for part in words[1:])
        return words[0] + "".join(key(name) + rest for name, rest in parts)


def _ran(old: Session, new: Session) -> bool:
    return new.written != old.written and bool(new.written)


def _arm_came(old: Session, new: Session) -> bool:
    return len(new.steers) > len(old.steers)


def _scaled(old: Session, new: Session) -> bool:
    before = {row.id: row.scale for row in old.steers}
    return any(before.get(row.id, row.scale) != row.scale for row in new.steers)


STEPS = (
    TourStep(
        "{app.run} runs the prompt, plain and under two vectors, from one seed: only the steering differs.",
        _ran,
    ),
    TourStep(
        "{app.features} is Features: {move.left} and {move.right} go over the tokens, the list says what is in each.",
        screen="features",
    ),
    TourStep(
        "{move.down} and {move.up} choose a feature of the list, {features.steer} makes its direction an arm.",
        _arm_came,
    ),
    TourStep(
        "{app.steer} is the bench: {steer.scale_up} and {steer.scale_down} scale the row, {app.undo} takes it back.",
        _scaled,
    ),
    TourStep(
        "{app.run} runs again, now with your arm. {app.help} lists every key and says what every number is.",
        _ran,
    ),
)


class Tour:
    """Where one app is in the tour, and where it was left.

    Args:
        app: the app; its ``tour_step`` is what shows, -1 for nothing.
        file: keeps the step across starts; ``None`` keeps nothing and invites nobody.
    """

    def __init__(self, app: LensHost, file: Path | None) -> None:
        self._app, self._file = app, file
        self._next = 0
        self._leave: Callable[[], None] | None = None

    def invite(self) -> None:
        """At the first start of all, say in the status row how the tour begins."""
        if self._file is None or self._file.exists():
            return
        self._keep(0)
        text = f"New here? {self._app.key_text('app.tour')} begins a tour of five steps on the bundled model."
        if self._app.activity.state == IDLE:
            self._app.activity = replace(self._app.activity, note=text)
        else:
            self._app.remark(text)

    def toggle(self) -> None:
        """Begin or go on; while it shows, leave."""
        app = self._app
        if app.tour_step >= 0:
            self._close()
            app.say(f"{app.key_text('app.tour')} takes the tour up again at step {self._next + 1}.")
            return
        self._next = self._left_at() % len(STEPS)
        if app.store.session.model is None and not app.book.busy:
            app.opening.load("demo")
        app.go_to("generate")
        self._leave = app.store.subscribe(self._changed)
        app.tour_step = self._next

    def went(self, mode: str) -> None:
        """A screen was opened."""
        if self._app.tour_step >= 0 and STEPS[self._next].screen == mode:
            self._advance()

    def _changed(self, old: Session, new: Session) -> None:
        if self._app.tour_step >= 0 and STEPS[self._next].done(old, new):
            self._advance()

    def _advance(self) -> None:
        self._next += 1
        self._keep(self._next)
        if self._next < len(STEPS):
            self._app.tour_step = self._next
            return
        self._close()
        self._app.tell("That was the tour. With a model of your own: press a on Load, or start with --model.")

    def _close(self) -> None:
        self._app.tour_step = -1
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _left_at(self) -> int:
        if self._file is None:
            return self._next

        try:
            return max(0, int(read_text(self._file, 100)))
        except (LensError, ValueError):
            return 0

    def _keep(self, step: int) -> None:
        if self._file is not None:
            from lens_tui.records.disk import write_text

            try:
                write_text(self._file, str(step))
            except (LensError, OSError) as error:  # the tour goes on, it only begins anew at the next start
                _log.warning("the tour's step could not be kept: %s", error)


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
