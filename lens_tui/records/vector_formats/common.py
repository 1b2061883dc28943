"""What every vector format shares: arrays with the names a file gives them, made into records of one layer each.

Files hold more than vectors by layer, and few say what their axes are. Found from the shape, given the model:

- ``(d_model,)``: one vector;
- ``(n_layers, d_model)``: row L is the output of block L;
- ``(n_layers + 1, d_model)``: ``hidden_states`` of transformers, row 0 the embedding, row L the output of block L - 1
  (persona-vectors' ``*_response_avg_diff.pt``, which are known by their names too);
- ``(positions, n_layers, d_model)``, or layers first: one position is to be named;
- entries whose numbers reach ``n_layers``: counted from 1, or ``hidden_states`` again.

What a shape leaves open is asked for, never guessed, and nothing is flattened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..read_files import AGAIN, read_bytes, short_path
from ..sanitise import one_line
from ..steering_vector import Origin, SteeringVector

MAX_BYTES = 128 << 20
"""Of a file of vectors, and of what it unpacks to: ten times what 128 layers of the widest models take."""
MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 18
Row = NDArray[Any]
Rows = Literal["blocks", "hidden_states"]
_HIDDEN_STATES = re.compile(r"_(?:response_avg|prompt_avg|prompt_last)_diff$")


@dataclass(frozen=True, eq=False)
class NamedArray:
    """An array of a file: its name and its layer, ``""`` and ``None`` where the file gives none."""

    name: str
    layer: int | None
    array: Row


@dataclass(frozen=True, eq=False)
class Found:
    """What a file holds before it is checked.

    ``counted`` says that its layers are those of the records, by the format's own rule; elsewhere numbers may count
    from 1. ``facts`` are what else it says, as plain JSON data.
    """

    entries: Sequence[NamedArray]
    site: str = "resid_post"
    model: str = ""
    counted: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a file, and what is known of the model it is for.

    ``words`` are the name of an entry and the number of a position, in any order. ``layer`` counts blocks from 0.
    """

    layer: int | None = None
    words: tuple[str, ...] = ()
    rows: Rows | None = None
    d_model: int | None = None
    n_layers: int | None = None


def records(path: Path, kind: str, found: Found, ask: Ask) -> tuple[SteeringVector, ...]:
    """The records of a file, by layer. ``ask.layer`` stands in where the file names none, and picks one elsewhere."""
    if not found.entries:
        raise LensError(f"{short_path(path)} contains no vector.", AGAIN)
    name, position, entries = _chosen(path, found, ask)
    rows = [row for entry in entries for row in _by_layer(path, entry, position, ask)]
    if position is not None and not any("position" in facts for _, _, facts in rows):
        raise LensError(f"{short_path(path)} has no positions to choose from.", "Leave the position out.")
    if any(at is None for at, _, _ in rows):
        if ask.layer is None:
            hint = f"Say it: FILE@LAYER in --arm, layer= in Python{_of_layers(ask)}."
            raise LensError(f"{short_path(path)} does not say which layer its vector is for.", hint)
        rows = [(ask.layer if at is None else at, row, facts) for at, row, facts in rows]
    layers = [at or 0 for at, _, _ in rows]
    if not found.counted and all(entry.layer is not None for entry in entries) and _counts_from_1(layers, ask):
        rows = [((at or 0) - 1, row, facts) for at, row, facts in rows if at]  # 0 would be the embedding
        layers = [at - 1 for at in layers if at]
    if wrong := next((at for at in layers if not 0 <= at < MAX_LAYERS), None):
        raise LensError(f"{short_path(path)} names layer {wrong}.", "Layers count from 0.")
    if ask.layer is not None and ask.layer not in layers:
        known = ", ".join(str(at) for at in sorted(layers)[:12])
        raise LensError(f"{short_path(path)} has no vector for layer {ask.layer}.", f"It has layers {known}.")
    if len({row.shape for _, row, _ in rows}) > 1:
        raise LensError(f"{short_path(path)} holds vectors of different shapes.", AGAIN)
    stem = one_line(path.stem, 60) + (f" {one_line(name, 30)}" if name else "")
    made = []
    for at, row, facts in sorted(rows, key=lambda item: item[0] or 0):
        if ask.layer is None or at == ask.layer:
            named = {"name": name} if name else {}
            origin = Origin("file", {"format": kind, **place_facts(path, row), **named, **facts, **found.facts})
            called = f"{stem} L{at}" if len(rows) > 1 else stem
            made.append(SteeringVector.of(called, row, at or 0, site=found.site, model=found.model, origin=origin))
    return tuple(made)


def place_facts(path: Path, row: Row) -> dict[str, str]:
    """Where a vector was read from: what a command needs to name it again, and a hash of its numbers."""
    with np.errstate(over="ignore"):
        digest = hashlib.sha256(np.ascontiguousarray(row, dtype="<f4").tobytes()).hexdigest()
    return {"file": one_line(path.name, 120), "path": os.path.abspath(path), "sha256": digest}


def entry_of(key: Any, array: Row) -> NamedArray:
    """An array by its key in a dictionary: ``12``, ``layer_12``, ``blocks.12``, ``evil_layer_12``, or a name."""
    if type(key) is int:
        return NamedArray("", key, array)
    text = str(key)
    if re.fullmatch(r"[0-9]{1,5}", text):
        return NamedArray("", int(text), array)
    found = _LAYER.fullmatch(text)
    if found is None:
        return NamedArray(text, None, array)
    return NamedArray(found["name"].strip(" ._-/"), int(found["layer"]), array)


_LAYER = re.compile(
    r"(?P<name>(?:.*[^a-z])?)(?:layers?|blocks?|direction|h|l)[ ._-]?(?P<layer>[0-9]{1,5})(?:\.hook_resid_post)?",
    re.IGNORECASE | re.DOTALL,
)


def _chosen(path: Path, found: Found, ask: Ask) -> tuple[str, int | None, list[NamedArray]]:
    """The name and the position that are asked for, and the entries of that name."""
    known = list(dict.fromkeys(entry.name for entry in found.entries))
    name, position = None, None
    for word in ask.words:
        if word in known and name is None:
            name = word
        elif re.fullmatch(r"-?[0-9]{1,4}", word) and position is None:
            position = int(word)
        else:
            hint = f"It has {_listed(known)}." if any(known) else "It has vectors without names."
            raise LensError(f"{short_path(path)} has no vector named {one_line(word, 40)!r}.", hint)
    if name is None and len(known) > 1:
        hint = "Say which: FILE:NAME@LAYER in --arm, FILE:NAME in a form, name= in Python."
        raise LensError(f"{short_path(path)} holds vectors named {_listed(known)}.", hint)
    entries = [entry for entry in found.entries if name is None or entry.name == name]
    return (name or known[0]) if len(known) > 1 else "", position, entries


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(one_line(name, 40) or "(none)" for name in names[:8])
    return listed + (f" and {len(names) - 8} more" if len(names) > 8 else "")


Layered = list[tuple[int | None, Row, dict[str, Any]]]


def _by_layer(path: Path, entry: NamedArray, position: int | None, ask: Ask) -> Layered:
    """The vectors of an entry with their layers, as the file counts them."""
    array, facts = entry.array, {}
    shape = array.shape
    if array.ndim == 0 or array.ndim > 3 or 0 in shape or shape[-1] > _MAX_WIDTH:
        raise LensError(
            f"{short_path(path)} holds an array of shape {_spell(shape)}.", "A vector has shape (d_model,)."
        )
    if ask.d_model is not None and shape[-1] != ask.d_model:
        raise LensError(
            f"{short_path(path)} holds an array of shape {_spell(shape)}: "
            f"it has width {shape[-1]}; the model's residual "
            f"stream has {ask.d_model}.",
            "Use one made for this model.",
        )
    array = array.reshape(*(size for size in shape[:-1] if size > 1), shape[-1])
    if array.ndim == 3 or (array.ndim == 2 and entry.layer is not None):
        axis = _position_axis(path, shape, ask) if array.ndim == 3 else 0
        array = np.take(array, _position(path, array.shape, axis, position), axis)
        facts = {"position": position}
    if array.ndim == 1:
        return [(entry.layer, array, facts)]
    first = _first_block(path, array.shape, ask)
    return [(at - first, row, {**facts, "row": at}) for at, row in enumerate(array) if at >= first]


def _position_axis(path: Path, shape: tuple[int, ...], ask: Ask) -> int:
    """Where the positions lie; the other of the first two axes is the layers'."""
    if ask.n_layers is None:
        return 0
    for axis in (0, 1):
        if shape[1 - axis] in (ask.n_layers, ask.n_layers + 1):
            return axis
    raise _no_layers(path, shape, ask.n_layers)


def _position(path: Path, shape: tuple[int, ...], axis: int, position: int | None) -> int:
    count = shape[axis]
    if position is None or not -count <= position < count:
        asked = "" if position is None else f", none of them {position}"
        raise LensError(
            f"{short_path(path)} holds an array of shape {_spell(shape)}, with vectors of {count} positions{asked}.",
            f"Say which, from 0 to {count - 1} or from -1 back: FILE:POSITION@LAYER in --arm, position= in Python.",
        )
    return position


def _first_block(path: Path, shape: tuple[int, ...], ask: Ask) -> int:
    """The row that is the output of block 0: the first, or the one after the embedding's."""
    rows: Rows | None = ask.rows or ("hidden_states" if _HIDDEN_STATES.search(path.stem) else None)
    count, n_layers = shape[0], ask.n_layers
    if rows is None and n_layers is None:
        raise LensError(
            f"{short_path(path)} holds {count} rows "
            f"and does not say whether the first is the embedding's or block 0's.",
            "Give the model's n_layers=, or rows='blocks' or 'hidden_states'.",
        )
    if n_layers is not None and count != n_layers + (rows == "hidden_states") and (rows or count != n_layers + 1):
        raise _no_layers(path, shape, n_layers)
    return int(rows == "hidden_states" or (rows is None and count != n_layers))


def _no_layers(path: Path, shape: tuple[int, ...], n_layers: int) -> LensError:
    return LensError(
        f"{short_path(path)} holds an array of shape {_spell(shape)}; "
        f"the model has {n_layers} layers, so it is neither "
        f"{n_layers} outputs of blocks nor {n_layers + 1} hidden states.",
        "Use one made for this model, or save one vector of shape (d_model,).",
    )


def _counts_from_1(layers: Sequence[int], ask: Ask) -> bool:
    """Whether numbers that a file gives are one too high for blocks from 0."""
    return ask.rows == "hidden_states" or (ask.n_layers is not None and max(layers, default=0) == ask.n_layers)


def _of_layers(ask: Ask) -> str:
    return "" if ask.n_layers is None else f"; the model's layers are 0 to {ask.n_layers - 1}"


def _spell(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''})"


def raw(vector: SteeringVector) -> NDArray[np.float32]:
    """The vector at its own length, which other tools apply with a coefficient of 1."""
    with np.errstate(over="ignore"):
        values = (vector.direction.astype(np.float64) * vector.norm).astype(np.float32)
    if not np.isfinite(values).all():
        raise LensError(f"The vector {one_line(vector.name, 60)} is too long for float32.", "Use .safetensors.")
    return values


def by_layer(vectors: Sequence[SteeringVector], kind: str, *, sites: Sequence[str] = ("resid_post",)) -> None:
    """Raise :class:`LensError` unless a format with one vector a layer can hold these."""
    if not vectors:
        raise LensError("There is no vector to save.", "Give at least one.")
    layers = [vector.layer for vector in vectors]
    if len(set(layers)) != len(layers):
        raise LensError(f"A {kind} file holds one vector per layer; layer {_twice(layers)} is there twice.")
    if len({vector.d_model for vector in vectors}) > 1 or len({vector.site for vector in vectors}) > 1:
        raise LensError(f"A {kind} file holds vectors of one width and one site.", "Save them separately.")
    if sites and vectors[0].site not in sites:
        raise LensError(f"A {kind} file holds vectors for {sites[0]}, not {vectors[0].site}.", "Use .safetensors.")


def read_whole(path: Path) -> bytes:
    """A whole file of at most 128 MB."""
    return read_bytes(path, MAX_BYTES)


def _twice(layers: Sequence[int]) -> int:
    return next(layer for layer in layers if layers.count(layer) > 1)
