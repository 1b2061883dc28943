"""A terminal driver that does not wait to leave.

Textual's driver joins its input thread when an app ends, and that thread looks
up only every tenth of a second, twice: 0.1 to 0.2 s after the last key for
nothing. When the app is ending for good, the thread is told to stop and left to
do so by itself.
"""

from __future__ import annotations

from functools import cache

from textual.driver import Driver


@cache
def leaving_driver(base: type[Driver]) -> type[Driver]:
    """``base``, made to leave at once if it is Textual's driver for Linux and macOS; any other as it is."""
    if base.__module__ != "textual.drivers.linux_driver":
        return base
    from textual.drivers.linux_driver import LinuxDriver

    class LeavingDriver(LinuxDriver):
        """Waits for the input thread only where the app goes on (a suspended one needs the terminal back)."""

        def disable_input(self) -> None:
            """Stop reading keys."""
            thread = self._key_thread
            if not self._app._exit or thread is None:
                super().disable_input()
                return
            self._key_thread = None
            super().disable_input()
            # The base class clears the event after its join; without one the thread has not seen it yet.
            self.exit_event.set()

    return LeavingDriver
