"""The verbs that stay: a server of steered completions (``serve``), and the tools of an agent (``mcp``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.arm_syntax import ArmSpec, parse_arm
from lens_tui.records.machine import launched, launched_rank
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.serve.limits import ServeLimits

from .output import note, sentences
from .sources import Model, SAEName, Vectors, asked_shard, open_model, open_sae

if TYPE_CHECKING:
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
    from lens_tui.serve.run_server import LensServer, follow
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
