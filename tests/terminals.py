"""The real app on a pseudo-terminal: what it writes, what it leaves the terminal as, how it ends.

Every wait is for something to be seen or to end, with a patience that no machine
needs; nothing depends on which signals the shell that runs the tests ignores.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

from tests.folders import lens_home

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
_HELD = 1024  # bytes that are written at once: a terminal's input holds 4096
_MODES = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")
SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT, signal.SIGCHLD),
)
AS_IT_WAS = {b"7": b"h", b"25": b"h"}
"""The modes that a terminal has on by itself; all others are off."""


def app_code(body: str = "pass", before: str = "", run: str = "run()") -> str:
    """Python that opens the real app, runs ``body`` at the end of ``on_ready`` and exits with its status."""
    return f"""
import os, signal, sys, threading, time
from lens_tui.tui import start as runner
from lens_tui.tui.app import LensApp
{before}
ready = LensApp.on_ready
def on_ready(self):
    ready(self)
    {body}
LensApp.on_ready = on_ready
from lens_tui.tui.start import run
from lens_tui.worker.thread import end_process
end_process({run})
"""


class Terminal:
    """A process on a pseudo-terminal of its own, the leader of its session."""

    def __init__(
        self, argv: Sequence[str], home: Path, ignored: Sequence[int] = (), size: tuple[int, int] = (100, 30)
    ) -> None:
        env = {**os.environ, "LENS_TUI_HOME": str(lens_home(home)), "HF_HUB_CACHE": str(home / "hub")}
        env |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PS1": "$ ", "HISTFILE": ""}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        self.written = b""
        self.status: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
                os.chdir(ROOT)
                os.execvpe(argv[0], list(argv), env)
            finally:
                os._exit(127)
        self.resize(size)
        self.before = self.attributes()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.status is None:
            for number in (signal.SIGCONT, signal.SIGKILL):
                os.kill(self.pid, number)
            os.waitpid(self.pid, 0)
        self.hang_up()

    def attributes(self) -> list[Any]:
        """What ``stty`` says of the terminal."""
        return termios.tcgetattr(self.fd)

    def resize(self, size: tuple[int, int]) -> None:
        """Columns and rows from now on; the kernel tells the process."""
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def hang_up(self) -> None:
        """Close the terminal's own end."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def send(self, data: bytes) -> None:
        """Type, all in one write; what is more than a terminal holds, as fast as it is taken."""
        data = data[os.write(self.fd, data[:_HELD]) :]
        os.set_blocking(self.fd, False)
        deadline = time.monotonic() + PATIENCE
        while data:
            assert time.monotonic() < deadline, f"{len(data)} bytes are not taken"
            readable, writable, _ = select.select([self.fd], [self.fd], [], 0.05)
            if readable:
                self._read()
            if writable:
                data = data[os.write(self.fd, data[:_HELD]) :]
        os.set_blocking(self.fd, True)

    def wait(self, until: Callable[[], object], what: str) -> None:
        """Read on until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > deadline or (self.status is not None and self.fd >= 0 and not self._readable(0.0)):
                raise AssertionError(f"waited for {what}; status {self.status}, last was {self.written[-2000:]!r}")
            self._pump()

    def wait_for(self, text: str, since: int = 0) -> None:
        """Read on until ``text`` was written after ``since`` bytes."""
        self.wait(lambda: text.encode() in self.written[since:], repr(text))

    def end(self) -> int:
        """Read on until the process has ended; returns its exit status (negative: ended by a signal)."""
        self.wait(lambda: self.status is not None, "the end")
        while self.fd >= 0 and self._readable(0.0) and self._read():
            pass
        assert self.status is not None
        return self.status

    def modes(self) -> dict[bytes, bytes]:
        """The private modes that are not as a terminal has them by itself."""
        last = {mode: how for modes, how in _MODES.findall(self.written) for mode in modes.split(b";")}
        return {mode: how for mode, how in last.items() if how != AS_IT_WAS.get(mode, b"l")}

    def _pump(self) -> None:
        if self.fd < 0 or not self._readable(0.05) or not self._read():
            time.sleep(0.02)
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.status = os.waitstatus_to_exitcode(status)

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self.fd], [], [], seconds)[0])

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.written += data
        return bool(data)


def opened(home: Path, body: str = "pass", before: str = "", run: str = "run()", **options: Any) -> Terminal:
    """The app on a terminal; ``body``, ``before`` and ``run`` as in :func:`app_code`. Not ready yet."""
    return Terminal([sys.executable, "-c", app_code(body, before, run)], home, **options)
