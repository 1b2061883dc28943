"""The encoder's matrix product in blocks of latents, with the weights in memory, on disk, or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .tensors import Stored

Residence = Literal["memory", "disk", "8bit"]
Places = NDArray[np.int64]

BLOCK = 16384
"""Latents in a block."""


class Encoder(Protocol):
    """``x @ w_enc`` for a block of latents at a time."""

    @property
    def spans(self) -> tuple[slice, ...]:
        """The latents of each block."""
        ...

    def product(self, x: mx.array, block: int) -> mx.array:
        """``(n, d_in)`` to ``(n, latents of the block)``."""
        ...

    def columns(self, ids: Places) -> mx.array:
        """The columns ``(d_in, len(ids))`` of some latents."""
        ...


def spans(width: int) -> tuple[slice, ...]:
    """The blocks of latents: :data:`BLOCK` each, the last one shorter."""
    return tuple(slice(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK))


@dataclass(frozen=True, eq=False)
class _InMemory:
    """All blocks as MLX arrays; each is contiguous one way or the other, so that no product copies it."""

    blocks: tuple[mx.array, ...]
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, w_enc: Stored, dtype: mx.Dtype) -> _InMemory:
        parts = spans(w_enc.shape[1])
        return cls(tuple(w_enc.read(columns=part, dtype=dtype) for part in parts), parts)

    def product(self, x: mx.array, block: int) -> mx.array:
        return x.astype(self.blocks[block].dtype) @ self.blocks[block]

    def columns(self, ids: Places) -> mx.array:
        return mx.concatenate([self.blocks[i // BLOCK][:, i % BLOCK][:, None] for i in map(int, ids)], axis=1)


@dataclass(frozen=True, eq=False)
class _OnDisk:
    """Blocks read from the memory map each time: memory for one block, however wide the SAE."""

    w_enc: Stored
    dtype: mx.Dtype
    spans: tuple[slice, ...]

    def product(self, x: mx.array, block: int) -> mx.array:
        w = self.w_enc.read(columns=self.spans[block], dtype=self.dtype)
        out = x.astype(self.dtype) @ w
        mx.eval(out)
        return out

    def columns(self, ids: Places) -> mx.array:
        return self.w_enc.read(columns=ids, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class _EightBit:
    """Blocks quantised to 8 bits in groups along ``d_in``: about 9 bits a weight. Activations are not exact."""

    blocks: tuple[tuple[mx.array, mx.array, mx.array], ...]
    group: int
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, w_enc: Stored) -> _EightBit:
        group = next((size for size in (64, 32) if w_enc.shape[0] % size == 0), 0)
        if not group:
            raise LensError(
                f"An 8-bit encoder needs an input width that 32 divides; this one is {w_enc.shape[0]}.",
                "Load it with encoder='memory' or 'disk'.",
            )
        parts = spans(w_enc.shape[1])
        return cls(tuple(_quantized(w_enc, part, group) for part in parts), group, parts)

    def product(self, x: mx.array, block: int) -> mx.array:
        w, scales, biases = self.blocks[block]
        return mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=self.group, bits=8)

    def columns(self, ids: Places) -> mx.array:
        return mx.concatenate([self._column(i) for i in map(int, ids)], axis=1)

    def _column(self, i: int) -> mx.array:
        w, scales, biases = (part[i % BLOCK][None] for part in self.blocks[i // BLOCK])
        return mx.dequantize(w, scales, biases, group_size=self.group, bits=8).T


def _quantized(w_enc: Stored, part: slice, group: int) -> tuple[mx.array, mx.array, mx.array]:
    w, scales, biases = mx.quantize(w_enc.read(columns=part).T, group_size=group, bits=8)
    mx.eval(w, scales, biases)
    return w, scales, biases


def make_encoder(w_enc: Stored, residence: Residence, dtype: mx.Dtype) -> Encoder:
    """The encoder kept where ``residence`` says."""
    if residence == "8bit":
        return _EightBit.of(w_enc)
    if residence == "disk":
        return _OnDisk(w_enc, dtype, spans(w_enc.shape[1]))
    return _InMemory.of(w_enc, dtype)


def row_chunks(n: int, entries: int = BLOCK * 1024) -> Iterator[slice]:
    """Rows to take at a time so that rows times a block of latents stay under ``entries``."""
    rows = max(1, entries // BLOCK)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))
