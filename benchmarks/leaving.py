"""How long the app takes to leave: ctrl+q in the middle of a comparison on the bundled model, in a pseudo-terminal.

From the key press to the end of the process; the peer is a Textual app with one Static that is told to quit alike.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence

from .machine import Options
from .report import Row, of_times
from .turns import medians

EMPTY = (
    "from textual.app import App\nfrom textual.widgets import Static\n"
    "class A(App):\n    def compose(self):\n        yield Static('tok/s')\nA().run()"
)
OURS = "from lens_tui.cli import main; main()"


class Terminal:
    """A program in a pseudo-terminal of 120 by 36."""

    def __init__(self, command: Sequence[str], home: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(LENS_TUI_HOME=home, TERM="xterm-256color", COLORTERM="truecolor")
            os.execv(sys.executable, [sys.executable, *command])
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))

    def wait_for(self, text: bytes, seconds: float) -> None:
        """Read until ``text`` was written; raises ``TimeoutError``."""
        seen, end = b"", time.monotonic() + seconds
        while text not in seen:
            if time.monotonic() > end:
                raise TimeoutError(text)
            if select.select([self.master], [], [], 0.1)[0]:
                seen = seen[-4000:] + os.read(self.master, 65536)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def ended(self) -> int:
        """Read until the process ends; its exit status, negative for a signal."""
        while True:
            try:
                if select.select([self.master], [], [], 0.005)[0] and not os.read(self.master, 65536):
                    pass
            except OSError:
                break
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def leave(command: Sequence[str], home: str, *, busy: bool) -> float:
    """Seconds from ctrl+q to the end. Raises ``RuntimeError`` if that was no orderly one."""
    terminal = Terminal(command, home)
    if busy:
        terminal.press(b"r")
        terminal.wait_for(b"tok/s", 120)
        time.sleep(0.3)
    else:
        terminal.wait_for(b"tok/s", 60)
        time.sleep(0.3)
    start = time.perf_counter()
    terminal.press(b"\x11")
    status = terminal.ended()
    found = time.perf_counter() - start
    os.close(terminal.master)
    if status:
        raise RuntimeError(f"the app ended with status {status}")
    return found


def rows(options: Options) -> Iterator[Row]:
    """Leaving in mid-generation, and leaving an empty app."""
    with tempfile.TemporaryDirectory() as home:
        found = medians(
            {
                "empty": lambda: leave(["-c", EMPTY], home, busy=False),
                "ours": lambda: leave(["-c", OURS, "--demo"], home, busy=True),
            },
            options.repeats(6),
        )
    yield of_times("ctrl+q in mid-generation to the end", found["ours"], found["empty"], "an empty Textual app")
