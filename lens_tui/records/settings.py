"""The user's settings: one TOML file, checked, each error with its key and line.

The text in each field is its documentation: :func:`manual` makes the
commented file of it that ``mlx-lens-tui config --explain`` prints.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from . import disk, paths
from .codec import Mismatch, from_json
from .errors import LensError
from .info import Dequantize
from .read_files import MAX_TOML, FileAbsent, parse_toml, read_text
from .run import LIMITS, Sampling
from .sanitise import one_line


def _setting(default: Any, says: str, limits: tuple[float, float] | None = None) -> Any:
    return field(default=default, metadata={"says": says, **({"limits": limits} if limits else {})})


def _sampling(name: str, says: str) -> Any:
    return _setting(getattr(Sampling(), name), says, LIMITS[name])


@dataclass(frozen=True, slots=True)
class Look:
    """How it looks."""

    theme: str = _setting(
        "",
        "Name of a theme; `auto` or empty follows the terminal, `ink` in a dark one and `paper` in a light one; "
        "`terminal` uses its own 16 colours. `T` in the app shows them all, live.",
    )
    tint: Literal["tint", "bars", "digits", "off"] = _setting(
        "tint",
        "How values are shown on tokens at the start: background colour, bars under the text, digits, or not at all.",
    )
    motion: Literal["full", "reduced"] = _setting(
        "full",
        "`reduced`: nothing slides, fades or blinks. The variable LENS_TUI_REDUCED_MOTION=1 does the same.",
    )


@dataclass(frozen=True, slots=True)
class Generate:
    """What a new comparison starts with."""

    max_tokens: int = _sampling("max_tokens", "How many tokens each arm writes at most.")
    temp: float = _sampling("temp", "Temperature; 0 takes the likeliest token each time.")
    top_p: float = _sampling(
        "top_p", "Nucleus sampling: the smallest set of tokens with this much probability; 0 is off."
    )
    min_p: float = _sampling("min_p", "Drop tokens less likely than this share of the likeliest; 0 is off.")
    top_k: int = _sampling("top_k", "Sample among this many tokens; 0 is off.")
    repetition_penalty: float = _sampling(
        "repetition_penalty", "Divide the logits of tokens that came before by this; 0 is off."
    )
    seed: int = _sampling("seed", "Seed of the random numbers; the same seed gives the same text.")

    def sampling(self) -> Sampling:
        """These settings as the record that a run takes."""
        return Sampling(**{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, slots=True)
class Models:
    """Where models are found."""

    open: str = _setting("", "A model (folder, hub id or `demo`) to load at the start; empty for none.")
    folders: tuple[str, ...] = _setting(
        (), "Folders whose subfolders are listed as models, besides the Hugging Face cache."
    )
    dequantize: Dequantize = _setting(  # noqa: RUF009
        "auto",
        "Hold quantised and 16-bit weights in float32: where that is faster and memory allows, never, or always.",
    )


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept on disk."""

    history: bool = _setting(True, "Keep each run with its prompt, arms and tokens, to look at again.")
    session: bool = _setting(
        True,
        "Keep the bench and the prompt while the app is open, to take them up again if it is killed or with --resume.",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Every key may be left out."""

    look: Look = Look()
    generate: Generate = Generate()
    models: Models = Models()
    keep: Keep = Keep()
    keys: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "says": 'Keys by the id of what they do, as in `app.run = "r"`; commas divide several. '
            "`?` in the app shows the ids."
        },
    )


def load_settings(path: Path | None = None) -> Settings:
    """The user's settings; the defaults if there is no file.

    Raises :class:`LensError` that names file, line and key for a file that is
    not TOML, an unknown key, or a value that cannot be.
    """
    file = path or paths.settings_file()
    try:
        text = read_text(file, MAX_TOML)
    except FileAbsent:
        return Settings()
    except LensError as error:
        raise LensError(f"The settings cannot be read: {error.message}", "Check the file.") from error
    return parse_settings(text, one_line(str(file), 200))


def parse_settings(text: str, name: str = "settings.toml") -> Settings:
    """Settings from TOML text. Errors as in :func:`load_settings`."""
    data = parse_toml(text, name)
    if isinstance(data.get("keys"), dict):
        data["keys"] = _flat(data["keys"])
    try:
        return from_json(Settings, data)
    except Mismatch as error:
        raise _explained(error, text, name) from None


def set_one(section: str, key: str, value: str | int | float | bool, path: Path | None = None) -> Settings:
    """Change one key in the user's file, leaving every other line and comment as it is; returns the settings."""
    file = path or paths.settings_file()
    try:
        text = read_text(file, MAX_TOML)
    except FileAbsent:
        text = ""
    new = _with_line(text, section, key, f"{_bare(key)} = {_toml_value(value)}")
    settings = parse_settings(new, str(file))
    disk.write_text(file, new)
    return settings


def changed(settings: Settings) -> list[str]:
    """The settings that are not at their defaults, as ``section.key``, and the ids of keys as ``keys.id``."""
    sections = (section.name for section in fields(Settings))
    return [
        f"{section}.{key}"
        for section in sections
        for key, value, default in _held(settings, section)
        if value != default
    ]


def as_toml(settings: Settings) -> str:
    """A file of these settings, with every key; what is not at its default has the default beside it."""
    lines: list[str] = []
    for section in fields(Settings):
        if held := _held(settings, section.name):
            lines.append(f"[{section.name}]")
            for key, value, default in held:
                beside = "" if value == default or default is None else f"  # default: {_toml_value(default)}"
                lines.append(f"{_bare(key)} = {_toml_value(value)}{beside}")
            lines.append("")
    return "\n".join(lines)


def _held(settings: Settings, section: str) -> list[tuple[str, Any, Any]]:
    """Key, value and default of a section; a key of the app has no default here."""
    held = getattr(settings, section)
    if is_dataclass(held):
        return [(item.name, getattr(held, item.name), item.default) for item in fields(held)]
    return [(key, value, None) for key, value in held.items()]


@cache
def manual() -> str:
    """A settings file with every key at its default and what it means, as comments: the reference."""
    lines = [f"# Settings of mlx-lens-tui: {paths.APP}/settings.toml in your configuration folder.", ""]
    for section in fields(Settings):
        inner = getattr(Settings(), section.name)
        if is_dataclass(inner):
            lines += [f"# {inner.__doc__}", f"[{section.name}]"]
            for item in fields(inner):
                lines += [f"# {item.metadata['says']}{_bounds(type(inner), item)}"]
                lines += [f"# {item.name} = {_toml_value(item.default)}"]
        else:
            lines += [f"# {section.metadata['says']}", f"[{section.name}]"]
        lines.append("")
    return "\n".join(lines)


def explained_settings() -> dict[str, dict[str, Any]]:
    """Every setting by ``section.key``: what it says, its default and, where it has bounds or choices, those."""
    found: dict[str, dict[str, Any]] = {}
    for section in fields(Settings):
        inner = getattr(Settings(), section.name)
        if not is_dataclass(inner):
            found[section.name] = {"says": section.metadata["says"], "default": None, "may_be": ""}
            continue
        for item in fields(inner):
            may_be = _bounds(type(inner), item).strip()
            found[f"{section.name}.{item.name}"] = {
                "says": item.metadata["says"],
                "default": item.default,
                "may_be": may_be,
            }
    return found


def value_of(settings: Settings, name: str) -> Any:
    """The value of ``section.key`` (or of ``keys``, all of them) in these settings."""
    section, _, key = name.partition(".")
    held = getattr(settings, section)
    return getattr(held, key) if key else held


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``steer.zero = "0"`` is a table in a table to TOML; here it is the id ``steer.zero``."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


_WORDS = {"float": "a number", "int": "a whole number", "str": "a text", "bool": "true or false"}


def _explained(error: Mismatch, text: str, name: str) -> LensError:
    section = [] if error.kind is Settings else [error.kind.__name__.lower()]
    place = [*section, *error.name.split(".", 1)]
    line = _line_of(text, place)
    where = f"{name}, line {line}" if line else name
    key = one_line(".".join(place), 80)
    if not error.what:
        known = ", ".join(item.name for item in fields(error.kind))
        return LensError(f"{where}: there is no setting {key}.", f"Known: {known}.")
    what = _WORDS.get(error.what, error.what)
    return LensError(f"{where}: {key} is {one_line(repr(error.value), 60)}, which is not {what}.", "Correct it.")


def _line_of(text: str, place: list[str]) -> int:
    """The line of a key, counted from 1; of its section if the key itself is not found; 0 if neither is."""
    section, best = "", 0
    wanted = place[1] if len(place) > 1 else place[0]
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            section = header[1].strip("\"'")
            if section == place[0]:
                best = best or number
        key = re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", line)
        if key is None:
            continue
        full = f"{section}.{key[1]}" if section else key[1]
        if full == ".".join(place[:2]) or (not section and key[1] == wanted and len(place) == 1):
            return number
    return best


def _with_line(text: str, section: str, key: str, new: str) -> str:
    lines = text.removesuffix("\n").split("\n") if text else []
    start = next((at for at, line in enumerate(lines) if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", line)), None)
    if start is None:
        return "\n".join([*lines, *([""] if lines else []), f"[{section}]", new, ""])
    end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    for at in range(start + 1, end):
        if pattern.match(lines[at]):
            lines[at] = new
            return "\n".join([*lines, ""])
    lines.insert(start + 1, new)
    return "\n".join([*lines, ""])


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\u{ord(c[0]):04x}", escaped) + '"'
    return repr(value)


def _bounds(kind: type, item: Field[Any]) -> str:
    if limits := item.metadata.get("limits"):
        return " From {:,} to {:,}.".format(*limits)
    choices = get_args(get_type_hints(kind)[item.name])
    return f" One of {', '.join(choices)}." if choices and isinstance(choices[0], str) else ""
