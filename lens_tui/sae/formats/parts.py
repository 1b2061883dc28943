"""What a format's reader is given and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.mapped import shown
from lens_tui.records.sanitise import one_line
from lens_tui.records.sites import read_hook

from ..definition import Definition, Weights
from ..files import read_json, read_safetensors
from ..tensors import Stored


@dataclass(frozen=True)
class Source:
    """A file or folder that someone wants read as an SAE. ``name`` is the hub's name of it, or its path.

    ``input_scale`` is the caller's word on what activations are multiplied by, for files that leave it open.
    """

    path: Path
    name: str
    input_scale: float | None = None

    @property
    def folder(self) -> Path:
        """The folder of the weights and their configuration."""
        return self.path if self.path.is_dir() else self.path.parent

    def find(self, *names: str) -> Path | None:
        """The first of some files: the given file itself if it is so named, else one in the folder."""
        if self.path.is_file():
            return self.path if self.path.name in names else None
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def config(self, *names: str) -> dict[str, Any]:
        """The first of some JSON files beside the weights; empty if there is none."""
        found = next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        return {} if found is None else read_json(found)

    @cached_property
    def trail(self) -> str:
        """The path with forward slashes, in which names of folders are looked for."""
        return f"{self.name}/{'/'.join(self.path.absolute().parts)}"

    def search(self, pattern: str) -> re.Match[str] | None:
        """The last place in the path (with its name at the hub first) where a pattern is found."""
        found = list(re.finditer(pattern, self.trail))
        return found[-1] if found else None


@dataclass
class Facts:
    """What is known of an SAE, each fact with where it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    def say(self, name: str, value: Any, where: str) -> None:
        """Note a fact unless it is known already or there is nothing to say (``None`` or ``""``)."""
        if value is None or value == "" or name in self.values:
            return
        self.values[name] = one_line(value, 120) if isinstance(value, str) else value
        self.provenance[name] = one_line(where, 160)

    def read_from(self, hook: str, where: str, *, out: bool = False) -> None:
        """Note the site and layer that a hook's name stands for; why not, if it stands for none."""
        found = read_hook(hook, str(self.values.get("model_name", "")))
        end = "_out" if out else ""
        self.say(f"layer{end}", found.layer if found.layer >= 0 else None, f"{where}: {hook}")
        self.say(f"site{end}", found.site, f"{where}: {hook}")
        if not found.site:
            self.provenance.setdefault(f"site{end}", one_line(f"not known: {found.why} ({where})", 160))

    def get(self, name: str, default: Any = None) -> Any:
        """A fact, or the default."""
        return self.values.get(name, default)


@dataclass(frozen=True)
class Parts:
    """What a reader found: enough to build the SAE."""

    definition: Definition
    weights: Weights
    facts: Facts


Reader = Callable[[Source], Parts]


@dataclass(frozen=True)
class Format:
    """A file format: its name, how it is recognised (cheaply, by names and configuration), how it is read."""

    name: str
    recognises: Callable[[Source], bool]
    read: Reader


def pick(tensors: dict[str, Stored], path: Path, *names: str) -> Stored:
    """The first tensor that is there under one of its names. Raises ``LensError`` if none is."""
    for name in names:
        if name in tensors:
            return tensors[name]
    there = ", ".join(sorted(one_line(name, 30) for name in tensors)[:6]) or "nothing"
    raise LensError(f"{shown(path)} has no tensor {names[0]} (it has {there}).", "It is damaged or of another format.")


def only_safetensors(source: Source, names: set[str]) -> Path | None:
    """The given file, if it is a safetensors file that has tensors of these names."""
    if not source.path.is_file() or source.path.suffix != ".safetensors":
        return None
    return source.path if names <= set(read_safetensors(source.path)) else None


def number(config: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A number of a configuration. Raises ``LensError`` if it is missing or none."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LensError(f"{where} has no number {key!r}.", "It is damaged or of another format.")
    return float(value)


def input_scale(source: Source, declared: Any) -> float:
    """What activations are multiplied by, so that their mean length is ``sqrt(d)``.

    Raises ``LensError`` if neither the file nor the caller says it: without it every number would be wrong.
    """
    for value in (declared, source.input_scale):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return float(value)
    raise LensError(
        f"{shown(source.path)} expects scaled activations, and the scale is not in its files.",
        "Give input_scale=: sqrt(d) over the mean length of an activation, or 1.0 if it is folded into the weights.",
    )
