"""Tensors of weight files, read only where they are looked at, and checked there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.file_arrays import FileArray

Index = slice | NDArray[np.int64]

LARGEST = 1e12
"""No weight is larger: products of such with activations, and of those with such, are within float32."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor on disk or in memory; bfloat16 is held as its bits (uint16), since NumPy has no such type.

    ``array`` is usually in a file: what is not read takes no memory of ours. With ``scales``, of shape ``(rows, 1)``
    or ``(1, columns)``, the matrix is ``array * scales``: 8-bit integers with one scale a latent. No number read may
    be larger in size than ``bound``.
    """

    name: str
    array: NDArray[Any] | FileArray
    bfloat16: bool = False
    scales: NDArray[np.float32] | None = None
    bound: float = LARGEST

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as in the file."""
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(self.array.nbytes) + (0 if self.scales is None else int(self.scales.nbytes))

    @property
    def T(self) -> Stored:
        """The transpose; nothing is copied."""
        return replace(self, array=self.array.T, scales=None if self.scales is None else self.scales.T)

    @property
    def turned(self) -> bool:
        """Whether columns, not rows, lie together."""
        if isinstance(self.array, FileArray):
            return self.array.turned
        return self.array.ndim == 2 and self.array.strides[0] < self.array.strides[1]

    def host(self, rows: Index | None = None, columns: Index | None = None, *, checked: bool = False) -> NDArray[Any]:
        """The same as :meth:`read` in NumPy, float32.

        Raises ``LensError`` for NaN and for what is too large, unless it is said to have been ``checked`` before.
        """
        part = self._part(rows, columns)
        if self.bfloat16:
            part = (part.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False)
        if not checked and part.size and not max(float(part.max()), -float(part.min())) <= self.bound:
            raise self._wrong(bool(np.isfinite(part).all()))
        return part

    def read(
        self, rows: Index | None = None, columns: Index | None = None, *, dtype: mx.Dtype = mx.float32
    ) -> mx.array:
        """The tensor, or some rows or columns of a matrix, as an evaluated array.

        Raises ``LensError`` for NaN, and for numbers that are too large for a weight or for ``dtype``.
        """
        part = self._part(rows, columns)
        # What lies turned in the file is copied as it lies, and turned afterwards.
        turned = part.ndim == 2 and part.strides[0] < part.strides[1]
        part = np.ascontiguousarray(part.T if turned else part)
        if part.dtype == np.float64:
            with np.errstate(over="ignore"):
                part = part.astype(np.float32)
        value = mx.array(part)
        value = (value.view(mx.bfloat16) if self.bfloat16 else value).astype(dtype)
        value = value.T if turned else value
        mx.eval(value)
        if value.size and not bool(mx.all(mx.abs(value) <= self.bound).item()):
            raise self._wrong(bool(mx.all(mx.isfinite(value)).item()))
        return value

    def _part(self, rows: Index | None, columns: Index | None) -> NDArray[Any]:
        part = _cut(self.array, rows, columns)
        if self.scales is None:
            return part
        tall, wide = self.scales.shape
        with np.errstate(over="ignore"):
            made: NDArray[Any] = part * _cut(self.scales, None if tall == 1 else rows, None if wide == 1 else columns)
        return made

    def _wrong(self, finite: bool) -> LensError:
        if finite:
            return LensError(f"The tensor {self.name} holds numbers beyond {self.bound:g}.", "Fetch the file again.")
        return LensError(f"The tensor {self.name} holds NaN or infinity.", "Fetch the file again.")


def _cut(array: NDArray[Any] | FileArray, rows: Index | None, columns: Index | None) -> NDArray[Any]:
    if isinstance(array, FileArray):
        return array.take(rows, columns)
    part = array if rows is None else array[rows]
    return part if columns is None else part[:, columns]


def in_memory(name: str, values: Any) -> Stored:
    """Wrap a NumPy array or anything NumPy makes one of, as float32."""
    with np.errstate(over="ignore"):
        return Stored(name, np.asarray(values, dtype=np.float32))
