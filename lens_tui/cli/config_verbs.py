"""The verbs that explain: ``info``, ``config`` and ``keys`` (what is in force, what is wrong with it), ``glossary``.

``info`` says versions, device, folders and models found, or the facts of one model.
``completion`` has the shell know all verbs.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui import __version__, blas, demo
from lens_tui.records import LensError, glossary, paths
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import has_words
from lens_tui.tui.keys import GROUPS, KEYS, Key, check_keymap, normal, split

from .output import note, print_json, say, say_parts, sentences
from .sources import Json, Model, open_model

if TYPE_CHECKING:
    from lens_tui.records.settings import Settings


_PACKAGES = ("mlx-lens-tui", "mlx", "mlx-lm", "textual", "rich", "numpy", "safetensors", "huggingface-hub")

verbs = typer.Typer()


@verbs.command()
@sentences
def info(model: Model = "", json: Json = False) -> None:
    """Say what is installed and which models and SAEs there are.

    With --model: what that model is.
    """
    facts = _model_facts(model) if model else _machine_facts()
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        for line in _lines(name, value) if name != "model" else ():
            say(line)


def _model_facts(model: str) -> dict[str, Any]:
    with open_model(model) as lens:
        return {"model": lens.info.name, **asdict(lens.info), "sites": list(lens.sites(0))}


def _machine_facts() -> dict[str, Any]:
    import mlx.core as mx

    from lens_tui.tasks.models import list_models

    return {
        "model": None,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(mx.default_device()),
        **({"blas": blas.state().says} if blas.state().says else {}),
        "folders": {
            "settings": str(paths.settings_file()),
            "data": str(paths.folder("data")),
            "log": str(paths.log_file()),
        },
        "saes": sorted(demo.sae_paths()),
        "vectors": [f"{ready.name}*{ready.scale:g}  {ready.says}" for ready in demo.vectors()],
        "models": [entry.id for entry in list_models()],
    }


def _version(name: str) -> str:
    if name == "mlx-lens-tui":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        width = max((len(key) for key in value), default=0)
        return [name, *(f"  {key:<{width}}  {item}" for key, item in value.items())]
    if isinstance(value, list):
        return [name, *(f"  {item}" for item in value)] if value else [f"{name}  (none)"]
    return [f"{name:<18}{value or _EMPTY.get(name, value)}"]


_EMPTY = {"weights": "as in the files", "adapter": "none"}
"""What an empty value means."""


_SHELLS = ("bash", "zsh", "fish", "powershell")


@verbs.command()
@sentences
def config(
    setting: Annotated[
        str | None, typer.Argument(metavar="SETTING", help="Explain one setting, such as look.theme.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this file instead of reading yours.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what every setting means and may be.")] = False,
    json: Json = False,
) -> None:
    """Print the settings in force and their file, or explain one."""
    from lens_tui.records.settings import as_toml, changed, load_settings, manual

    file = paths.settings_file() if check is None else expanded(check)
    if check is not None and not file.exists():
        raise LensError(f"There is no file {one_line(str(file), 200)}.", "Give a settings file, such as settings.toml.")
    settings = load_settings(file)
    problems = [*check_keymap(settings.keys)[1], *_theme_problems(settings.look.theme)]
    if setting is not None:
        _explain_setting(setting, settings, json)
        return
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


def _theme_problems(theme: str) -> list[str]:
    """Whether there is such a theme."""
    from lens_tui.tui.themes import FOLLOW, bundled_dir, load_themes

    found, problems = load_themes((bundled_dir(), paths.themes_folder()))
    if theme not in ("", FOLLOW, *found):
        known = ", ".join((FOLLOW, *found))
        problems.append(f"look.theme: there is no theme {one_line(theme, 60)!r}; there are {known}.")
    return problems


def _explain_setting(name: str, settings: Settings, json: bool) -> None:
    """Print what one setting is now, was made as, means and may be."""
    from lens_tui.records.settings import explained_settings, value_of

    every = explained_settings()
    if name not in every:
        close = get_close_matches(name, every, 1, 0.4)
        hint = f"Did you mean {close[0]}?" if close else "`mlx-lens-tui config --explain` has all of them."
        raise LensError(f"There is no setting {one_line(name, 60)}.", hint)
    found = every[name]
    value = value_of(settings, name)
    if json:
        print_json({"model": None, "setting": name, "value": value, **found})
        return
    say(f"{name} = {value!r}  (default: {found['default']!r})")
    for text in (found["says"], found["may_be"]):
        if text:
            say(fill(text, min(100, get_terminal_size().columns), initial_indent="  ", subsequent_indent="  "))


@verbs.command()
@sentences
def keys(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="Only those with these words, or this key.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="End with status 2 if one cannot be used.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print them as [keys] of the settings, to edit.")] = False,
    json: Json = False,
) -> None:
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
        if _has_words(key, yours.get(key.id, key.keys), words or [])
    ]
    if check and problems:
        raise LensError(problems[0], f"This is the first of {len(problems)} such entries.")
    if not rows:
        raise LensError(f"No key has {one_line(' '.join(words or []), 60)!r}.", "`mlx-lens-tui keys` prints them all.")
    if json:
        exists = file.exists()
        print_json({"model": None, "file": str(file) if exists else None, "keys": rows, "problems": problems})
        return
    if explain:
        say("[keys]")
        for key in KEYS:
            if any(row["id"] == key.id for row in rows):
                say(f'# {key.description}\n"{key.id}" = "{yours.get(key.id, key.keys)}"')
        _warn(problems)
        return
    for group in GROUPS:
        mine = [row for row in rows if row["group"] == group]
        if mine:
            say(group)
        for row in mine:
            mark = "" if row["keys"] == row["default"] else "  (yours)"
            before = f"  {', '.join(row['keys']) or '-':<20}  {row['id']:<22}  "
            say_parts(before, f"{row['description']}{mark}".split(" "), " ")
    _warn(problems)


@verbs.command("glossary")
@sentences
def glossary_verb(
    term: Annotated[
        list[str] | None, typer.Argument(metavar="TERM", help="A number, such as FVU; all of them if left out.")
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


@verbs.command()
@sentences
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")],
    json: Json = False,
) -> None:
    """Print what makes a shell complete verbs and options."""
    from typer._completion_shared import get_completion_script

    if shell not in _SHELLS:
        raise LensError(f"There is no completion for {one_line(shell, 60)!r}.", f"Use one of {', '.join(_SHELLS)}.")
    program = "mlx-lens-tui"
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    script = get_completion_script(prog_name=program, complete_var=variable, shell=shell)
    if json:
        print_json({"model": None, "shell": shell, "script": script})
        return
    for line in script.rstrip().split("\n"):
        say(line)


def _has_words(key: Key, keys: str, words: list[str]) -> bool:
    """Whether a key is one of those asked for: every word in its id or description, or the key itself."""
    text = f"{key.id} {key.description} {key.group}"
    return all(has_words(text, word) or normal(word) in split(keys) for word in words)


def _warn(problems: list[str]) -> None:
    for problem in problems:
        note(f"mlx-lens-tui: {problem}")
