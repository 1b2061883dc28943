"""Arrays inside files from anywhere, read when they are looked at. Sizes are checked before anything is read.

Nothing is mapped into memory: a mapped file that somebody cuts while it is in use ends the process with a signal,
where a read that comes up short is an error that can be reported.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .read_files import AGAIN, explained, open_regular, short_path

MAX_DIMENSIONS = 8
NUMBERS = "Only float and integer tensors can be read."

_MAX_NPY_HEADER = 64 << 10
_CHUNK = 16 << 20
"""Bytes of whole rows that are read at a time to cut some columns out of them."""
_READ_COST = 5000
"""A read of its own costs about as much as this many bytes more in another."""

Index = slice | NDArray[Any]


class OpenFile:
    """A file with arrays in it, read by place from any thread.

    It is kept open, and still read if another file takes its place; without ``keep`` it is opened for every read, for
    readers of many files, and has to be the same then. Raises ``LensError`` for what is not a regular file, and from
    :meth:`read` if the file has been changed.
    """

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        self.path = path
        file = open_regular(path)
        self._facts = _facts(os.fstat(file.fileno()))
        self.size = self._facts[2]
        self._file = file if keep else None
        if not keep:
            file.close()

    def __del__(self) -> None:
        if (file := self.__dict__.get("_file")) is not None:
            file.close()

    def read(self, start: int, nbytes: int) -> bytes:
        """``nbytes`` from ``start`` on."""
        self.check()
        buffer = bytearray(nbytes)
        self.fill(memoryview(buffer), start)
        return bytes(buffer)

    def fill(self, buffer: memoryview, start: int) -> None:
        """Read until ``buffer`` is full."""
        with explained(self.path):
            if self._file is not None:
                self._fill(self._file.fileno(), buffer, start)
                return
            with open_regular(self.path) as file:
                if _facts(os.fstat(file.fileno())) != self._facts:
                    raise self._stale()
                self._fill(file.fileno(), buffer, start)

    def _fill(self, handle: int, buffer: memoryview, start: int) -> None:
        done = 0
        while done < len(buffer):
            n = os.preadv(handle, [buffer[done : done + (1 << 30)]], start + done)
            if n == 0:
                raise self._stale()
            done += n

    def check(self) -> None:
        """Raise ``LensError`` if the file is not as it was when it was opened."""
        if self._file is not None and _facts(os.fstat(self._file.fileno())) != self._facts:
            raise self._stale()

    def _stale(self) -> LensError:
        return LensError(f"{short_path(self.path)} has changed on disk since it was opened.", "Load it again.")


class FileArray:
    """An array in a file: its shape and type are known, its numbers are read when they are taken.

    ``take`` and NumPy (``np.asarray``) give arrays in memory, in native byte order.
    """

    def __init__(self, file: OpenFile, dtype: np.dtype[Any], shape: tuple[int, ...], start: int) -> None:
        self.file, self._dtype, self._start, self._turned = file, dtype, start, False
        self._stored = shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self._dtype.newbyteorder("=")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._stored[::-1] if self._turned else self._stored

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._stored)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self._stored)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * self._dtype.itemsize

    @property
    def turned(self) -> bool:
        """Whether columns, not rows, lie together in the file."""
        return self._turned and self.ndim > 1

    @property
    def T(self) -> FileArray:
        """The transpose; nothing is read."""
        other = FileArray(self.file, self._dtype, self._stored, self._start)
        other._turned = not self._turned
        return other

    def part(self, start: int, shape: tuple[int, ...]) -> FileArray:
        """The entries from ``start`` on, counted as they lie in the file, as an array of another shape."""
        if start < 0 or start + math.prod(shape) > self.size:
            raise IndexError("outside the array")
        return FileArray(self.file, self._dtype, shape, self._start + start * self._dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | Index) -> NDArray[Any]:
        if isinstance(rows, int | np.integer):
            one: NDArray[Any] = self.take(np.array([rows]))[0]
            return one
        return self.take(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self.take()
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def fill(self, out: NDArray[Any], columns: slice) -> None:
        """Read some columns of a matrix into memory that is there, which spares finding and clearing it each time.

        ``out`` has their shape, :attr:`dtype`, and lies in memory as the matrix lies in the file. Raises ``ValueError``
        if it does not.
        """
        self.file.check()
        start, stop, step = columns.indices(self.shape[1])
        place = out.T if self._turned else out
        fits = out.shape == (self.shape[0], stop - start) and place.flags.c_contiguous and out.dtype == self.dtype
        if not fits or step != 1:
            raise ValueError(f"{out.dtype} of shape {out.shape} is not a place for these columns")
        if self._turned or stop - start == self.shape[1]:  # they lie together
            self.file.fill(_bytes_of(place), self._start + (start * self._row_bytes if self._turned else 0))
        else:
            for row, line in enumerate(place):
                self.file.fill(_bytes_of(line), self._start + row * self._row_bytes + start * self._dtype.itemsize)
        if not self._dtype.isnative:
            place.byteswap(inplace=True)

    def take(self, rows: Index | None = None, columns: Index | None = None) -> NDArray[Any]:
        """Some rows, or rows and columns of a matrix, in memory; all of them with ``None``."""
        self.file.check()
        if self._turned:
            if self.ndim == 2:
                return self.T.take(columns, rows).T
            return _cut(self.T.take().T, rows, columns)
        if columns is None or self.ndim != 2:
            return _cut(self._rows(rows), None, columns)
        return self._columns(np.arange(len(self)) if rows is None else _ids(rows, len(self)), columns)

    def _rows(self, rows: Index | None) -> NDArray[Any]:
        if self.ndim == 0 or rows is None:
            return self._read(self._start, self._stored)
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self._read_rows(start, max(stop, start))
        ids = _ids(rows, len(self))
        made = np.empty((len(ids), *self._stored[1:]), self.dtype)
        order = np.argsort(ids, kind="stable")
        sorted_ids = ids[order]
        gap = max(_READ_COST // max(self._row_bytes, 1), 1)
        for a, b in _runs(sorted_ids, gap):
            first = int(sorted_ids[a])
            made[order[a:b]] = self._read_rows(first, int(sorted_ids[b - 1]) + 1)[sorted_ids[a:b] - first]
        return made

    def _columns(self, rows: NDArray[np.int64], columns: Index) -> NDArray[Any]:
        item, width = self._dtype.itemsize, self._stored[1]
        if isinstance(columns, slice) and columns.step in (None, 1):
            start, stop, _ = columns.indices(width)
            if (stop - start) * item + _READ_COST < self._row_bytes:
                return self._spans(rows, [(start, max(stop, start))])
            return self._from_whole_rows(rows, columns)
        ids = _ids(columns, width)
        names, place = np.unique(ids, return_inverse=True)
        spans = [(int(names[a]), int(names[b - 1]) + 1) for a, b in _runs(names, _READ_COST // item)]
        if sum((b - a) * item + _READ_COST for a, b in spans) >= self._row_bytes:
            return self._from_whole_rows(rows, ids)
        held = np.concatenate([np.arange(a, b) for a, b in spans]) if spans else np.zeros(0, np.int64)
        return self._spans(rows, spans)[:, np.searchsorted(held, names)[place.reshape(-1)]]

    def _spans(self, rows: NDArray[np.int64], spans: list[tuple[int, int]]) -> NDArray[Any]:
        """Some stretches of columns side by side, each read by itself in every row."""
        parts = [np.empty((len(rows), b - a), self._dtype) for a, b in spans]
        for row, place in enumerate((self._start + rows * self._row_bytes).tolist()):
            for part, (a, _) in zip(parts, spans, strict=True):
                self.file.fill(_bytes_of(part[row]), place + a * self._dtype.itemsize)
        made = parts[0] if len(parts) == 1 else np.concatenate([np.empty((len(rows), 0), self._dtype), *parts], axis=1)
        return made.astype(self.dtype, copy=False)

    def _from_whole_rows(self, rows: NDArray[np.int64], columns: Index) -> NDArray[Any]:
        """Some columns, cut out of whole rows, of which few are held at a time."""
        parts = [np.empty((0, self._stored[1]), self.dtype)[:, columns]]
        step = max(_CHUNK // max(self._row_bytes, 1), 1)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            whole = int(some[-1]) - int(some[0]) + 1 == len(some) and bool((np.diff(some) == 1).all())
            held = self._read_rows(int(some[0]), int(some[-1]) + 1) if whole else self._rows(some)
            parts.append(held[:, columns])
        return np.concatenate(parts)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self._stored[1:]) * self._dtype.itemsize

    def _read_rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._read(self._start + start * self._row_bytes, (stop - start, *self._stored[1:]))

    def _read(self, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
        made = np.empty(shape, self._dtype)
        self.file.fill(_bytes_of(made), start)
        return made.astype(self.dtype, copy=False)


def _facts(found: os.stat_result) -> tuple[int, int, int, int]:
    """What tells a file from another, and from itself after a change."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def file_array(file: OpenFile, dtype: np.dtype[Any], shape: Sequence[int], start: int, nbytes: int) -> FileArray:
    """``nbytes`` of a file from ``start`` on as an array, not read yet. Raises ``LensError`` if they do not fit."""
    if len(shape) > MAX_DIMENSIONS:  # before any product of them is made
        raise LensError(f"A tensor of {short_path(file.path)} has {len(shape)} dimensions.", AGAIN)
    shape = tuple(shape)
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise LensError(
            f"A tensor of {short_path(file.path)} has {nbytes} bytes, not those of its shape {shape}.", AGAIN
        )
    if start + nbytes > file.size:
        raise LensError(f"{short_path(file.path)} is cut short: {file.size} bytes of {start + nbytes}.", AGAIN)
    return FileArray(file, dtype, shape, start)


def npy_array(file: OpenFile, start: int, nbytes: int) -> FileArray:
    """The array of an ``.npy`` that lies at ``start`` in a file and is ``nbytes`` long. Raises ``LensError``."""
    head = io.BytesIO(file.read(start, max(min(nbytes, _MAX_NPY_HEADER, file.size - start), 0)))
    try:
        shape, fortran, dtype = npy_header(head)
    except ValueError as error:
        raise LensError(f"{short_path(file.path)} has a damaged array header ({error}).", AGAIN) from error
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise LensError(f"{short_path(file.path)} holds an array of type {dtype}.", NUMBERS)
    begin = start + head.tell()
    found = file_array(file, dtype, shape[::-1] if fortran else shape, begin, start + nbytes - begin)
    return found.T if fortran else found


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of an ``.npy``; ``file`` stands at its first byte, then at its data.

    Raises ``ValueError`` for anything but the header of an array of plain numbers.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("not a NumPy file")
    counted = file.read(2 if magic[6] == 1 else 4)
    length = int.from_bytes(counted, "little")
    if length > _MAX_NPY_HEADER:  # NumPy reads it all before it looks
        raise ValueError("a header without end")
    header = io.BytesIO(counted + file.read(length))
    read = np.lib.format.read_array_header_1_0 if magic[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            shape, fortran, dtype = read(header)
    except Exception as error:  # the header is evaluated as Python, and it may be any kind of nonsense
        raise ValueError(f"{type(error).__name__} in the header") from error
    if dtype.hasobject or dtype.kind not in "biufc" or dtype.itemsize == 0:
        raise ValueError(f"it holds {str(dtype)[:40]}")
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("no shape of an array")
    return shape, fortran, dtype


def member_place(file: OpenFile, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of a member of a zip file begin and how many they are.

    Raises ``LensError`` if it is compressed, or not whole.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise LensError(f"{short_path(file.path)} is compressed.", "Save it again without compression (numpy.savez).")
    if not 0 <= member.header_offset <= file.size - 30:
        raise LensError(f"{short_path(file.path)} is damaged.", AGAIN)
    header = file.read(member.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise LensError(f"{short_path(file.path)} is damaged.", AGAIN)
    name, extra = struct.unpack("<HH", header[26:30])
    start, nbytes = int(member.header_offset + 30 + name + extra), int(member.file_size)
    if start + nbytes > file.size:
        raise LensError(f"{short_path(file.path)} is cut short: {file.size} bytes of {start + nbytes}.", AGAIN)
    return start, nbytes


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _ids(index: Index, n: int) -> NDArray[np.int64]:
    if isinstance(index, slice):
        return np.arange(*index.indices(n))
    ids = np.asarray(index)
    if ids.dtype == np.bool_:
        return np.flatnonzero(ids)
    ids = ids.astype(np.int64).reshape(-1)
    if ids.size and (ids.min() < -n or ids.max() >= n):
        raise IndexError(f"index out of range for {n} entries")
    return np.where(ids < 0, ids + n, ids)


def _runs(ids: NDArray[np.int64], gap: int) -> Iterator[tuple[int, int]]:
    """Stretches of sorted numbers with no more than ``gap`` from each to the next, as (first, end) of their places."""
    if not len(ids):
        return
    breaks = np.flatnonzero(np.diff(ids) > gap) + 1
    edges = [0, *breaks.tolist(), len(ids)]
    yield from pairwise(edges)


def _cut(array: NDArray[Any], rows: Index | None, columns: Index | None) -> NDArray[Any]:
    part = array if rows is None else array[rows]
    return part if columns is None else part[:, columns]
