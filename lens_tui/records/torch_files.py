"""Tensors of a ``torch.save`` file without torch, and without running what it asks for.

A ``.pt`` is a zip with a pickle that names tensors and one raw file for each storage. Of the pickle only
the handful of calls that tensors are made of is understood; anything else it asks for is refused by name.
The pure-Python unpickler is used: its memo is a dict, so that a hostile index takes no memory.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .file_arrays import MAX_DIMENSIONS, FileArray, OpenFile, file_array, member_place
from .read_files import AGAIN, explained, open_zip, read_member, short_path
from .sanitise import one_line

_MAX_PICKLE = 1 << 20
"""Bytes of the index of tensors: a thousand tensors take a tenth of it, and a list in it is one byte."""
_STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _Kind:
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    array: FileArray
    bfloat16: bool


@dataclass(frozen=True, eq=False)
class TorchTensor:
    """A tensor of the file, not read yet; bfloat16 is held as its bits (uint16), for NumPy has no such type."""

    array: FileArray | Strided
    bfloat16: bool = False

    def float32(self) -> NDArray[np.float32]:
        """The values in memory as float32 (NaN and infinity as they are)."""
        values = np.asarray(self.array)
        if self.bfloat16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return values.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Strided:
    """A tensor whose entries lie neither row by row nor column by column in its storage."""

    stored: FileArray
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        flat = self.stored.take()
        steps = tuple(step * flat.itemsize for step in self.strides)
        made = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False))
        return made if dtype is None else made.astype(dtype, copy=False)


class Fields:
    """An object of a class that the caller allowed: the values of its fields. Its class was never imported."""

    values: dict[str, Any]

    def __new__(cls, *_: Any) -> Fields:
        """Empty, whatever the file wants it to be made of."""
        made = super().__new__(cls)
        made.values = {}
        return made

    def __init__(self, *_: Any) -> None:
        """What a file gives is taken as fields only."""


def load_torch(path: Path, objects: Sequence[str] = ()) -> Any:
    """What a ``.pt`` file holds, its tensors as :class:`TorchTensor`.

    ``objects`` are full names of classes whose instances are read as
    :class:`Fields`; no code of theirs is run. Raises ``LensError`` for a file that
    is not a zip, is cut short, or asks for anything but tensors and these.
    """
    with explained(path):
        try:
            with open_zip(path) as archive:
                return _Reader(path, archive, frozenset(objects)).load()
        except LensError as error:
            if not isinstance(error.__cause__, zipfile.BadZipFile):
                raise
            hint = "Files of torch before 1.6 must be saved again; a partial download must be fetched again."
            raise LensError(f"{short_path(path)} is not a complete torch file.", hint) from error


class _Reader(pickle._Unpickler):
    """Knows tensors and nothing else."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, objects: frozenset[str]) -> None:
        members = {member.filename.split("/", 1)[-1]: member for member in archive.infolist()}
        pickled = members.get("data.pkl")
        if pickled is None:
            raise LensError(f"{short_path(path)} contains no torch tensors.", AGAIN)
        if "byteorder" in members and read_member(path, archive, members["byteorder"], 64)[:8] != b"little":
            raise LensError(
                f"{short_path(path)} was written on a big-endian machine.", "Save it again on another machine."
            )
        super().__init__(io.BytesIO(read_member(path, archive, pickled, _MAX_PICKLE)), encoding="utf-8")
        self._path, self._members, self._objects = path, members, objects
        self._file = OpenFile(path)

    def find_class(self, module: str, name: str) -> Any:
        """Only what tensors are made of."""
        if module == "torch" and name in _STORAGES:
            return _Kind(name)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if f"{module}.{name}" in self._objects:
            return Fields
        wanted = one_line(f"{module}.{name}", 60)
        raise LensError(
            f"{short_path(self._path)} asks for {wanted}, which is more than tensors; it was not run.",
            "Use a safetensors version of it.",
        )

    def load_build(self) -> None:
        """Attributes set on an object: kept as plain values of :class:`Fields`, else dropped; nothing is set."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        made = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(made, Fields) and isinstance(state, dict):
            made.values = state

    def load_setitem(self) -> None:
        """One entry of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._put([key, value])

    def load_setitems(self) -> None:
        """Entries of a dictionary."""
        self._put(self.pop_mark())  # type: ignore[attr-defined]

    def _put(self, items: list[Any]) -> None:
        # Hashing tuples of tuples of the same tuple takes forever.
        if not all(type(key) in (str, int) for key in items[::2]):
            raise ValueError("a key that is neither text nor a number")
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, dict):
            raise ValueError("entries without a dictionary")
        target.update(zip(items[::2], items[1::2], strict=True))

    def refuse(self) -> None:
        """Sets, and what only old protocols have: never in a tensor file."""
        raise ValueError("more than tensors")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: refuse,
        pickle.BYTEARRAY8[0]: refuse,  # as long as the file says, made before its bytes are there
        pickle.EMPTY_SET[0]: refuse,
        pickle.ADDITEMS[0]: refuse,
        pickle.FROZENSET[0]: refuse,
    }

    def get_extension(self, code: int) -> None:
        """Codes of copyreg's registry: never in a tensor file."""
        raise LensError(
            f"{short_path(self._path)} asks for more than tensors; it was not run.", "Use a safetensors version."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: its kind, the name of its file, and how many entries it has."""
        tag, kind, key, _, count = pid
        member = self._members.get(f"data/{key}") if isinstance(key, str) and len(key) < 100 else None
        if tag != "storage" or not isinstance(kind, _Kind) or member is None or type(count) is not int:
            raise LensError(f"{short_path(self._path)} names a tensor that is not in it.", AGAIN)
        array = file_array(self._file, _STORAGES[kind.name], (count,), *member_place(self._file, member))
        return _Storage(array, kind.name == "BFloat16Storage")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TorchTensor:
    if not isinstance(storage, _Storage) or not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise ValueError("tensor")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("tensor")
    count = math.prod(shape)
    end = offset + 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    # A step of 0 would make a tensor of any size out of one number.
    if not 0 < count <= storage.array.size or end > storage.array.size:
        raise ValueError("tensor outside its storage")
    shape, strides = tuple(shape), tuple(strides)
    # An axis of one entry may have any stride.
    steps = [(at, step) for at, (size, step) in enumerate(zip(shape, strides, strict=True)) if size > 1]
    rows, columns = _packed(shape), _packed(shape[::-1])[::-1]
    if all(rows[at] == step for at, step in steps):
        return TorchTensor(storage.array.part(offset, shape), storage.bfloat16)
    if all(columns[at] == step for at, step in steps):
        return TorchTensor(storage.array.part(offset, shape[::-1]).T, storage.bfloat16)
    return TorchTensor(Strided(storage.array.part(offset, (end - offset,)), shape, strides), storage.bfloat16)


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of an array whose entries lie row by row."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _parameter(data: Any, *_: Any) -> Any:
    return data


# What follows makes something of its arguments; a file may give it what it made before, again and again.


def _ordered(*args: Any) -> OrderedDict[Any, Any]:
    if args:
        raise ValueError("a dictionary out of another")
    return OrderedDict()


def _size(values: Any = ()) -> tuple[Any, ...]:
    if len(values) > MAX_DIMENSIONS:
        raise ValueError("too many dimensions")
    return tuple(values)


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or type(index) is not int:
        raise ValueError("a device")
    return f"{kind[:16]}:{index}"


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
