"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a hub id, or 'demo' for the bundled model.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
SAE = Annotated[
    str,
    typer.Option(
        "--sae",
        "-s",
        help="An SAE: a path, org/name/folder at the hub, or a name (bundled or trained here); then @LAYER:SITE.",
    ),
]
Convention = Annotated[
    str, typer.Option(help="How promoted tokens are found: norm (final norm's gain folded in) or raw.")
]
TextKey = Annotated[str, typer.Option(help="In JSONL, the key that holds the text.")]
