"""What an index is made of: its settings, the identity of what was indexed, and the activation bins."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.file_arrays import FileArray, OpenFile, npy_array
from lens_tui.records.read_files import FileAbsent, read_json
from lens_tui.records.sanitise import one_line

FORMAT = 1

N_BINS = 40
"""Activation bins of half an octave each, the first and the last open-ended."""

LOWEST_LOG2 = -6
EDGES: NDArray[np.float32] = (np.float32(2.0) ** (LOWEST_LOG2 + np.arange(N_BINS + 1) // 2)).astype(np.float32)
EDGES[1::2] *= np.sqrt(np.float32(2.0))
EDGES.setflags(write=False)

N_OCTAVES = N_BINS // 2
"""Bins of the activation sample: an octave each."""

_SQRT2_MANTISSA = np.uint32(int(np.sqrt(np.float32(2.0)).view(np.uint32)) & 0x7FFFFF)

DEFINITIONS = {
    "active": "value > 0 in the SAE's own definition of its activations",
    "density": "active tokens / counted tokens; special tokens are in neither unless include_special",
    "sum": "exact to 2**-32 per value whatever the order; likewise sumsq",
    "histogram": f"{N_BINS} bins of half an octave from 2**{LOWEST_LOG2}; the first and last hold all beyond",
    "examples": "each document's strongest token, the strongest top_k documents; ties go to the earlier token",
    "sample": "per octave the sample_per_bin tokens of smallest hash(seed, document, offset, feature)",
}


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How an index is built; all of it goes into the index's key.

    ``top_k`` examples a feature, each with ``before`` and ``after`` tokens of
    context; ``sample_per_bin`` random tokens a feature in every octave of its
    activation; at most ``max_active`` features a token are read (tokens with
    more are counted and reported: four times L0 is a good choice). BOS and
    other special tokens are left out unless ``include_special``. ``full`` keeps
    every activation, by token and by feature (10 to 16 bytes each in all).
    """

    top_k: int = 20
    before: int = 12
    after: int = 7
    sample_per_bin: int = 3
    max_active: int = 256
    include_special: bool = False
    full: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "top_k": (self.top_k, 1, 10_000),
            "before": (self.before, 0, 4096),
            "after": (self.after, 0, 4096),
            "sample_per_bin": (self.sample_per_bin, 0, 1000),
            "max_active": (self.max_active, 1, 65_535),
            "seed": (self.seed, 0, 2**63 - 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise LensError(f"The index setting {name} is {value}.", f"Give it a value from {low} to {high}.")

    @property
    def window(self) -> int:
        """Tokens in a stored context window, the peak included."""
        return self.before + 1 + self.after


@dataclass(frozen=True, slots=True)
class Identity:
    """What was indexed. The hashes name contents; empty means that nobody computed them."""

    model: str
    model_hash: str
    precision: str
    sae: str
    sae_hash: str
    layer: int
    site: str
    width: int
    d_model: int
    corpus: str
    corpus_hash: str
    context: int
    bos: bool


def index_key(identity: Identity, settings: IndexSettings) -> str:
    """16 hex digits: the same for the same model, SAE, corpus, settings and definitions, and for nothing else."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "definitions": DEFINITIONS,
        "identity": asdict(identity),
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def bin_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each value (> 0), read off its exponent and mantissa, so that edges are exact."""
    bits = values.view(np.uint32)
    octave = (bits >> np.uint32(23)).astype(np.int64) - 127 - LOWEST_LOG2
    upper = (bits & np.uint32(0x7FFFFF)) >= _SQRT2_MANTISSA
    return np.clip(2 * octave + upper, 0, N_BINS - 1)


Unsigned = np.unsignedinteger[Any]

WHOLE = "iu"
"""For :func:`open_array`: whole numbers of any size. Indexes made before types were chosen hold some with a sign."""


TEXT = ("tokens", "special", "sequence_starts", "sequence_documents", "sequence_offsets")
"""What of an index is of its text alone: the same for every SAE over it."""
_SHARED = re.compile(r"text-[0-9a-f]{16}")


def narrow(numbers: NDArray[Any]) -> NDArray[Unsigned]:
    """Whole numbers from 0 up, in the smallest unsigned type that holds the largest of them."""
    return numbers.astype(kind_for(int(numbers.max(initial=0))), copy=False)


def kind_for(largest: int) -> np.dtype[Unsigned]:
    """The smallest unsigned type that holds 0 to ``largest``."""
    return np.dtype(np.min_scalar_type(largest))


def nobody(kind: np.dtype[Any]) -> int:
    """What fills a free place among token numbers: all bits set, which no token has as its number."""
    return int(np.iinfo(kind).max)


def called(folder: Path) -> str:
    """The name of an index, safe to show."""
    return f"the index {one_line(folder.name, 60)}"


def damaged(folder: Path, name: str) -> LensError:
    """What is raised for a file of an index whose numbers cannot be."""
    return LensError(f"The file {one_line(name, 60)} of {called(folder)} is damaged.", "Build it again.")


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of an index; raises :class:`LensError` if that would lie outside its folder."""
    try:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # an impossible name, links in a circle
        pass
    raise LensError(f"The manifest of {called(folder)} names a file outside it.", "Do not use it.")


def place_of(folder: Path, manifest: dict[str, Any], name: str) -> Path:
    """Where the file ``NAME.npy`` of an index is: in its folder or, of a text that several share, in that beside it."""
    if name in TEXT and "text" in manifest:
        return inside(folder.parent / str(manifest["text"]), f"{name}.npy")
    return inside(folder, f"{name}.npy")


def open_array(
    folder: Path, manifest: dict[str, Any], name: str, kind: Any, shape: tuple[int, ...] | None
) -> FileArray:
    """``NAME.npy``, not read yet. ``kind`` is a type or letters for kinds of type (``u``, ``f``, ``WHOLE``).

    Raises :class:`LensError` if its type is not that, nor what the manifest says of it, or its shape is another.
    """
    try:
        file = OpenFile(place_of(folder, manifest, name), keep=False)
        array = npy_array(file, 0, file.size)
    except LensError as error:
        message = f"The file {one_line(name, 60)}.npy of {called(folder)} cannot be read."
        raise LensError(message, "Build it again.") from error
    good = array.dtype.kind in kind if isinstance(kind, str) else array.dtype == kind
    good &= array.dtype.name == manifest.get("types", {}).get(f"{name}.npy", array.dtype.name)
    if not good or (shape is not None and array.shape != shape):
        raise damaged(folder, f"{name}.npy")
    return array


def types_of(folder: Path) -> dict[str, str]:
    """The type of every array below a folder, by file name; nothing but the files' headers is read."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.npy"))
    arrays = {name: open_array(folder, {}, name.removesuffix(".npy"), "biuf", None) for name in names}
    return {name: array.dtype.name for name, array in arrays.items()}


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``manifest.json`` says; raises :class:`LensError` where there is no index, or one of another version."""
    try:
        manifest = read_json(path / "manifest.json")
    except FileAbsent as error:
        where = one_line(str(path), 200)
        raise LensError(f"There is no index at {where!r}.", "Make one with `mlx-lens-tui index`.") from error
    except LensError as error:
        raise LensError(f"The manifest of {called(path)} is damaged.", "Build it again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise LensError(f"{called(path).capitalize()} is of another version.", "Build it again.")
    for name in ("types", "files"):
        if not isinstance(manifest.get(name, {}), dict):
            raise LensError(f"The manifest of {called(path)} is damaged: {name} is not an object.", "Build it again.")
    if "text" in manifest and not (isinstance(manifest["text"], str) and _SHARED.fullmatch(manifest["text"])):
        raise LensError(
            f"The manifest of {called(path)} is damaged: text names no folder of a text.", "Build it again."
        )
    return manifest


def octaves_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The octaves of activation that histogram and sample hold: first, and the one to end before."""
    first, end = manifest.get("octaves", (0, N_OCTAVES))
    if type(first) is not int or type(end) is not int or not 0 <= first < end <= N_OCTAVES:
        raise ValueError("octaves")
    return first, end
