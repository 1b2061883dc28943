"""The user's settings: one TOML file, checked, each error with its key and line.

The text under each field is its documentation: :func:`manual` makes the
reference page and the commented file of it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from . import disk, paths
from .errors import LensError
from .info import Dequantize
from .read_files import MAX_TOML, FileAbsent, parse_toml, read_text
from .run import Sampling
from .sanitise import one_line

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_SECTION = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True)


class Look(BaseModel):
    """How it looks."""

    model_config = _SECTION

    theme: str = ""
    """Name of a theme; empty for the one that fits best. `:` and "theme" in the app shows them all, live."""
    tint: Literal["tint", "bars", "digits", "off"] = "tint"
    """How values are shown on tokens at the start: background colour, bars under the text, digits, or not at all."""


class Generate(BaseModel):
    """What a new comparison starts with."""

    model_config = _SECTION

    max_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """How many tokens each arm writes at most."""
    temp: float = Field(default=0.0, ge=0.0, le=100.0)
    """Temperature; 0 takes the likeliest token each time."""
    top_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Nucleus sampling: the smallest set of tokens with this much probability; 0 is off."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Drop tokens less likely than this share of the likeliest; 0 is off."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many tokens; 0 is off."""
    repetition_penalty: float = Field(default=0.0, ge=0.0, le=10.0)
    """Divide the logits of tokens that came before by this; 0 is off."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random numbers; the same seed gives the same text."""

    def sampling(self) -> Sampling:
        """These settings as the record that a run takes."""
        return Sampling(
            max_tokens=self.max_tokens,
            temp=self.temp,
            top_p=self.top_p,
            min_p=self.min_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


class Models(BaseModel):
    """Where models are found."""

    model_config = _SECTION

    open: str = ""
    """A model (folder, hub id or `demo`) to load at the start; empty for none."""
    folders: list[str] = Field(default_factory=list)
    """Folders whose subfolders are listed as models, besides the Hugging Face cache."""
    dequantize: Dequantize = "auto"
    """Hold quantised and 16-bit weights in float32: where that is faster and memory allows, never, or always."""


class Keep(BaseModel):
    """What is kept on disk."""

    model_config = _SECTION

    history: bool = True
    """Keep each run with its prompt, arms and tokens, to look at again."""
    session: bool = True
    """Keep the bench and the prompt while the app is open, to take them up again if it is killed."""


class Settings(BaseModel):
    """Everything that can be set. Every key may be left out."""

    model_config = _SECTION

    look: Look = Field(default_factory=Look)
    generate: Generate = Field(default_factory=Generate)
    models: Models = Field(default_factory=Models)
    keep: Keep = Field(default_factory=Keep)
    keys: dict[str, str] = Field(default_factory=dict)
    """Keys by the id of what they do, as in `app.run = "r"`; commas divide several. `?` in the app shows the ids."""


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
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explained(error, text, name) from None


def save_settings(settings: Settings, path: Path | None = None) -> None:
    """Write the settings that differ from the defaults, keeping nothing else of the file. See also :func:`set_one`."""
    disk.write_text(path or paths.settings_file(), _as_toml(settings))


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


@cache
def manual() -> str:
    """A settings file with every key at its default and what it means, as comments: the reference."""
    lines = [f"# Settings of mlx-lens-tui: {paths.APP}/settings.toml in your configuration folder.", ""]
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += [f"# {(kind.__doc__ or '').strip()}", f"[{section}]"]
            for key, item in kind.model_fields.items():
                lines += [f"# {item.description}{_bounds(item)}", f"# {key} = {_toml_value(_default(item))}"]
        else:
            lines += [f"# {field.description}", f"[{section}]"]
        lines.append("")
    return "\n".join(lines)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``steer.zero = "0"`` is a table in a table to TOML; here it is the id ``steer.zero``."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _explained(error: ValidationError, text: str, name: str) -> LensError:
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    line = _line_of(text, place)
    where = f"{name}, line {line}" if line else name
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        known: Any = Settings.model_fields.get(place[0])
        inner = getattr(getattr(known, "annotation", None), "model_fields", None) if len(place) > 1 else None
        names = ", ".join(inner or Settings.model_fields)
        return LensError(f"{where}: there is no setting {one_line(key, 80)}.", f"Known: {names}.")
    reason = one_line(first["msg"], 120)
    return LensError(f"{where}: {one_line(key, 80)} is {one_line(repr(first['input']), 60)}. {reason}.", "Correct it.")


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


def _as_toml(settings: Settings) -> str:
    lines: list[str] = []
    for section, values in settings.model_dump(exclude_defaults=True).items():
        lines += [f"[{section}]", *(f"{_bare(key)} = {_toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\u{ord(c[0]):04x}", escaped) + '"'
    return repr(value)


def _default(field: FieldInfo) -> Any:
    made = field.get_default(call_default_factory=True)
    return "" if made is PydanticUndefined else made


def _bounds(field: FieldInfo) -> str:
    found = {type(item).__name__: item for item in field.metadata}
    low, high = getattr(found.get("Ge"), "ge", None), getattr(found.get("Le"), "le", None)
    if low is not None and high is not None:
        return f" From {low:,} to {high:,}."
    choices = getattr(field.annotation, "__args__", ())
    return f" One of {', '.join(map(str, choices))}." if choices and isinstance(choices[0], str) else ""
