"""A model's folder before anything is made of it: its config.json, the files beside it, what its weights hold. No MLX.

mlx-lm and transformers open whatever lies there under the names they know, however
large and of whatever kind, so everything is looked at here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LensError
from .read_files import (
    AGAIN,
    FileAbsent,
    check_json_object,
    explained,
    open_regular,
    parse_json,
    read_text,
    regular_size,
    short_path,
)
from .sanitise import one_line

MAX_CONFIG = 4 << 20
WEIGHTS = "model*.safetensors"
_LARGE = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "model.safetensors.index.json")
_MAX_LARGE = 128 << 20
_MAX_SMALL = 16 << 20
_MAX_HEADER = 100_000_000  # as safetensors itself
SIDECARS = ("*.json", "*.model", "*.txt", "*.jsonl", "*.jinja", "*.tiktoken", "additional_chat_templates/*")
"""What mlx-lm and transformers read of a model's folder beside its weights."""
_OBJECTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
_KEYS = {"tokenizer.json": ("model", "vocab")}
"""What a tokenizer of any kind has: without it the libraries would parse all of the file, for seconds, to no end."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d{1,9})(?:\.|$)")
_TYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class WeightHeaders:
    """What the headers of a model's weights say: each tensor's type and shape by its name."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def n_layers(self) -> int:
        """One more than the highest number of a block in the tensors' names; 0 where they have no numbers."""
        return max((int(found[1]) + 1 for name in self.tensors if (found := _LAYER.search(name))), default=0)

    @property
    def largest(self) -> int:
        """The largest dimension of any tensor, or how many there are if that is more."""
        return max(len(self.tensors), *(max(shape, default=0) for _, shape in self.tensors.values()), 1)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises :class:`LensError` in one sentence for whatever is there instead."""
    where = one_line(str(folder), 120)
    file = folder / "config.json"
    try:
        if regular_size(file) > MAX_CONFIG:
            raise LensError(f"{where} has a config.json of more than 4 MiB, which no model has.")
    except FileAbsent:
        if not folder.is_dir():
            raise LensError(f"{where} does not exist.", "Check the path, or give a hub id like org/name.") from None
        raise LensError(f"{where} is not a model: it has no config.json.", _no_config(folder)) from None
    try:
        config = _plain_floats(parse_json(read_text(file, MAX_CONFIG), "it", AGAIN))
    except LensError as error:
        raise LensError(f"{where}/config.json cannot be read: {error.message}", error.hint) from error
    if not isinstance(config, dict):
        raise LensError(f"{where}/config.json is not a JSON object.", "Fetch the model again.")
    return config


def check_sidecars(folder: Path) -> None:
    """Raise :class:`LensError` for a file that mlx-lm or transformers would open and that no model has: a pipe,
    a device, gigabytes where a few hundred kilobytes belong, JSON of another kind."""
    for pattern in SIDECARS:
        for file in sorted(folder.glob(pattern)):
            if file.is_dir():
                continue
            if file.is_symlink() and not file.exists():
                if file.name in _OBJECTS:
                    raise LensError(f"{short_path(file)} is a broken link.", "Fetch the model again.")
                continue
            limit = _MAX_LARGE if file.name in _LARGE or file.suffix == ".tiktoken" else _MAX_SMALL
            regular_size(file, limit)
            if file.name in _OBJECTS:
                check_json_object(file, limit, _KEYS.get(file.name, ()))


def read_weights(folder: Path) -> WeightHeaders:
    """The headers of ``model*.safetensors``. Raises :class:`LensError` for none, and for a file that is cut short."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise LensError("It has no weights that mlx-lm loads.", no_weights(folder))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        tensors.update(_header(file))
    return WeightHeaders(tensors)


def no_weights(folder: Path) -> str:
    """Why there are no ``model*.safetensors``, and what would help."""
    if any(folder.glob("*.gguf")):
        return "Its weights are not in mlx-lm's format but GGUF: look for a safetensors version."
    if any(folder.glob("*.safetensors")):
        return f"Its weights are not in mlx-lm's format: they are not named {WEIGHTS}."
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return "Its weights are not in mlx-lm's format but PyTorch's: look for a safetensors version."
    return "The folder has no weights (model*.safetensors)."


def _plain_floats(value: Any) -> Any:
    """The numbers that transformers writes as ``{"__float__": "Infinity"}``, in lists and objects too."""
    if isinstance(value, dict):
        tag = value.get("__float__") if len(value) == 1 else None
        if tag in ("Infinity", "-Infinity", "NaN"):
            return float(tag)
        return {key: _plain_floats(item) for key, item in value.items()}
    return [_plain_floats(item) for item in value] if isinstance(value, list) else value


def _no_config(folder: Path) -> str:
    if any(folder.glob("*.gguf")):
        return "GGUF files are not loaded: look for a safetensors version."
    return "Give a folder in mlx-lm's format or a hub id like org/name."


def _header(file: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    with explained(file), open_regular(file) as opened:
        size = regular_size(file)
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise LensError(f"{short_path(file)} is not a safetensors file, or is cut short.", "Fetch the model again.")
        found = parse_json(opened.read(length), short_path(file), AGAIN)
    if not isinstance(found, dict):
        raise LensError(f"{short_path(file)} is not a safetensors file.", "Fetch the model again.")
    for name, facts in found.items():
        if name != "__metadata__":
            yield name, _tensor(file, name, facts, size - 8 - length)


def _tensor(file: Path, name: str, facts: Any, room: int) -> tuple[str, tuple[int, ...]]:
    try:
        kind, shape, (start, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
        whole = [*shape, start, end]
        right = len(shape) <= 8 and all(type(number) is int and 0 <= number < 1 << 53 for number in whole)
        count = _TYPES.get(kind, 0)
        for number in shape if right else ():
            count *= number
        right = right and end <= room and (kind not in _TYPES or count == end - start)
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        what = (
            f"The tensor {one_line(name, 80)} of {short_path(file)} is cut short, or does not have the declared shape."
        )
        raise LensError(what, "Fetch the model again.")
    return str(kind), tuple(shape)
