"""The server as one thing: its model opened on its own thread, its address, its end; and its HTTP side.

HTTP is who may ask, how large a request may be, and answers as they come.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lens_tui.records import LensError
from lens_tui.records.read_files import parse_json
from lens_tui.records.sanitise import one_line

from .engine_thread import Begun, Catalogue, Delivery, Engine, Failed, Ticket
from .limits import Refused, ServeLimits, error_body, status_of
from .wire_answer import DONE, Reply, as_json, failure
from .wire_request import Kind, Order, read_order

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_JSON = "application/json"
_READ = 4
"""How much of a body that is too large is read, as a multiple of what is allowed."""


@dataclass(frozen=True, slots=True)
class Door:
    """Who may ask: on loopback whoever names this machine and comes from no foreign page; elsewhere who has the token.

    ``hosts`` are what a request's ``Host`` may be (none: any, for the token protects); ``token`` may be empty on
    loopback alone.
    """

    hosts: frozenset[str] = frozenset()
    token: str = ""

    @classmethod
    def of(cls, host: str, port: int, token: str) -> Door:
        """The door of an address. Raises :class:`LensError` for one that others reach, without a token."""
        if host in LOOPBACK:
            names = {"127.0.0.1", "localhost", "[::1]"}
            bare = names if port == 80 else set()
            return cls(frozenset(f"{name}:{port}" for name in names) | bare, token)
        if not token:
            raise LensError(
                f"Others can reach {one_line(host, 60)}, so the server needs a token.",
                "Give --token, or set LENS_TUI_TOKEN, or leave --host out.",
            )
        return cls(token=token)

    def refusal(self, headers: dict[bytes, bytes]) -> Refused | None:
        """Why a request with these headers is not heard; ``None`` if it is."""
        host, origin = headers.get(b"host", b"").decode("latin-1").lower(), headers.get(b"origin")
        if self.hosts and host not in self.hosts:
            return Refused("The request names another host than this one.", status=403, kind="permission_error")
        if origin is not None and origin.decode("latin-1").lower() not in {f"http://{name}" for name in self.hosts}:
            return Refused("The request comes from another page.", status=403, kind="permission_error")
        if self.token:
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self.token.encode()):
                hint = "Send it as Authorization: Bearer TOKEN (the OpenAI client's api_key)."
                return Refused("The token is missing or wrong.", hint, status=401, kind="authentication_error")
        return None


class Guarded:
    """An application behind a door."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] == "http" and (refused := self._door.refusal(dict(scope["headers"]))) is not None:
            await _refuse(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def make_app(engine: Engine, door: Door) -> ASGIApp:
    """The application over an engine that has been started."""
    face = _Face(engine)
    routes = [
        Route("/v1/models", face.models),
        Route("/v1/models/{name:path}", face.model),
        Route("/v1/completions", face.completions, methods=["POST"]),
        Route("/v1/chat/completions", face.chat, methods=["POST"]),
        Route("/health", face.health),
    ]
    app = Starlette(routes=routes, exception_handlers={404: _absent, 405: _absent, 500: _defect})
    return Guarded(app, door)


class _Face:
    """The endpoints."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._created = int(time.time())

    async def models(self, _: Request) -> Response:
        return Response(as_json({"object": "list", "data": [self._facts()]}), media_type=_JSON)

    def _facts(self) -> dict[str, Any]:
        """The one model, with what it and the server have."""
        here, info = self._engine.catalogue, self._engine.info
        vectors = [{"name": name, "layer": vector.layer, "site": vector.site} for name, vector in here.vectors.items()]
        saes = [
            {"name": name, "layer": sae.info.layer, "site": sae.info.site, "features": sae.d_sae}
            for name, sae in here.saes.items()
        ]
        facts = {"n_layers": info.n_layers, "d_model": info.d_model, "chat": info.takes_chat}
        lens = {**facts, "vectors": vectors, "saes": saes}
        one = {"id": here.name, "object": "model", "created": self._created, "owned_by": "mlx-lens-tui"}
        return {**one, "lens": lens}

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._engine.catalogue.name:
            said = f"There is no model {one_line(name, 60)!r}."
            return _refuse(Refused(said, f"This is {self._engine.catalogue.name}.", status=404, param="model"))
        return Response(as_json(self._facts()), media_type=_JSON)

    async def health(self, _: Request) -> Response:
        return Response(as_json({"status": "ok", "rows": self._engine.held}), media_type=_JSON)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, "text")

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, "chat")

    async def _answer(self, request: Request, kind: Kind) -> Response:
        limits = self._engine.limits
        try:
            data = await _body(request, limits)
            order = await asyncio.to_thread(self._read, data, kind)
            task = _Asked(self._engine, order)
            begun = await _unless_gone(request, task, task.begin())
            if begun is None:
                return Response(status_code=499)
            if order.stream:
                headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
                return StreamingResponse(task.stream(), media_type="text/event-stream", headers=headers)
            whole = await _unless_gone(request, task, task.whole())
            return Response(status_code=499) if whole is None else Response(whole, media_type=_JSON)
        except LensError as error:
            return _refuse(error)
        except ClientDisconnect:
            return Response(status_code=499)

    def _read(self, data: bytes, kind: Kind) -> Order:
        here = self._engine.catalogue
        body = parse_json(data, "The body", "Send one JSON object.")
        model = body.get("model") if isinstance(body, dict) else None
        if model not in (None, "", "default", here.name):
            said = one_line(str(model), 60)
            raise Refused(f"There is no model {said!r}.", f"This is {here.name}.", status=404, param="model")
        return read_order(body, kind, here.vectors, self._engine.limits)


class _Asked:
    """An order that has been given, and what comes of it, on the loop's side."""

    def __init__(self, engine: Engine, order: Order) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[Delivery] = asyncio.Queue()
        self._reply = Reply(order, engine.catalogue.name)
        self._ticket: Ticket = engine.submit(order, self._deliver)

    def _deliver(self, events: list[Delivery]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._put, events)

    def _put(self, events: list[Delivery]) -> None:
        for event in events:
            self._came.put_nowait(event)

    def give_up(self) -> None:
        self._engine.cancel(self._ticket)

    async def begin(self) -> bool:
        """Wait until the order is found right. Raises what is wrong with it."""
        event = await self._came.get()
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Begun)
        self._reply.take(event)
        return True

    async def whole(self) -> bytes:
        """Wait for all of it. Raises what ends it early."""
        while not self._reply.done:
            event = await self._came.get()
            if isinstance(event, Failed):
                raise event.error
            self._reply.take(event)
        return self._reply.whole()

    async def stream(self) -> AsyncIterator[bytes]:
        """Chunk after chunk; a reader who goes away ends the rows."""
        try:
            for chunk in self._reply.first():
                yield chunk
            while not self._reply.done:
                event = await self._came.get()
                if isinstance(event, Failed):
                    yield failure(event.error)
                    return
                self._reply.take(event)
                assert not isinstance(event, Begun)
                for chunk in self._reply.chunks(event):
                    yield chunk
            yield DONE
        finally:
            self.give_up()


async def _unless_gone(request: Request, task: _Asked, wanted: Any) -> Any:
    """What ``wanted`` gives; ``None`` if the client goes away before, which ends the order."""
    work, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        return None
    finally:
        if not work.done() or work.cancelled() or work.exception() is not None:
            task.give_up()
        for each in (work, gone):
            each.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limits: ServeLimits) -> bytes:
    """The body, of bounded size and in bounded time."""
    length = request.headers.get("content-length", "")
    parts, size = [], 0
    most = _READ * limits.body  # a client that is still sending when it is refused may never read why
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    break
                if size <= limits.body:
                    parts.append(part)
    except TimeoutError:
        raise Refused("The body did not come in time.", "Send it at once.", status=408) from None
    if size > limits.body:
        raise _too_large(limits)
    return b"".join(parts)


def _too_large(limits: ServeLimits) -> Refused:
    return Refused(f"The body is larger than {limits.body >> 20} MiB.", "Send less.", status=413)


def _refuse(error: LensError) -> Response:
    status = status_of(error)
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    headers |= {"connection": "close"} if status in (408, 413) else {}
    return Response(as_json(error_body(error)), status, headers, _JSON)


async def _absent(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    said = f"There is no {request.method} {one_line(request.url.path, 100)}."
    return _refuse(Refused(said, "See docs/serve.md.", status=status))


async def _defect(_: Request, error: Exception) -> Response:
    said = f"The server could not do this ({type(error).__name__})."
    return _refuse(Refused(said, status=500, kind="server_error"))


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
