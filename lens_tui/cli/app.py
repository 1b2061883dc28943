"""The verbs of ``mlx-lens-tui`` and their options. What each does is in its own file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from .find_verbs import verbs as find_verbs
from .label_verbs import verbs as label_verbs
from .options import SAE, Json, Model
from .output import INTERRUPTED, USER_ERROR, fail, note, sentences
from .read_verbs import verbs as read_verbs
from .sae_verbs import verbs as sae_verbs
from .steer_verbs import verbs as steer_verbs

# Typer brings its own click or uses the one installed: the class of what it refuses is known by a child.
_Refused: type[Exception] = typer.BadParameter.__mro__[2]


class _Verbs(TyperGroup):
    """The verbs; what the parser refuses is said as a verb says it: one safe sentence, with ``--json`` as JSON too."""

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
            status = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except _Refused as error:
            if not standalone_mode:
                raise
            _refuse(error, as_json="--json" in given)
        except typer.Abort:
            fail("Stopped.", as_json="--json" in given, status=INTERRUPTED)
        if not standalone_mode:
            return status
        raise SystemExit(status if isinstance(status, int) else 0)


def _refuse(error: Any, *, as_json: bool) -> NoReturn:
    """End with what the parser says; a group that was called without a verb has its help said."""
    if type(error).__name__ == "NoArgsIsHelpError":
        note(str(error.format_message()))
        raise SystemExit(USER_ERROR)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mlx-lens-tui"
    message = error.format_message().rstrip(".") + "."
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

app.add_typer(read_verbs)
app.add_typer(find_verbs)
app.add_typer(sae_verbs)
app.add_typer(steer_verbs)
app.add_typer(label_verbs, name="labels")


@sentences
def run() -> None:
    """Read the command line and do what it says."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from lens_tui import __version__

        from .output import say

        say(f"mlx-lens-tui {__version__}")
        raise typer.Exit


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
            help="Before a verb too: hold quantised and 16-bit weights in float32 (auto: where that is faster)."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Open the app, unless a verb follows."""
    if context.invoked_subcommand is not None:
        from .sources import asked_dequantize

        asked_dequantize.set(dequantize)
        return
    from .open_app import open_app as start

    start(demo=demo, model=model, theme=theme, dequantize=dequantize)


@app.command()
@sentences
def compare(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            "-a",
            help="[NAME=]SOURCE[@LAYER]*SCALE[:MODE][:POSITIONS], e.g. f2666*22 or random:0@4*22; terms joined by '+'.",
        ),
    ] = None,
    model: Model = "demo",
    sae: SAE = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per arm.")] = 80,
    temp: Annotated[float, typer.Option(min=0.0, help="Temperature; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0.0, help="Above 1 what was written is less likely.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text again.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text that ends an arm and is left out of it; may be repeated.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")] = False,
    json: Json = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="With --json: a line of JSON for each token as it comes.")
    ] = False,
) -> None:
    """Generate the baseline and every arm in lock step and print them side by side."""
    from lens_tui.records import Sampling

    from .compare import compare as verb

    sampling = Sampling(max_tokens, temp, top_p, min_p, top_k, repetition_penalty, seed=seed, stop=tuple(stop or ()))
    verb(prompt, arm or [], model=model, sae=sae, sampling=sampling, raw=raw, as_json=json, stream=stream)


@app.command()
@sentences
def features(
    text: Annotated[str, typer.Argument(help="The text to read; '-' reads standard input.")],
    model: Model = "demo",
    sae: SAE = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features per token.")] = 5,
    by: Annotated[
        str,
        typer.Option(
            help="activation; rank in the feature's own activations (needs an index); effect on the next token."
        ),
    ] = "activation",
    json: Json = False,
) -> None:
    """Print the top SAE features of every token of a text."""
    from .read import features as verb

    verb(text, model=model, sae=sae, top_k=top_k, by=by, as_json=json)


@app.command()
@sentences
def info(model: Model = "", json: Json = False) -> None:
    """Say what is installed and at hand, or with --model what a model is."""
    from .info import info as verb

    verb(model=model, as_json=json)
