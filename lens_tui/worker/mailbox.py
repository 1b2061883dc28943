"""Events from the MLX thread to the screen: a queue that rings once when it stops being empty."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from .base_events import Event

_log = logging.getLogger(__name__)


class Mailbox:
    """A thread-safe queue of events with an edge-triggered bell.

    ``wake`` is called by the first ``put`` after a ``drain`` and by no other, so
    a reader that drains on each call misses nothing and is never woken in vain.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._rung = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None

    def connect(self, wake: Callable[[], None]) -> None:
        """Set the bell, and ring it if events already wait."""
        with self._lock:
            self._wake = wake
            self._rung = bool(self._events)
            ring = self._rung
        if ring:
            self._ring(wake)

    def put(self, event: Event) -> None:
        """Add an event; rings if the reader has drained since the last ring."""
        with self._lock:
            self._events.append(event)
            if self._rung:
                return
            self._rung = True
            wake = self._wake
        self._ring(wake)

    def drain(self) -> list[Event]:
        """Take everything, oldest first."""
        with self._lock:
            self._rung = False
            events = list(self._events)
            self._events.clear()
        return events

    @staticmethod
    def _ring(wake: Callable[[], None]) -> None:
        try:
            wake()
        except Exception:  # an app that is already gone must not end the thread
            _log.debug("the reader could not be woken", exc_info=True)
