"""Steering vectors as files of many tools: one record out of each, and back where the format can hold it.

======================  ============  ==============================================================
file                    read, write   layers
======================  ============  ==============================================================
``.safetensors``        both          ours: as in the records; others': keys as in a dictionary
``.gguf`` (repeng)      both          ``direction.L`` is the output of block L, counted from 0
``.json`` (vLLM-Lens)   both          ``layer_indices``, outputs of blocks, counted from 0
``.npz``                both          keys as in a dictionary
``.npy``                both          rows of a matrix, or the layer that is given
``.pt``, ``.pth``       read          CAA's file name, keys of steering-vectors and dictionaries,
                                      rows of a matrix
======================  ============  ==============================================================

What keys, rows and positions mean is found in ``common`` from the shape and the model, or asked for. This is the
one reader of library, command line and app. No file is unpickled into anything but tensors. Formats without a unit
direction get the vector at its own length (``direction * norm``), so that a coefficient of 1 means the same there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import disk, paths
from ..errors import LensError
from ..info import ModelInfo
from ..read_files import explained, open_regular, short_path
from ..sanitise import one_line
from ..steering_vector import Origin, SteeringVector
from . import arrays, gguf, own, vllm_lens
from .common import Ask, Found, Rows, place_facts, records
from .own import check_fits_model, file_names, read_one, write_one

__all__ = [
    "READERS",
    "SUFFIXES",
    "WRITERS",
    "VectorFile",
    "keep_vector",
    "list_vectors",
    "load_one",
    "load_vectors",
    "save_vectors",
    "sniff",
    "vector_file",
]

OURS = "mlx-lens-tui"
READERS: dict[str, Callable[[Path], Found]] = {
    "safetensors": own.read_others,
    "repeng-gguf": gguf.read,
    "vllm-lens-json": vllm_lens.read,
    "npy": arrays.read_npy,
    "npz": arrays.read_npz,
    "torch": arrays.read_pt,
}
WRITERS: dict[str, Callable[[Path, Sequence[SteeringVector]], bytes]] = {
    ".safetensors": own.write,
    ".gguf": gguf.write,
    ".json": vllm_lens.write,
    ".npy": arrays.write_npy,
    ".npz": arrays.write_npz,
}
SUFFIXES = (*WRITERS, ".pt", ".pth")


def load_vectors(
    path: Path | str,
    *,
    layer: int | None = None,
    name: str | None = None,
    position: int | None = None,
    rows: Rows | None = None,
    d_model: int | None = None,
    n_layers: int | None = None,
    model: ModelInfo | str | None = None,
) -> tuple[SteeringVector, ...]:
    """The vectors of a file of any known format, sorted by layer. The format is read off the first bytes.

    Args:
        path: the file; it may end in a name or a position (``FILE:NAME``, ``FILE:-1``).
        layer: the decoder block to take, from 0; it also gives the layer where the file does not.
        name: which entry, where the file has several.
        position: which token's row, where the file has one for each (negative: from the last).
        rows: what the rows of a matrix are: outputs of blocks, or ``hidden_states`` with the embedding first.
            Otherwise the number of rows says it, if ``n_layers`` is known.
        d_model: the model's width; a vector of another width is refused.
        n_layers: the model's number of blocks; layers beyond it are refused, and numbers that count from 1 understood.
        model: the model's :class:`ModelInfo` (``lens.info``), which stands for the two above as well, or its name.
            A vector that names another model is refused.

    Returns:
        the vectors; ``origin.facts`` say where each is from (``path``, ``name``, ``row``, ``position``).

    Raises:
        LensError: for NaN, a zero vector, a choice left open, and files that hold no vectors.
    """
    if isinstance(model, ModelInfo):
        d_model, n_layers, model = d_model or model.d_model, n_layers or model.n_layers, model.name
    file, words = vector_file(path)
    words = (*words, *([] if name is None else [name]), *([] if position is None else [str(position)]))
    ask = Ask(layer, words, rows, d_model, n_layers)
    kind = sniff(file)
    found = own.read(file) if kind == OURS else None
    if found is None:
        kind = "safetensors" if kind == OURS else kind
        with explained(file):
            found = records(file, kind, READERS[kind](file), ask)
    else:
        found = _ours(file, found, ask)
    for vector in found:
        check_fits_model(vector, d_model=d_model, model=model)
        if n_layers is not None and not 0 <= vector.layer < n_layers:
            where = f"layer {vector.layer}; the model's layers are 0 to {n_layers - 1}"
            raise LensError(f"{short_path(file)} is for {where}.", "Use one made for this model.")
    return found


def load_one(
    path: Path | str,
    *,
    layer: int | None = None,
    elsewhere: bool = False,
    d_model: int | None = None,
    n_layers: int | None = None,
) -> SteeringVector:
    """The one vector that a path names, as :func:`load_vectors` reads it: for an arm, a row of the bench, a sum.

    ``elsewhere``: a file of one vector may name another layer than ``layer``; the vector keeps its own, and the caller
    acts with it where it likes.
    """
    try:
        found = load_vectors(path, layer=layer, d_model=d_model, n_layers=n_layers)
    except LensError:
        if layer is None or not elsewhere:
            raise
        found = load_vectors(path, d_model=d_model, n_layers=n_layers)
        if len(found) != 1:
            raise
    if len(found) != 1:
        layers = sorted({vector.layer for vector in found})
        listed = ", ".join(map(str, layers[:40]))
        hint = (
            f"Say which layer: it has {listed} (FILE@LAYER in --arm)."
            if len(layers) > 1
            else f"Say which: {', '.join(one_line(vector.name, 40) for vector in found[:8])} (FILE:NAME)."
        )
        name = one_line(vector_file(path)[0].name, 80)
        raise LensError(f"{name} holds {len(found)} vectors, and this takes one at a time.", hint)
    return found[0]


def vector_file(path: Path | str) -> tuple[Path, tuple[str, ...]]:
    """A file, and what follows it: ``FILE``, ``FILE:NAME``, ``FILE:POSITION`` or ``FILE:NAME:POSITION``."""
    whole = rest = os.fspath(path)
    words: list[str] = []
    for _ in range(2):
        if os.path.lexists(rest) or ":" not in rest:
            break
        rest, _, word = rest.rpartition(":")
        words.insert(0, word)
    return (Path(rest), tuple(words)) if words and os.path.lexists(rest) else (Path(whole), ())


def _ours(file: Path, found: Sequence[SteeringVector], ask: Ask) -> tuple[SteeringVector, ...]:
    """Our own vectors, with where the file is; what they say of themselves is not changed."""
    for word in ask.words:
        names = [vector.name for vector in found]
        if word not in names:
            hint = f"It has {', '.join(one_line(name, 40) for name in names[:8])}."
            raise LensError(f"{short_path(file)} has no vector named {one_line(word, 40)!r}.", hint)
        found = [vector for vector in found if vector.name == word]
    picked = [vector for vector in found if ask.layer is None or vector.layer == ask.layer]
    if not picked:
        raise LensError(f"{short_path(file)} has no vector for layer {ask.layer}.", "Choose another layer.")
    several = {"name": ask.words[0]} if ask.words else {}
    return tuple(
        replace(
            vector,
            origin=Origin(
                vector.origin.kind, {**vector.origin.facts, **several, **place_facts(file, vector.direction)}
            ),
        )
        for vector in picked
    )


def save_vectors(vectors: SteeringVector | Sequence[SteeringVector], path: Path | str | None = None) -> Path:
    """Write vectors in the format of the path's suffix; returns the file.

    Without a path, one vector goes to the user's vectors folder under a name made from its own, numbered if that is
    taken. Raises :class:`LensError` for an unknown suffix, and where the format cannot hold them (several of one
    layer, another site than ``resid_post``).
    """
    several = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    if path is None and len(several) == 1:
        return write_one(several[0])
    if path is None:
        raise LensError("Several vectors need a file.", "Give a path.")
    file = Path(path)
    if file.suffix.lower() not in WRITERS:
        known = ", ".join(WRITERS)
        raise LensError(f"Vectors are not written as {file.suffix or 'a file without suffix'!r}.", f"Use {known}.")
    if not several:
        raise LensError("There is no vector to save.", "Give at least one.")
    if file.suffix.lower() == ".safetensors" and len(several) == 1:
        return write_one(several[0], file)
    disk.write_bytes(file, WRITERS[file.suffix.lower()](file, several))
    return file


def sniff(path: Path) -> str:
    """The format of a file: ``mlx-lens-tui`` or a key of :data:`READERS`, by its first bytes and suffix."""
    with explained(path), open_regular(path) as file:
        head = file.read(64)
    suffix = path.suffix.lower()
    if head.startswith(gguf.MAGIC):
        return "repeng-gguf"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK"):
        return "npz" if suffix == ".npz" else "torch"
    if suffix == ".safetensors" or head[8:9] == b"{":
        return OURS
    if head.lstrip()[:1] == b"{":
        return "vllm-lens-json"
    if suffix in (".pt", ".pth", ".bin"):
        return "torch"
    raise LensError(f"{short_path(path)} is not a vector file of a known format.", f"Known: {', '.join(WRITERS)}, .pt.")


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """A file of the vectors folder: the vector it holds, or why it is not known which that is."""

    path: Path
    vector: SteeringVector | None
    problem: str = ""


def keep_vector(vector: SteeringVector) -> Path:
    """The file of the vectors folder that holds this vector; it is written if there is none.

    Of files named after it the first whose direction, layer and site are the same is taken, so that asking again makes
    no second one. Raises :class:`LensError` if the disk refuses.
    """
    for file in file_names(paths.vectors_folder(), vector.name):
        if not file.exists():
            return write_one(vector, file)
        try:
            held = read_one(file)
        except LensError:
            continue
        if (held.layer, held.site) == (vector.layer, vector.site) and np.array_equal(held.direction, vector.direction):
            return file
    raise LensError(f"The vectors folder has no name left for {vector.name!r}.", "Give it another name.")


def list_vectors(folder: Path | None = None) -> list[VectorFile]:
    """The vector files of a folder (the user's own by default), of any format, by name.

    Those that do not give one vector without being asked which, or cannot be read, come with the reason.
    """
    found = []
    for file in sorted((folder or paths.vectors_folder()).glob("*")):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        try:
            found.append(VectorFile(file, load_one(file)))
        except LensError as error:
            found.append(VectorFile(file, None, one_line(str(error), 300)))
    return found
