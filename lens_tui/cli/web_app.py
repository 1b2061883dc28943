"""``mlx-lens-tui --serve``: the app in a browser on this machine, by textual-serve.

Each page that is opened is an app and a process of its own. Whoever can send it keys can do what its user can, so it
listens on the loopback address alone, and answers only to pages of its own: a request that names another host (a name
that was pointed at this machine) or comes from another page is refused. The page of textual-serve would fetch a font
from the network; a policy forbids the browser to ask anyone but this server.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lens_tui.records.errors import LensError

from .output import say

if TYPE_CHECKING:
    from aiohttp import web
    from textual_serve.server import Server

LOOPBACK = "127.0.0.1"
PORT = 8000


def is_own(host: str, origin: str | None, port: int) -> bool:
    """Whether a request comes from our own page: by the host it names and the page it says it was sent by."""
    own = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}
    return host in own and (origin is None or origin in {f"http://{name}" for name in own})


def policy(port: int) -> str:
    """What the page may load and whom it may talk to: this server."""
    sockets = f"ws://{LOOPBACK}:{port} ws://localhost:{port}"
    return f"default-src 'self' 'unsafe-inline' data: blob:; connect-src 'self' {sockets}; frame-ancestors 'none'"


def serve_app(arguments: Sequence[str], port: int = PORT) -> None:
    """Serve the app until ctrl+c.

    Args:
        arguments: What the app is opened with, as on the command line.
        port: Where to listen, on the loopback address.

    Raises:
        LensError: textual-serve is not installed, or the port is taken.
    """
    if find_spec("textual_serve") is None:
        raise LensError("--serve needs textual-serve.", 'Install it with: pip install "mlx-lens-tui[serve]"')
    server = make_server(arguments, port)
    try:
        server.serve()
    except OSError as error:
        raise LensError(
            f"Nothing can be served on port {port}: {error.strerror or error}.", "Choose another with --port."
        ) from error


def make_server(arguments: Sequence[str], port: int) -> Server:
    """The server, not yet running; arguments as for :func:`serve_app`."""
    from aiohttp import web
    from textual_serve.server import Server

    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not is_own(request.host, request.headers.get("Origin"), port):
            raise web.HTTPForbidden(text="This page is for the browser of this machine, at its own address.")
        return await handler(request)

    async def with_policy(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = policy(port)

    class LoopbackServer(Server):  # type: ignore[misc, unused-ignore]  # its types are known only where it is installed
        """textual-serve's server for this machine alone."""

        def initialize_logging(self) -> None:
            """Warnings only, without the values of variables."""
            logging.basicConfig(level=logging.WARNING)

        async def _make_app(self) -> web.Application:
            made = await super()._make_app()
            made.middlewares.append(web.middleware(guard))
            made.on_response_prepare.append(with_policy)
            return made

        async def on_startup(self, app: Any) -> None:
            """Say where it is."""
            say(f"The app is at {self.public_url} (ctrl+c ends it).")

    command = shlex.join([sys.executable, "-m", "lens_tui", *arguments])
    return LoopbackServer(command, host=LOOPBACK, port=port, title="mlx-lens-tui")
