"""The terminal driver: leaves at once, survives what terminals send, and gives the terminal back whole.

Textual's driver joins its input thread when an app ends, and that thread looks
up only every tenth of a second, twice: 0.1 to 0.2 s after the last key for
nothing. It ends the app when a terminal sends bytes that are no UTF-8, spins
when the terminal is gone, and starts twice when a stopped process continues.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import signal
import sys
import termios
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Paste

if TYPE_CHECKING:
    from textual.app import App
    from textual.driver import Driver

_log = logging.getLogger(__name__)

HANGUP = 128 + signal.SIGHUP
"""The exit status of an app whose terminal is gone."""
RESTORE = (
    "\x1b[?2031l\x1b[?2004l\x1b[?7h\x1b[?2048l\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1016l\x1b[<u\x1b[?1049l"
    "\x1b[?25h\x1b[?1004l"
)
"""Everything the driver may have switched on, switched off: pastes, wrapping, resizes, mouse, keys, screen, focus."""
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASTE, _PASTED = b"\x1b[200~", b"\x1b[201~"
_CUT_PASTE = re.compile(rb"\x1b\[20{0,2}\Z")
_X10_MOUSE = re.compile(rb"\x1b\[M(?:.{3}|.{0,2}\Z)", re.DOTALL)
_BACKGROUND = re.compile(
    rb"(?:\x1b?\])?11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})(?:/[0-9a-fA-F]{1,4})?(?:\x07|\x1b\\)"
)
_SCHEME = re.compile(rb"\x1b\[\?997;([12])n")
_STRING = rb"\x1b(?:\][0-9]{1,4};|P[0-9;>!$+|=?]|_G)[^\x00-\x1f]{0,65536}"
_ANSWER = re.compile(_STRING + rb"(?:\x07|\x1b\\)|\x1b\[(?:[?>=][0-9;:]*[cnuS]|[0-9]n|(?!48;)[0-9]+(?:;[0-9]+)+t)")
"""What terminals answer to questions of any program; ``48;...t`` is a resize, which Textual knows."""
_CUT_ANSWER = re.compile(rb"(?:" + _STRING + rb"\x1b?|\x1b\][0-9]{0,4}|\x1b[P_]|\x1b\[[?>=][0-9;:]*\$?)\Z")
_BEGUN = re.compile(rb"\x1b(?:\](?:[0-9]{2,4};?|[0-9];)[rgba:0-9a-fA-F/]*|P[0-9;>!$+|=?]|_G|\[[?>=][0-9;:]*\$?)\x1b?")
"""How no key begins, but an answer does."""
ASK_BACKGROUND = "\x1b]11;?\x1b\\\x1b[?2031h"
"""What is the background, and tell when the terminal turns dark or light."""
ANSWER_PATIENCE = 3.0
"""Seconds in which an answer of the terminal is acted on; a later one is not taken for keys either."""
PIECES_PATIENCE = 2.0
"""Seconds in which an answer or a paste that came in part, over a slow line, has to go on."""
_TYPED_AT_ONCE = 32  # bytes; more in one read after a paste without an end is the rest of it
_EMPTY_READS = 20  # of a terminal that answers but has nothing to say, a tenth of a second apart


class Guard:
    """A child that gives the terminal back if this process dies without a word: a crash in native code, ``kill -9``.

    It is forked before there are threads, holds the terminal and waits for the end of a pipe. The driver tells it
    whether the terminal is the app's.
    """

    def __init__(self) -> None:
        self._pipe: int | None = None

    def __enter__(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError, termios.error):
            fileno = sys.__stdin__.fileno()  # type: ignore[union-attr]
            before = termios.tcgetattr(fileno)
            reading, writing = os.pipe()
            try:
                child = os.fork()
            except OSError:
                os.close(reading)
                os.close(writing)
                return
            if child == 0:
                os.close(writing)
                _guard(reading, fileno, before)
            os.close(reading)
            self._pipe = writing

    def __exit__(self, *_error: object) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def tell(self, taken: bool) -> None:
        """Whether the terminal is the app's from now on."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe, b"1" if taken else b"0")


guard = Guard()


def _guard(reading: int, fileno: int, before: list[Any]) -> NoReturn:
    """The child's whole life."""
    try:
        for number in (*_ENDINGS, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        taken = b"0"
        while news := os.read(reading, 64):
            taken = news[-1:]
        if taken == b"1":
            os.write(fileno, RESTORE.encode())
            if os.tcgetpgrp(fileno) == os.getpgrp():  # else a shell has it, with modes of its own
                termios.tcsetattr(fileno, termios.TCSANOW, before)
    finally:
        os._exit(0)


class TerminalText:
    """What a terminal sends as text: bytes that are no UTF-8 are dropped, and so are mouse reports of 1985.

    What it says of its background is no text: ``dark`` gets whether that is dark, and whether it was an answer. Nor
    is any other answer, which another program may have asked for; one in pieces is waited for as ``clock`` tells.
    Those (``ESC [ M`` and three bytes, X10) come from terminals that know no newer form; past column 95 their bytes
    are not text. What is pasted keeps all but bytes that are not UTF-8, and comes as one piece: Textual's parser would
    take the escape sequences in it for keys, and let them do what the keys do.
    """

    def __init__(
        self,
        dark: Callable[[bool, bool], object] = lambda dark, asked: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._until = clock, float("inf")
        self._decode = getincrementaldecoder("utf-8")("ignore").decode
        self._held = b""
        self._pasted: bytearray | None = None
        self._fed, self._without_end = 0.0, False
        self._dark = dark

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        """The texts that the next bytes bring, each with whether it was pasted; the unfinished waits for its end."""
        found: list[tuple[str, bool]] = []
        self._fed = self._clock()
        if self._without_end:  # the rest of a paste that came in part, or somebody went on typing
            self._without_end = False
            self._pasted = bytearray() if _PASTED in data or len(data) > _TYPED_AT_ONCE else None
        data, self._held = self._held + data, b""
        while data or self._pasted is not None:
            if self._pasted is None:
                typed, start, data = data.partition(_PASTE)
                self._pasted = bytearray() if start else None
                found.append((self._typed(typed, cut=not start), False))
                continue
            seen = max(0, len(self._pasted) - len(_PASTED))
            self._pasted += data
            end = self._pasted.find(_PASTED, seen)
            if end < 0:
                break
            data = bytes(self._pasted[end + len(_PASTED) :])
            found.append((self._pasted[:end].decode("utf-8", "ignore"), True))
            self._pasted = None
        return [(text, pasted) for text, pasted in found if text]

    def cut_paste(self) -> str:
        """What was pasted if its end does not come, else nothing: keys typed after it are keys again."""
        if self._pasted is None or self._clock() - self._fed < PIECES_PATIENCE:
            return ""
        pasted, self._pasted, self._without_end = self._pasted.decode("utf-8", "ignore"), None, True
        return pasted

    def _typed(self, data: bytes, *, cut: bool) -> str:
        if b"\x1b" in data or b"11;rgb" in data:
            data = _BACKGROUND.sub(self._answered, data.replace(_PASTED, b""))
            data = _ANSWER.sub(b"", _SCHEME.sub(self._turned, data))
        data = _X10_MOUSE.sub(self._dropped, data)
        if cut and (part := _CUT_PASTE.search(data) or _CUT_ANSWER.search(data)):
            data, self._held = data[: part.start()], part[0]
            return self._decode(data) + ("" if self._awaited() else self.rest())
        self._until = float("inf")
        return self._decode(data)

    def _awaited(self) -> bool:
        """Whether what is held may still come to its end: the clock runs from its first piece on."""
        self._until = min(self._until, self._clock() + PIECES_PATIENCE)
        return self._clock() < self._until

    def rest(self) -> str:
        """What was held for an end that did not come: it was typed. The beginning of an answer is waited for."""
        if _BEGUN.match(self._held) and self._awaited():
            return ""
        held, self._held, self._until = _BEGUN.sub(b"", self._held), b"", float("inf")
        return self._decode(held)

    def _answered(self, answer: re.Match[bytes]) -> bytes:
        red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in answer.groups())
        self._dark(0.299 * red + 0.587 * green + 0.114 * blue < 0.5, True)
        return b""

    def _turned(self, report: re.Match[bytes]) -> bytes:
        self._dark(report[1] == b"1", False)
        return b""

    def _dropped(self, report: re.Match[bytes]) -> bytes:
        if len(report[0]) < 6:
            self._held = report[0]
        return b""


class _Lasting:
    """A terminal to write to that may go away: what cannot be written is lost, and no thread dies of it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.fileno = file.fileno

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()


class LeavingDriver(LinuxDriver):
    """See the module. ``suspend`` is what ctrl+z does; ``restore_now`` is for a process that ends this moment."""

    def __init__(
        self, app: App[object], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._no_shell = signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._out = _Lasting(cast("TextIO", sys.__stderr__))
        self._file = cast("Any", self._out)
        self._stopping = self._went_on = False
        self._asked = float("-inf")

    # ---- leaving

    def start_application_mode(self) -> None:
        """Take the terminal."""
        guard.tell(True)
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self.input_tty:
            self._asked = time.monotonic()
            self.write(ASK_BACKGROUND)
            self.flush()

    def stop_application_mode(self) -> None:
        """Give the terminal back."""
        self.write("\x1b[?2031l")
        super().stop_application_mode()

    def _background(self, dark: bool, asked: bool) -> None:
        """The terminal said whether it is dark; called on the input thread."""
        listener = getattr(self._app, "terminal_is", None)
        if listener is not None and not (asked and time.monotonic() - self._asked > ANSWER_PATIENCE):
            self._loop.call_soon_threadsafe(listener, dark)

    def close(self) -> None:
        """Write what is left to be written."""
        super().close()
        guard.tell(False)

    def disable_input(self) -> None:
        """Stop reading keys. Waits for the input thread only if the app continues."""
        thread = self._key_thread
        if not self._app._exit or thread is None:
            super().disable_input()
            return
        self._key_thread = None
        super().disable_input()
        # The base class clears the event after its join; without one the thread has not seen it yet.
        self.exit_event.set()

    def _disable_mouse_support(self) -> None:
        super()._disable_mouse_support()
        if self._mouse_pixels:
            self.write("\x1b[?1016l")

    def restore_now(self) -> None:
        """Give the terminal back without the threads and the loop; never waits for a terminal that is full."""
        if self._writer_thread is None:
            return
        with contextlib.suppress(OSError, ValueError, termios.error):
            if self.attrs_before is not None:
                termios.tcsetattr(self.fileno, termios.TCSANOW, self.attrs_before)
                termios.tcflush(self.fileno, termios.TCIFLUSH)
            out = self._out.fileno()
            os.set_blocking(out, False)
            os.write(out, RESTORE.encode())
            os.set_blocking(out, True)
            guard.tell(False)

    # ---- suspending

    def _sigtstp_application(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.suspend)

    def _sigcont_application(self, *_: object) -> None:
        # Our own stop continues by itself; after any other the shell may have changed the terminal.
        self._went_on = True
        if not self._stopping:
            self._loop.call_soon_threadsafe(self._again)

    def suspend(self) -> bool:
        """Give the terminal back, stop the job and come back; false if there is no shell to go back to."""
        if self._no_shell or self._writer_thread is None:
            return False
        self._app.app_suspend_signal.publish(self._app)
        self.suspend_application_mode()
        stopped = self._stop()
        while stopped and not self._in_front():
            stopped = self._stop()
        self.resume_application_mode()
        self._app.app_resume_signal.publish(self._app)
        self._redraw()
        return stopped

    def _stop(self) -> bool:
        """Stop here as the terminal's ctrl+z would; false if the kernel sees nobody who could start us again."""
        self._stopping, self._went_on = True, False
        # The others of the job first (a launcher waits for us in it), without stopping before our turn.
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)  # returns when the job continues
        signal.signal(signal.SIGTSTP, self._sigtstp_application)
        for _ in range(20):  # another thread may have got the news first
            if self._went_on:
                break
            time.sleep(0.005)
        self._stopping = False
        return self._went_on

    def _again(self) -> None:
        """Someone else's stop is over: set the terminal up again."""
        if self._writer_thread is None or self._app._exit or not self._in_front():
            return
        self.suspend_application_mode()
        self.resume_application_mode()
        self._redraw()

    def _redraw(self) -> None:
        self._app.refresh(layout=True)
        self._app.screen.refresh(layout=True)

    def _in_front(self) -> bool:
        try:
            return os.tcgetpgrp(self.fileno) == os.getpgrp()
        except OSError:
            return True  # not our terminal to ask: go on

    # ---- reading

    def run_input_thread(self) -> None:
        """Read keys until told to stop, whatever comes; a terminal that is gone ends the app."""
        text, parser, empty = TerminalText(self._background), XTermParser(self._debug), 0
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if not selector.select(0.1):
                    parser = self._heard(parser, text.rest())
                    self._take_paste(text.cut_paste())
                    continue
                data = self._read()
                if data is None or empty >= _EMPTY_READS:
                    self._loop.call_soon_threadsafe(partial(self._app.exit, return_code=HANGUP))
                    return
                if not data:
                    empty += 1
                    time.sleep(0.1)
                    continue
                empty = 0
                for piece, pasted in text.feed(data):
                    if pasted:
                        self._take_paste(piece)
                    else:
                        parser = self._heard(parser, piece)

    def _take_paste(self, text: str) -> None:
        if text:
            self.process_message(Paste(text.replace("\0", "")))

    def _read(self) -> bytes | None:
        """The next bytes; empty if there were none after all, ``None`` if the terminal is gone."""
        try:
            data = os.read(self.fileno, 4096)
            if not data:
                termios.tcgetattr(self.fileno)
        except (BlockingIOError, InterruptedError):
            return b""
        except (OSError, termios.error):
            return None
        return data

    def _heard(self, parser: XTermParser, text: str) -> XTermParser:
        """Hand on what ``text`` says; returns the parser to continue with."""
        try:
            for event in parser.feed(text) if text else ():
                self.process_message(event)
            for event in parser.tick():
                self.process_message(event)
        except Exception:
            if self._loop.is_closed():
                self.exit_event.set()
                return parser
            _log.warning("what the terminal sent was not understood: %r", text[:200], exc_info=True)
            return _as_new(parser)
        return parser


def leaving_driver(base: type[Driver]) -> type[Driver]:
    """Textual's driver for Linux and macOS made to leave at once; any other as it is."""
    return LeavingDriver if base is LinuxDriver else base


def _as_new(parser: XTermParser) -> XTermParser:
    """A parser at its beginning that knows what the old one knew of the terminal."""
    fresh = type(parser)()
    fresh.mouse_pixels, fresh.terminal_size = parser.mouse_pixels, parser.terminal_size
    fresh.terminal_pixel_size = parser.terminal_pixel_size
    return fresh
