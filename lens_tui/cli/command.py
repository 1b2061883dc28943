"""All verbs of ``mlx-lens-tui``, and the options before them. A verb's options and what it does are in one file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from lens_tui import __version__

from . import open_app as start
from .capture_verbs import probe_verbs as probes
from .capture_verbs import verbs as capture
from .cause_verbs import verbs as causes
from .compare_verbs import verbs as compare
from .config_verbs import verbs as config
from .feature_verbs import verbs as features
from .graph_verbs import verbs as graphs
from .jacobian_verbs import verbs as jacobian
from .label_verbs import verbs as labels
from .list_verbs import verbs as lists
from .model_verbs import bake_verbs, hub_verbs
from .model_verbs import verbs as models
from .output import INTERRUPTED, USER_ERROR, fail, note, say, sentences
from .patch_verbs import verbs as patching
from .read_verbs import verbs as read
from .run_verbs import runs
from .run_verbs import verbs as replay
from .sae_verbs import verbs as saes
from .server_verbs import PORT, serve_app
from .server_verbs import verbs as servers
from .sources import asked_adapter, asked_dequantize, asked_shard
from .steer_verbs import verbs as steer

# Typer brings its own click or uses the one installed: the class of what it refuses is known by a child.
_Refused: type[Exception] = typer.BadParameter.__mro__[2]


class _Verbs(TyperGroup):
    """The verbs; what the parser refuses is reported as by a verb: one safe sentence, with ``--json`` as JSON."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Read the command line and do what it says."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            status = super().main(given, prog_name, complete_var, False, windows_expand_args, obj=given, **extra)
        except _Refused as error:
            if not standalone_mode:
                raise
            _refuse(error, as_json="--json" in given)
        except typer.Abort:
            fail("Stopped.", as_json="--json" in given, status=INTERRUPTED)
        if not standalone_mode:
            return status
        if status == INTERRUPTED:  # while the parser read what is asked, which says nothing of it
            fail("Stopped.", as_json="--json" in given, status=INTERRUPTED)
        raise SystemExit(status if isinstance(status, int) else 0)


def _refuse(error: Any, *, as_json: bool) -> NoReturn:
    """End with what the parser says; a group that was called without a verb has its help said."""
    if type(error).__name__ == "NoArgsIsHelpError":
        note(str(error.format_message()))
        raise SystemExit(USER_ERROR)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mlx-lens-tui"
    message = error.format_message().replace(": Value error, ", ": ").rstrip(".") + "."  # pydantic's words before ours
    fail(message, f"See `{path} --help`.", as_json=as_json)


app = typer.Typer(
    name="mlx-lens-tui",
    cls=_Verbs,
    help="Look inside language models and push on them. Without a verb it opens the app.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verbs in (
    compare,
    read,
    patching,
    graphs,
    features,
    steer,
    bake_verbs,
    replay,
    saes,
    capture,
    servers,
    hub_verbs,
    config,
):
    app.add_typer(verbs)
app.add_typer(causes, name="causes")
app.add_typer(jacobian, name="jlens")
app.add_typer(labels, name="labels")
app.add_typer(lists, name="lists")
app.add_typer(models, name="models")
app.add_typer(probes, name="probe")
app.add_typer(runs, name="runs")


@sentences
def run() -> None:
    """Read the command line and do what it says."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        say(f"mlx-lens-tui {__version__}")
        raise typer.Exit


def _refuse_before_a_verb(context: typer.Context, given: Mapping[str, object]) -> None:
    """Refuse what is for the app: left unread, the verb would answer of another model."""
    verb = context.invoked_subcommand
    for name, asked in given.items():
        if asked:
            hint = f"Put it behind {verb!r}." if name == "--model" else "Leave it out."
            message = f"{name} before a verb is for the app, and {verb!r} does not read it."
            fail(message, hint, as_json="--json" in (context.obj or ()))


def _refuse_without_a_verb(adapter: str, shard: str | None) -> None:
    if adapter:
        fail("--adapter is for a verb, and none follows.", "Write mlx-lens-tui --adapter FOLDER compare ...")
    if shard:
        fail("--shard is for a verb: the app runs in one process.", "Leave it out.")


@app.callback(invoke_without_command=True)
@sentences
def open_app(
    context: typer.Context,
    demo: Annotated[
        bool, typer.Option("--demo", help="Open on Generate with the bundled model, ready to run.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A folder or hub id to load at once.")] = None,
    theme: Annotated[str | None, typer.Option("--theme", help="A theme by name.")] = None,
    dequantize: Annotated[
        Literal["auto", "never", "always"] | None,
        typer.Option(
            help="Hold quantised and 16-bit weights in float32 (auto: where that is faster); also before a verb."
        ),
    ] = None,
    adapter: Annotated[
        str,
        typer.Option("--adapter", help="A folder with a LoRA (PEFT's or mlx-lm's) for the verb's model; before it."),
    ] = "",
    shard: Annotated[
        Literal["tensor", "pipeline"] | None,
        typer.Option(help="Before a verb: share the model among the processes that mlx.launch started."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the app was left, by ctrl+q or by a crash, without asking.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Open the app in a browser on this machine (needs the extra `serve`).")
    ] = False,
    port: Annotated[int, typer.Option("--port", help="Where --serve listens, on 127.0.0.1.", min=1, max=65535)] = PORT,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Open the app, unless a verb follows."""
    if context.invoked_subcommand is not None:
        given = {"--demo": demo, "--model": model, "--theme": theme, "--resume": resume, "--serve": serve}
        _refuse_before_a_verb(context, given)
        asked_dequantize.set(dequantize)
        asked_adapter.set(adapter)
        asked_shard.set(shard)
        return
    _refuse_without_a_verb(adapter, shard)
    if resume and (demo or model):
        fail("--resume opens the model of the session that is taken up.", "Leave --demo and --model out.")
    if serve:
        options = [("--model", model), ("--theme", theme), ("--dequantize", dequantize)]
        words = [part for name, value in options if value is not None for part in (name, value)]
        serve_app([*words, *(["--demo"] if demo else []), *(["--resume"] if resume else [])], port)
        return
    start(demo=demo, model=model, theme=theme, dequantize=dequantize, resume=resume)
