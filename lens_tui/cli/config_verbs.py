"""The verbs ``config`` and ``keys``: the settings and the keys in force, and what is wrong with a file of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lens_tui.records import LensError, paths
from lens_tui.records.sanitise import one_line
from lens_tui.tui.keys import GROUPS, KEYS, check_keymap, split

from .output import note, print_json, say, sentences
from .sources import Json

verbs = typer.Typer()


@verbs.command()
@sentences
def config(
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this file instead of reading yours.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what every setting means and may be.")] = False,
    json: Json = False,
) -> None:
    """Print the settings in force and the file they come from."""
    from lens_tui.records.settings import as_toml, changed, load_settings, manual

    file = paths.settings_file() if check is None else check.expanduser()
    if check is not None and not file.exists():
        raise LensError(f"There is no file {one_line(str(file), 200)}.", "Give a settings file, such as settings.toml.")
    settings = load_settings(file)
    problems = check_keymap(settings.keys)[1]
    if check is not None and problems:
        raise LensError(problems[0], f"This is the first of {len(problems)} such entries.")
    if json:
        print_json(
            {
                "model": None,
                "file": str(file) if file.exists() else None,
                "settings": asdict(settings),
                "changed": changed(settings),
                "problems": problems,
                "manual": manual() if explain else None,
            }
        )
        return
    if explain:
        text = manual()
    else:
        text = f"# {file}\n\n{as_toml(settings)}" if file.exists() else f"# There is no {file}.\n\n{as_toml(settings)}"
    for line in text.rstrip().split("\n"):
        say(line)
    _warn(problems)


@verbs.command()
@sentences
def keys(json: Json = False) -> None:
    """Print the keys of the app, as your settings have them."""
    from lens_tui.records.settings import load_settings

    file = paths.settings_file()
    yours, problems = check_keymap(load_settings(file).keys)
    rows = [
        {
            "id": key.id,
            "group": key.group,
            "keys": split(yours.get(key.id, key.keys)),
            "default": split(key.keys),
            "description": key.description,
        }
        for key in KEYS
    ]
    if json:
        exists = file.exists()
        print_json({"model": None, "file": str(file) if exists else None, "keys": rows, "problems": problems})
        return
    for group in GROUPS:
        say(group)
        for row in rows:
            if row["group"] == group:
                mark = "" if row["keys"] == row["default"] else "  (yours)"
                say(f"  {', '.join(row['keys']) or '-':<20}  {row['id']:<22}  {row['description']}{mark}")
    _warn(problems)


def _warn(problems: list[str]) -> None:
    for problem in problems:
        note(f"mlx-lens-tui: {problem}")
