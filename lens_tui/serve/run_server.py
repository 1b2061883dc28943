"""A server as one thing: its model opened on its own thread, its address, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line

from .engine_thread import Catalogue, Engine
from .http_app import Door, make_app
from .limits import ServeLimits

PORT = 8080


class _Uvicorn(uvicorn.Server):
    """Ends on a signal when what has begun is done, and leaves the exit status to who has called."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear SIGINT and SIGTERM while it runs, on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class LensServer:
    """OpenAI's interface over one model.

    Args:
        opened: Opens the model; called on the thread that will run it.
        host: Where to listen; an address that others reach needs a token.
        port: On that address; 0 for one that is free.
        token: What every request has to bring, if there is one.
        limits: What requests may ask for.
        drain: Seconds that requests have to end in when the server is told to.

    Raises:
        LensError: For an address that cannot be had, and what opening the model raises.
    """

    def __init__(
        self,
        opened: Callable[[], Catalogue],
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        token: str = "",
        limits: ServeLimits | None = None,
        drain: float = 30.0,
    ) -> None:
        limits = limits or ServeLimits()
        Door.of(host, port, token)  # refused before a model is loaded
        self._socket = _bound(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.engine = Engine(opened, limits)
        self._drain = drain
        try:
            self.engine.start()
        except BaseException:
            self._socket.close()
            raise
        app = make_app(self.engine, Door.of(host, self.port, token))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=max(1, round(drain)),
            server_header=False,
        )
        self._server = _Uvicorn(config)
        self.engine.on_end = self.stop
        self._socket.listen(limits.connections)  # who asks before the loop runs waits

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or :meth:`stop`; then finish what has begun.

        Raises :class:`LensError` where processes that share the model cannot go on together.
        """
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._socket.close()
            self.engine.close(self._drain)
        if self.engine.failure is not None:
            raise self.engine.failure

    def stop(self) -> None:
        """Let it end, from any thread."""
        self._server.should_exit = True


def follow(opened: Callable[[], Catalogue], limits: ServeLimits | None = None) -> None:
    """Take part in the server of rank 0, in another of the processes that share its model, until it ends.

    SIGINT and SIGTERM end the server, as they do there. Raises :class:`LensError` where they cannot go on together,
    and what opening the model raises.
    """
    engine = Engine(opened, limits or ServeLimits())
    engine.start()

    def heard(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # who insists is heard
        engine.ask_to_end()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        engine.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise LensError(
            f"Port {port} of {one_line(host, 60)} cannot be had ({reason}).", "Choose another with --port."
        ) from error
    return found
