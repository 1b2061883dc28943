"""What the app is guarded against: a defect that would end it, and control characters in what it draws.

Textual ends an app with the first exception that leaves a handler. Here the handlers of every widget and screen,
timers and callbacks are guarded: a defect in one of them costs what that handler would have done and no more; it is
logged and shown.

No line leaves the app with a control character or a lone surrogate in it. All foreign text has been through
``records.sanitise`` long before, but some text, one day, may not have been.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from textual.message import Message
from textual.message_pump import MessagePump

from lens_tui.records.sanitise import sanitise_token
from lens_tui.worker.thread import explain

if TYPE_CHECKING:
    from .host import LensHost


_log = logging.getLogger(__name__)

MOST = 12
"""So many defects ``WITHIN`` seconds are one that comes again with every picture: the app ends."""
WITHIN = 10.0


class Defects:
    """Stands around the handlers of one app. Nothing is survived before :meth:`begin`.

    Once the app is asked to end it ends, and what fails on the way is for the log alone.
    """

    def __init__(self, app: LensHost) -> None:
        self._app = app
        self._begun = False
        self._shown: set[str] = set()
        self._when: deque[float] = deque(maxlen=MOST)

    def begin(self) -> None:
        """From now on the app continues after a defect: its loop runs and there is something to look at."""
        self._begun = True

    def watch(self, pump: MessagePump) -> None:
        """Stand around the handlers of a widget or screen that has not started yet."""
        dispatch = pump._dispatch_message  # every way into a handler goes through this, and nothing public does

        async def guarded(message: Message) -> None:
            await self.around(dispatch, message)

        pump._dispatch_message = guarded  # type: ignore[method-assign]

    async def around(self, dispatch: Callable[[Message], Awaitable[Any]], message: Message) -> None:
        """Have a message handled; what fails in it is dealt with here, or raised if the app cannot continue."""
        try:
            await dispatch(message)
        except Exception as error:
            if not self.survived(error):
                raise

    def survived(self, error: Exception) -> bool:
        """Log and show a defect, each once; false if the app cannot continue after it."""
        app = self._app
        if self._begun and app._exit:
            _log.error("a defect while the app ended", exc_info=error)
            return True
        if not self._begun or app._closing or app._closed:
            return False
        now = time.monotonic()
        if len(self._when) == MOST and now - self._when[0] < WITHIN:
            self._begun = False
            return False
        self._when.append(now)
        _log.error("a defect; the session goes on", exc_info=error)

        failure = explain(error)
        place = f"{type(error).__name__} {failure.detail.rpartition('File ')[2].partition(', in')[0]}"
        if place not in self._shown:
            self._shown.add(place)
            hint = "The session goes on without what this would have done."
            app.call_later(app.show_error, failure.message, hint, failure.detail)
        return True


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
