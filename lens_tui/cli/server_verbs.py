"""What stays: the server of steered completions (``serve``), an agent's tools (``mcp``), the app in a browser.

``--serve`` has the app in a browser, served on this machine by textual-serve. Each page that is opened is an app and a
process of its own. Whoever can send it keys can do what its user can, so it listens on the loopback address alone, and
answers only to pages of its own: a request that names another host (a name that was pointed at this machine) or comes
from another page is refused. The page of textual-serve would fetch a font from the network; a policy forbids the
browser to ask anyone but this server.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.arm_syntax import ArmSpec, parse_arm
from lens_tui.records.machine import launched, launched_rank
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.serve.limits import ServeLimits

from .output import note, say, sentences
from .sources import Model, SAEName, Vectors, asked_shard, open_model, open_sae

if TYPE_CHECKING:
    from aiohttp import web
    from textual_serve.server import Server

    from lens_tui.sae.load_sae import SAE
    from lens_tui.serve.engine_thread import Catalogue


verbs = typer.Typer()


@verbs.command()
@sentences
def serve(
    model: Model = "demo",
    host: Annotated[str, typer.Option(help="Where to listen; an address others reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="The port there.")] = 8080,
    token: Annotated[
        str, typer.Option(envvar="LENS_TUI_TOKEN", help="What each request has to bring as its bearer token.")
    ] = "",
    vector: Annotated[
        list[str] | None, typer.Option("--vector", "-v", help="NAME=SOURCE[@LAYER]: a vector that requests can name.")
    ] = None,
    sae: Annotated[
        list[str] | None, typer.Option("--sae", "-s", help="An SAE whose features requests can name.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=1024, help="Answers that are written side by side.")] = 32,
    queue: Annotated[int, typer.Option(min=0, max=100000, help="Answers that may wait beside those.")] = 128,
    max_prompt: Annotated[int, typer.Option(min=1, help="Tokens that a prompt may have.")] = 8192,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 4096,
    drain: Annotated[float, typer.Option(min=0, max=3600, help="Seconds in which answers may end on SIGTERM.")] = 30.0,
) -> None:
    """Serve steered completions by OpenAI's interface."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise LensError("The server needs starlette and uvicorn.", "pip install 'mlx-lens-tui[serve]'")
    from lens_tui.serve.http_server import LensServer, follow
    from lens_tui.worker.thread import end_process

    named = [_named(text) for text in vector or ()]
    limits = ServeLimits(rows=rows, queue=queue, prompt_tokens=max_prompt, max_tokens=max_tokens)
    limits = replace(limits, default_tokens=min(limits.default_tokens, max_tokens))
    if launched() and asked_shard.get() is None:
        raise LensError(
            "mlx.launch started several servers, each with a whole model, and none knows of the others.",
            "Write mlx-lens-tui --shard tensor serve (or pipeline), or start one without mlx.launch.",
        )
    shared = copy_context()  # what was asked for before the verb holds on the model's thread too

    def opened() -> Catalogue:
        return shared.run(_catalogue, model, named, sae or ())

    if launched_rank():
        follow(opened, limits)
        end_process(0)
    server = LensServer(opened, host=host, port=port, token=token, limits=limits, drain=drain)
    here = server.engine.catalogue
    known = f"; vectors: {', '.join(here.vectors) or 'none'}; SAEs: {', '.join(here.saes) or 'none'}"
    note(f"{one_line(here.name)} is at {server.url}/v1 (ctrl+c ends it){known}")
    server.run()
    end_process(0)  # tearing MLX down with the interpreter may abort


@verbs.command()
@sentences
def mcp(model: Model = "demo", sae: SAEName = "") -> None:
    """Give an agent the verbs as tools (MCP on stdio)."""
    if find_spec("mcp") is None:
        raise LensError("The tools of an agent need the package mcp.", "pip install 'mlx-lens-tui[mcp]'")
    from lens_tui.worker.thread import end_process

    from .agent_server import run_stdio

    run_stdio(model, sae)
    end_process(0)


def _named(text: str) -> ArmSpec:
    spec = parse_arm(text, 1.0)
    if len(spec.terms) != 1 or spec.name == text.strip() or spec.terms[0].scale != 1.0:
        raise LensError(
            f"The vector {one_line(text, 80)!r} is not NAME=SOURCE[@LAYER].",
            "Write it as verse=verse.safetensors; the scale is the request's.",
        )
    return spec


def _catalogue(model: str, named: Sequence[ArmSpec], saes: Sequence[str]) -> Catalogue:
    """What the server has; called on the thread that runs the model. The bundled model brings its own."""
    from lens_tui.serve.engine_thread import Catalogue

    lens = open_model(model)
    asked = [("" if model == demo.NAME and name == demo.default_sae() else name) for name in saes]
    if model == demo.NAME and not asked:
        asked = [""]
    opened: dict[str, SAE] = {}
    for name in asked:
        sae = open_sae(name, model)
        if sae.info.layer < 0 or not sae.info.site:
            raise LensError(
                f"Nothing says which tensor the SAE {one_line(name, 60)!r} reads.", "Write NAME@LAYER:SITE."
            )
        opened[name or sae.info.name] = sae
        lens.attach_sae(name or sae.info.name, sae)
    found = {}
    if model == demo.NAME:
        finder = Vectors(lens, "", model)
        for ready in demo.vectors():
            found[ready.name] = finder.vector(parse_arm(ready.name, 1.0).terms[0])
    for spec in named:
        term = spec.terms[0]
        vector = Vectors(lens, saes[0] if saes else "", model).vector(term)
        layer = vector.layer if term.layer is None else term.layer
        found[spec.name] = replace(vector, layer=lens.registry.decoder.index(layer))
    folder = expanded(model)
    return Catalogue(folder.resolve().name if folder.exists() else model, lens, found, opened)


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
