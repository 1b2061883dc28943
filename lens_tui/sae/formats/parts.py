"""What a format's reader is given and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.info import read_hook
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from ..files import Definition, Stored, Weights, container, read_json, read_values

USUAL_NAMES = (
    "params.safetensors",
    "params.npz",
    "sae.safetensors",
    "sae_weights.safetensors",
    "checkpoints/final.safetensors",
    "ae.pt",
    "weights.safetensors",
)
"""The names that weight files usually have, in the order in which a folder is searched for them."""
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_ENCODERS = ("w_enc", "encoder.weight")
MAX_LAYER = 10_000


@dataclass(frozen=True)
class Source:
    """A file or folder that someone wants read as an SAE. ``name`` is the hub's name of it, or its path.

    ``input_scale`` is the caller's word on what activations are multiplied by, for files that leave it open; ``of_set``
    is the configuration of the set that lists the file, wherever that lies.
    """

    path: Path
    name: str
    input_scale: float | None = None
    of_set: Mapping[str, Any] | None = None

    @cached_property
    def weights(self) -> Path | None:
        """The weight file: the one given, else that of the folder. ``None`` if the folder has none.

        Raises ``LensError`` for a folder with several SAEs, of which nothing says which is meant.
        """
        if self.path.is_file():
            return self.path
        usual = next((self.path / name for name in USUAL_NAMES if (self.path / name).is_file()), None)
        if usual is not None:
            return usual
        files = self._weight_files()
        found = files if len(files) == 1 else [file for file in files if self._is_sae(file)]
        if len(found) > 1:
            names = ", ".join(one_line(file.name, 40) for file in found[:5])
            raise LensError(f"{short_path(self.path)} holds several SAEs.", f"Give one of them: {names}.")
        return found[0] if found else None

    def _weight_files(self) -> list[Path]:
        """Weight files of other names; a single one is taken at its word, so that what is wrong with it is reported."""
        try:
            inside = sorted(file for file in self.path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        except OSError as error:
            raise LensError(
                f"{short_path(self.path)} cannot be read: {error.strerror}.", "Check permissions."
            ) from error
        return inside[:100]

    def _is_sae(self, file: Path) -> bool:
        try:
            return any(name.lower() in _ENCODERS for name in read_values(file))
        except LensError:
            return False

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.path if self.weights is None else self.weights.parent

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the weight file holds, by name."""
        return {} if self.weights is None else read_values(self.weights)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """The tensors of the weight file, by name."""
        return {name: value for name, value in self.values.items() if isinstance(value, Stored)}

    @cached_property
    def kind(self) -> str:
        """``safetensors``, ``npz`` or ``torch``: what the weight file is, whatever its name says."""
        return "" if self.weights is None else container(self.weights)

    @property
    def file(self) -> Path:
        """The weight file, once it is known that there is one."""
        assert self.weights is not None
        return self.weights

    def has(self, *names: str) -> bool:
        """Whether the weight file has tensors of all these names."""
        return all(name in self.tensors for name in names)

    def is_named(self, *names: str) -> bool:
        """Whether the weight file has one of these names."""
        return self.weights is not None and self.weights.name in names

    def config(self, *names: str) -> dict[str, Any]:
        """The first of some JSON files beside the weights; empty if there is none."""
        found = self.config_file(*names)
        return {} if found is None else self._read(found)

    def config_file(self, *names: str) -> Path | None:
        """Where the first of some JSON files is: beside the weights, or above a folder ``checkpoints``."""
        homes = [self.folder, *([self.folder.parent] if self.folder.name == "checkpoints" else [])]
        places = (home / name for home in homes for name in names)
        return next((place for place in places if place.is_file()), None)

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._configs:
            self._configs[path] = read_json(path)
        return self._configs[path]

    @cached_property
    def _configs(self) -> dict[Path, dict[str, Any]]:
        return {}

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
        if name in ("layer", "layer_out") and not 0 <= value < MAX_LAYER:
            self.provenance.setdefault(name, one_line(f"not known: {where} is {value!r}", 160))
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
    """A file format: its name, how it is recognised (by the names of tensors and the configuration), how it is read."""

    name: str
    recognises: Callable[[Source], bool]
    read: Reader
    usual: tuple[str, ...] = ()
    """Names that its weight files usually have: a missing tensor is named by them."""


def pick(tensors: dict[str, Stored], path: Path, *names: str) -> Stored:
    """The first tensor that is there under one of its names. Raises ``LensError`` if none is."""
    for name in names:
        if name in tensors:
            return tensors[name]
    there = ", ".join(sorted(one_line(name, 30) for name in tensors)[:6]) or "nothing"
    raise LensError(
        f"{short_path(path)} has no tensor {names[0]} (it has {there}).", "It is damaged or of another format."
    )


def number(config: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A finite number of a configuration. Raises ``LensError`` if it is missing or none."""
    value = config.get(key, default)
    if not _is_number(value):
        said = "is missing" if value is None else f"is {one_line(repr(value), 30)}, not a number"
        raise LensError(f"{key} of {where} {said}.", "It is damaged or of another format.")
    return float(value)


def whole(config: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number from 1 up of a configuration. Raises ``LensError`` for anything else."""
    value = number(config, key, where)
    if value != int(value) or not 1 <= value < 1 << 53:
        raise LensError(f"{key} of {where} is {value:g}, not a whole number from 1 up.", "It is damaged.")
    return int(value)


def positive(value: Any, name: str, where: str, hint: str = "Fetch it again.") -> float:
    """A scaling or a mean length: a positive number of a size that some model has. Raises ``LensError``."""
    if not _is_number(value) or not _SMALLEST <= value <= 1 / _SMALLEST:
        raise LensError(
            f"{name} of {where} is {one_line(repr(value), 30)}, which is not a scaling.",
            hint,
        )
    return float(value)


_SMALLEST = 1e-8


def real(value: Any) -> float | None:
    """What a configuration declares as a number from 0 up; ``None`` for anything else."""
    return float(value) if _is_number(value) and value >= 0 else None


def natural(value: Any) -> int | None:
    """What a configuration declares as a whole number from 0 up; ``None`` for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1 << 1000  # a longer integer is not a float, and neither is NaN smaller


def check_sizes(config: Mapping[str, Any], where: str, sizes: Mapping[str, int], unset: Iterable[Any] = ()) -> None:
    """Raise ``LensError`` if a configuration declares a size that the tensors do not have. ``unset`` says nothing."""
    for key, size in sizes.items():
        said = config.get(key)
        if _is_number(said) and said not in unset and said != size:
            raise LensError(
                f"{key} of {where} is {one_line(repr(said), 30)}; its tensors say {size}.",
                "The configuration is of another SAE, or damaged.",
            )


def input_scale(source: Source, declared: Any, name: str = "") -> float:
    """What activations are multiplied by, so that their mean length is ``sqrt(d)``; ``name`` is the field of the file.

    Raises ``LensError`` if neither the file nor the caller says it: without it every number would be wrong.
    """
    if declared is not None:
        try:
            hint = "Fetch it again, or give input_scale= if you know it."
            return positive(declared, name, short_path(source.folder), hint)
        except LensError:
            if source.input_scale is None:
                raise
    if source.input_scale is not None:
        return positive(source.input_scale, "input_scale", "the call", "Give a positive number.")
    raise LensError(
        f"{short_path(source.path)} expects scaled activations, and the scale is not in its files.",
        "Give input_scale=: sqrt(d) over the mean length of an activation, or 1.0 if it is folded into the weights.",
    )
