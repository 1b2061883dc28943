"""An SAE's matrices, kept in memory, on disk or in 8 bits, their products, and the largest entries of those.

Products are by whichever of MLX and NumPy is faster.

On a Linux CPU without OpenBLAS that is NumPy (:func:`lens_tui.blas.on_host`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui import blas
from lens_tui.records import LensError

from .files import Stored

Residence = Literal["memory", "disk", "8bit"]
Places = NDArray[np.int64]

BLOCK = 16384
"""Latents in a block."""
ROWS = 1024


def spans(width: int) -> tuple[slice, ...]:
    """The blocks of latents: :data:`BLOCK` each, the last one shorter."""
    return tuple(slice(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK))


def row_chunks(n: int) -> Iterator[slice]:
    """Rows to take at a time, so that the activations of a block stay near 64 MB."""
    for start in range(0, n, ROWS):
        yield slice(start, min(start + ROWS, n))


def largest(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Places and values ``(n, k)`` of the ``k`` largest entries of each row of ``(n, m)``, in no order.

    Columns are put into groups and each group's maximum is taken in one cheap pass: the ``k`` largest entries
    lie in the ``k`` groups with the largest maxima, so only those are looked at one by one.
    """
    n, m = values.shape
    if k >= m:
        ids = mx.broadcast_to(mx.arange(m, dtype=mx.int32), (n, m))
        return ids, values
    size = _group_size(m, k)
    if size == 1:
        ids = mx.argpartition(values, kth=m - k, axis=-1)[:, m - k :].astype(mx.int32)
        return ids, mx.take_along_axis(values, ids, axis=-1)
    groups = m // size
    # Group j is the columns j, j + groups, j + 2 groups, ...: the maximum is then taken over rows, not within one.
    maxima = mx.max(values.reshape(n, size, groups), axis=1)
    best = mx.argpartition(maxima, kth=groups - k, axis=-1)[:, groups - k :].astype(mx.int32)
    steps = mx.arange(0, m, groups, dtype=mx.int32)
    candidates = (best[:, None, :] + steps[None, :, None]).reshape(n, size * k)
    found = mx.take_along_axis(values, candidates, axis=-1)
    place = mx.argpartition(found, kth=size * k - k, axis=-1)[:, size * k - k :]
    return mx.take_along_axis(candidates, place, axis=-1), mx.take_along_axis(found, place, axis=-1)


def _group_size(m: int, k: int) -> int:
    """About ``sqrt(m / k)``, which makes both passes alike: a power of two that leaves over ``k`` groups."""
    size = 1
    while m % (2 * size) == 0 and m // (2 * size) > 2 * k and (2 * size) ** 2 * k <= 4 * m:
        size *= 2
    return size


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The best entries so far: ids and values ``(n, at most k)``."""

    ids: mx.array
    values: mx.array

    def with_block(self, values: mx.array, start: int, k: int) -> Best:
        """Take in a block of columns that begins at column ``start``."""
        ids, found = largest(values, k)
        ids = mx.concatenate([self.ids, ids + start], axis=1)
        found = mx.concatenate([self.values, found], axis=1)
        if ids.shape[1] <= k:
            return Best(ids, found)
        place, found = largest(found, k)
        return Best(mx.take_along_axis(ids, place, axis=1), found)

    def in_order(self) -> tuple[mx.array, mx.array]:
        """Strongest first, of equals the lower id; entries of 0 have id -1."""
        by_id = mx.argsort(self.ids, axis=1)
        ids, values = (mx.take_along_axis(part, by_id, axis=1) for part in (self.ids, self.values))
        order = mx.argsort(-values, axis=1)
        ids, values = (mx.take_along_axis(part, order, axis=1) for part in (ids, values))
        return mx.where(values > 0, ids, -1), values


def nothing(n: int) -> Best:
    """The best of no columns."""
    return Best(mx.zeros((n, 0), dtype=mx.int32), mx.zeros((n, 0)))


class EncoderMatrix:
    """``x @ w_enc`` for a block of latents at a time; ``w_enc`` has shape ``(d_in, width)``.

    ``residence`` ``memory`` keeps all blocks, ``disk`` reads a block each time it is used. :meth:`product` is an MLX
    operation, with a gradient; :meth:`now` computes at once, by whichever way is fastest.
    """

    def __init__(self, w_enc: Stored, residence: Residence, dtype: mx.Dtype) -> None:
        self.spans = spans(w_enc.shape[1])
        self._stored = w_enc
        self._keep = residence == "memory"
        self._dtype = dtype
        self._blocks: list[mx.array | None] = [None] * len(self.spans)
        self._host: list[NDArray[Any] | None] = [None] * len(self.spans)
        self._spare: list[mx.array] = []
        if self._keep:
            for block in range(len(self.spans)):
                self._block(block)

    def product(self, x: mx.array, block: int) -> mx.array:
        """``(n, d_in)`` to ``(n, latents of the block)``, float32; not computed yet unless the block is on disk."""
        out = (x.astype(self._dtype) @ self._block(block)).astype(mx.float32)
        if not self._keep:
            mx.eval(out)
        return out

    def now(self, x: mx.array, block: int) -> mx.array:
        """The same at once. No gradient goes through it."""
        on_cpu = self._dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu
        if x.shape[0] >= 4 and on_cpu and blas.on_host():
            return blas.times(x, self._host_block(block))
        if on_cpu and not self._keep:
            return self._from_disk(x.astype(mx.float32), self.spans[block])
        return self.product(x, block)

    def _from_disk(self, x: mx.array, span: slice) -> mx.array:
        """As :meth:`now`, with a block that is read into memory of MLX in which others were before.

        Finding new memory and copying into it takes a third of the time of a product with 256 tokens. On a CPU, NumPy
        sees and writes that same memory. Nothing that is computed later looks at it again.
        """
        turned, d = self._stored.turned, self._stored.shape[0]
        n = span.stop - span.start
        shape = (n, d) if turned else (d, n)
        try:  # from many threads at once each has its own
            held = self._spare.pop()
        except IndexError:
            held = mx.zeros((0,))
        if held.shape != shape:  # the last block is narrower
            held = mx.zeros(shape)
            mx.eval(held)
        seen = np.asarray(held)
        self._stored.fill(seen.T if turned else seen, span)
        out = x @ (held.T if turned else held)
        mx.eval(out)
        self._spare.append(held)
        return out

    def columns(self, ids: Places) -> mx.array:
        """The columns of some latents, ``(d_in, len(ids))``, in the encoder's dtype."""
        if not self._keep or not len(ids):
            return self._stored.read(columns=ids, dtype=self._dtype)
        parts = {block: np.flatnonzero(ids // BLOCK == block) for block in np.unique(ids // BLOCK).tolist()}
        found = mx.concatenate([self._held_columns(block, ids[at] % BLOCK) for block, at in parts.items()], axis=1)
        if len(parts) == 1:
            return found
        back = np.argsort(np.concatenate(list(parts.values())), kind="stable")
        return mx.take(found, mx.array(back.astype(np.int32)), axis=1)

    def _held_columns(self, block: int, places: Places) -> mx.array:
        return mx.take(self._block(block), mx.array(places.astype(np.int32)), axis=1)

    def _block(self, block: int) -> mx.array:
        held = self._blocks[block]
        if held is not None:
            return held
        read = self._stored.read(columns=self.spans[block], dtype=self._dtype)
        if self._keep:
            self._blocks[block] = read
        return read

    def _host_block(self, block: int) -> NDArray[Any]:
        held = self._host[block]
        if held is not None:
            return held
        if self._keep:  # the same memory, seen by NumPy
            self._host[block] = read = np.asarray(self._block(block))
            return read
        return self._stored.host(columns=self.spans[block])


class EightBitEncoder(EncoderMatrix):
    """Blocks quantised to 8 bits in groups along ``d_in``: about 9 bits a weight. Activations are not exact."""

    def __init__(self, w_enc: Stored) -> None:
        self.group = next((size for size in (64, 32) if w_enc.shape[0] % size == 0), 0)
        if not self.group:
            raise LensError(
                f"An 8-bit encoder needs an input width that 32 divides; this one is {w_enc.shape[0]}.",
                "Load it with residence='memory' or 'disk'.",
            )
        super().__init__(w_enc, "8bit", mx.float32)
        self._quantized = [self._quantize(span) for span in self.spans]

    def product(self, x: mx.array, block: int) -> mx.array:
        """As of :class:`EncoderMatrix`."""
        w, scales, biases = self._quantized[block]
        x = x.astype(mx.float32)
        if mx.default_device().type == mx.DeviceType.cpu and x.shape[0] > 1 and not blas.is_slow():
            # MLX's own product of quantised matrices is 20 times slower on a CPU than OpenBLAS with the block unpacked.
            return x @ mx.dequantize(w, scales, biases, group_size=self.group, bits=8).T
        return mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=self.group, bits=8)

    def now(self, x: mx.array, block: int) -> mx.array:
        """As of :class:`EncoderMatrix`."""
        return self.product(x, block)

    def columns(self, ids: Places) -> mx.array:
        """The columns as they are used, ``(d_in, len(ids))``."""
        parts = [[part[i % BLOCK] for part in self._quantized[i // BLOCK]] for i in map(int, ids)]
        w, scales, biases = (mx.stack(list(rows)) for rows in zip(*parts, strict=True))
        return mx.dequantize(w, scales, biases, group_size=self.group, bits=8).T

    def _quantize(self, span: slice) -> tuple[mx.array, mx.array, mx.array]:
        w, scales, biases = mx.quantize(self._stored.read(columns=span).T, group_size=self.group, bits=8)
        mx.eval(w, scales, biases)
        return w, scales, biases


def make_encoder(w_enc: Stored, residence: Residence, dtype: mx.Dtype) -> EncoderMatrix:
    """The encoder kept where ``residence`` says."""
    return EightBitEncoder(w_enc) if residence == "8bit" else EncoderMatrix(w_enc, residence, dtype)


class DecoderMatrix:
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
        if z.shape[0] < 4 or self._dtype != mx.float32 or not blas.on_host():
            return self.partial(z, span)
        if self.norms is not None:
            z = z / _or_one(self.norms[span])
        return blas.times(z, self._host_rows(span))

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
        out = blas.times(z, np.asarray(rows)) if blas.on_host() else z @ rows
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
