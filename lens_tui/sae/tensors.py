"""Tensors of weight files, read only where they are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

Index = slice | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor on disk or in memory; bfloat16 is held as its bits (uint16), since NumPy has no such type.

    ``array`` is usually a memory map: what is not read takes no memory of ours. With ``scales``, of shape ``(rows, 1)``
    or ``(1, columns)``, the matrix is ``array * scales``: 8-bit integers with one scale a latent.
    """

    name: str
    array: NDArray[Any]
    bfloat16: bool = False
    scales: NDArray[np.float32] | None = None

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
        return Stored(self.name, self.array.T, self.bfloat16, None if self.scales is None else self.scales.T)

    def host(self, rows: Index | None = None, columns: Index | None = None, *, checked: bool = False) -> NDArray[Any]:
        """The same as :meth:`read` in NumPy, float32; what a file holds as float32 stays there.

        Raises ``LensError`` for NaN, unless it is said to have been ``checked`` before.
        """
        if self.bfloat16:
            return np.asarray(self.read(rows, columns))
        part = self._part(rows, columns)
        if not checked and not np.isfinite(part).all():
            raise self._not_finite()
        return part.astype(np.float32, copy=False)

    def read(
        self, rows: Index | None = None, columns: Index | None = None, *, dtype: mx.Dtype = mx.float32
    ) -> mx.array:
        """The tensor, or some rows or columns of a matrix, as an evaluated array. Raises ``LensError`` for NaN."""
        part = self._part(rows, columns)
        # A transposed map is read in the order it lies in the file, and turned afterwards.
        turned = part.ndim == 2 and part.strides[0] < part.strides[1]
        part = np.ascontiguousarray(part.T if turned else part)
        if part.dtype == np.float64:
            part = part.astype(np.float32)
        value = mx.array(part)
        value = (value.view(mx.bfloat16) if self.bfloat16 else value).astype(dtype)
        value = value.T if turned else value
        mx.eval(value)
        return self._finite(value)

    def _part(self, rows: Index | None, columns: Index | None) -> NDArray[Any]:
        part = _cut(self.array, rows, columns)
        if self.scales is None:
            return part
        tall, wide = self.scales.shape
        made: NDArray[Any] = part * _cut(self.scales, None if tall == 1 else rows, None if wide == 1 else columns)
        return made

    def _finite(self, value: mx.array) -> mx.array:
        if value.size and not bool(mx.all(mx.isfinite(value)).item()):
            raise self._not_finite()
        return value

    def _not_finite(self) -> LensError:
        return LensError(f"The tensor {self.name} holds NaN or infinity.", "Fetch the file again.")


def _cut(array: NDArray[Any], rows: Index | None, columns: Index | None) -> NDArray[Any]:
    part = array if rows is None else array[rows]
    return part if columns is None else part[:, columns]


def in_memory(name: str, values: Any) -> Stored:
    """Wrap a NumPy array or anything NumPy makes one of, as float32."""
    return Stored(name, np.asarray(values, dtype=np.float32))


def from_mlx(name: str, values: mx.array) -> Stored:
    """Wrap an MLX array; bfloat16 stays bfloat16."""
    if values.dtype == mx.bfloat16:
        return Stored(name, np.asarray(values.view(mx.uint16)), bfloat16=True)
    return Stored(name, np.asarray(values))
