"""The verbs that explain: ``config`` and ``keys`` (what is in force, what is wrong with it) and ``glossary``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated

import typer

from lens_tui.records import LensError, glossary, paths
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


@verbs.command("glossary")
@sentences
def glossary_verb(
    term: Annotated[
        list[str] | None, typer.Argument(metavar="[TERM]", help="A number, such as FVU; all of them if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a number is: its definition, unit and source."""
    words = " ".join(term or ())
    found = glossary.find(words) if words.strip() else list(glossary.TERMS)
    if not found:
        raise LensError(
            f"The glossary has no {one_line(words, 60)!r}.", "`mlx-lens-tui glossary` prints all that it has."
        )
    if json:
        rows = [asdict(item) for item in found]
        print_json({"model": None, "terms": rows})
        return
    width = min(100, get_terminal_size().columns)
    for item in found:
        say(f"{item.name}  ({item.id}; {', '.join(item.where)})")
        for line in (item.means, item.unit_and_source):
            say(fill(line, width, initial_indent="  ", subsequent_indent="  "))


def _warn(problems: list[str]) -> None:
    for problem in problems:
        note(f"mlx-lens-tui: {problem}")
