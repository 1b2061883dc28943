"""The decoder: its product in blocks of latents, and single rows on demand."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .encoder import Residence, spans
from .host import on_host, times
from .tensors import Stored


class Decoder:
    """``a @ w_dec`` for ``w_dec (width, d_out)``; with ``unit_rows`` its rows are divided by their lengths first.

    The matrix is kept in memory from the first product on if ``residence`` is ``memory``; else it stays on disk.
    """

    def __init__(self, w_dec: Stored, residence: Residence, dtype: mx.Dtype, *, unit_rows: bool) -> None:
        self.width, self.d_out = w_dec.shape
        self._stored = w_dec
        self._keep = residence == "memory"
        self._dtype = dtype
        self._kept: mx.array | None = None
        self._host: dict[int, NDArray[Any]] = {}
        self.norms = self._read_norms() if unit_rows else None

    def product(self, z: mx.array) -> mx.array:
        """``(n, width)`` to ``(n, d_out)``, float32."""
        if self._keep:
            return self.partial(z, slice(0, self.width))
        out = mx.zeros((z.shape[0], self.d_out))
        for span in spans(self.width):
            out = out + self.partial(z[:, span], span)
            mx.eval(out)
        return out

    def partial(self, z: mx.array, span: slice) -> mx.array:
        """What the latents of ``span`` give, from their activations ``(n, len(span))``."""
        if self.norms is not None:
            z = z / _or_one(self.norms[span])
        return (z.astype(self._dtype) @ self._rows(span)).astype(mx.float32)

    def now(self, z: mx.array, span: slice) -> mx.array:
        """As :meth:`partial`, but at once, by whichever way is fastest; no gradient goes through it."""
        if z.shape[0] < 4 or self._dtype != mx.float32 or not on_host():
            return self.partial(z, span)
        if self.norms is not None:
            z = z / _or_one(self.norms[span])
        return times(z, self._host_rows(span))

    def sparse(self, ids: mx.array, values: mx.array) -> mx.array:
        """``(n, d_out)`` from ids and activations ``(n, k)``; places with activation 0 are left out, whatever their id.

        Only the rows of features that are active are read, for 128 tokens at a time.
        """
        parts = [self._sparse(ids[i : i + 128], values[i : i + 128]) for i in range(0, ids.shape[0], 128)]
        return mx.concatenate(parts) if parts else mx.zeros((0, self.d_out))

    def _sparse(self, ids: mx.array, values: mx.array) -> mx.array:
        used, place = np.unique(np.asarray(mx.where(values > 0, ids, 0)), return_inverse=True)
        rows = self.effects(used)
        places = mx.array(place.reshape(ids.shape).astype(np.int32))
        z = mx.zeros((ids.shape[0], len(used)))
        # Inactive places all point at one row and add 0 there; putting instead of adding could overwrite it.
        z = z.at[mx.arange(ids.shape[0])[:, None], places].add(mx.maximum(values, 0))
        out = times(z, np.asarray(rows)) if on_host() else z @ rows
        mx.eval(out)
        return out

    def effects(self, ids: NDArray[np.int64]) -> mx.array:
        """What one unit of activation adds to the output, ``(len(ids), d_out)``. Ids are not checked."""
        rows = self.rows(ids)
        if self.norms is None or not len(ids):
            return rows
        return rows / _or_one(self.norms[mx.array(ids.astype(np.int32))])[:, None]

    def rows(self, ids: NDArray[np.int64] | None) -> mx.array:
        """Rows as they are stored, float32, ``(len(ids), d_out)``; all of them with ``None``. Ids are not checked."""
        if self._kept is not None and self._dtype == mx.float32:
            return self._kept if ids is None else mx.take(self._kept, mx.array(np.asarray(ids, dtype=np.int32)), axis=0)
        return self._stored.read(None if ids is None else np.asarray(ids, dtype=np.int64))

    def _rows(self, span: slice) -> mx.array:
        if not self._keep:
            return self._stored.read(span, dtype=self._dtype)
        if self._kept is None:
            self._kept = self._stored.read(dtype=self._dtype)
        return self._kept[span]

    def _host_rows(self, span: slice) -> NDArray[Any]:
        if not self._keep:
            return self._stored.host(rows=span)
        if span.start not in self._host:
            self._host[span.start] = np.asarray(self._rows(span))  # the same memory, seen by NumPy
        return self._host[span.start]

    def _read_norms(self) -> mx.array:
        norms = mx.concatenate([mx.linalg.norm(self._stored.read(span), axis=-1) for span in spans(self.width)])
        mx.eval(norms)
        return norms


def _or_one(norms: mx.array) -> mx.array:
    return mx.where(norms > 0, norms, 1.0)
