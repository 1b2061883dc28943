"""The tokens that many directions promote and suppress: one pass over the unembedding, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui import blas
from lens_tui.records import LensError

from .unembed import Convention, Unembedding


def top_tokens(
    unembedding: Unembedding, directions: Any, k: int, convention: Convention = "norm", hide: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Ids and values of the ``k`` tokens each direction promotes most, then of those it suppresses most, ``(n, k)``.

    ``directions`` has shape ``(n, d_model)``. Strongest first. As ``unembed.token_weights``, for many at
    once: the vocabulary goes by in blocks of rows, each multiplied with all
    directions. ``hide`` is that of the model's ``Decoder``: ids of no token.
    Raises :class:`LensError` for a wrong width.
    """
    vectors = mx.array(directions).astype(mx.float32)
    gain = mx.array(unembedding.gain)
    if vectors.ndim != 2 or vectors.shape[1] != gain.shape[0]:
        raise LensError(f"Directions of shape {tuple(vectors.shape)} do not fit d_model {gain.shape[0]}.")
    folded = vectors * gain if convention == "norm" else vectors
    best: list[tuple[mx.array, mx.array]] = []
    worst: list[tuple[mx.array, mx.array]] = []
    start = 0
    for rows in unembedding.rows():
        weights = _product(folded, rows)
        ids = mx.broadcast_to(mx.arange(start, start + rows.shape[0]), weights.shape)
        down = 0.0 if hide is None else hide[start : start + rows.shape[0]]
        best = [_select([*best, (ids, weights + down)], k, lambda values: -values)]
        worst = [_select([*worst, (ids, weights - down)], k, lambda values: values)]
        mx.eval(best, worst)
        start += int(rows.shape[0])
    return (*best[0], *worst[0])


def _product(a: mx.array, b: mx.array) -> mx.array:
    """``a @ b.T``; by NumPy where MLX's own product is slow (:mod:`lens_tui.blas`)."""
    if mx.default_device().type == mx.DeviceType.cpu and blas.is_slow():
        return mx.array(np.array(a) @ np.array(b).T)
    return a @ b.T


def _select(
    parts: list[tuple[mx.array, mx.array]], k: int, key: Callable[[mx.array], mx.array]
) -> tuple[mx.array, mx.array]:
    """The ``k`` entries of smallest key, in order: first cut to ``k``, then sorted."""
    ids = mx.concatenate([part[0] for part in parts], axis=1)
    values = mx.concatenate([part[1] for part in parts], axis=1)
    if k < values.shape[1]:
        place = mx.argpartition(key(values), k - 1, axis=1)[:, :k]
        ids, values = mx.take_along_axis(ids, place, 1), mx.take_along_axis(values, place, 1)
    order = mx.argsort(key(values), axis=1)
    return mx.take_along_axis(ids, order, 1), mx.take_along_axis(values, order, 1)
