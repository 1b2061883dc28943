"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Corpus = Annotated[Path, typer.Option(help="Folder or tar archive of NAME.txt files.", exists=True)]
BundledModel = Annotated[Path | None, typer.Option(help="Model folder; the bundled one unless given.")]
SAEs = Annotated[Path | None, typer.Option(help="Folder with the three SAEs' folders; the bundled ones unless given.")]
