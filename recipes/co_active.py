"""The features of the bundled index that fire together: its own text read once more, every pair of features counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui import SAE, FeatureIndex, LensModel
from lens_tui.records import LensError
from lens_tui.sae.index.co_active_table import PairCounter, add_co_active, co_active_table

KEPT = 12
"""Features kept for each."""

TOLERANCE = 1e-3
"""Share of all activations by which the machine that made the index may differ: near a threshold the last bits
decide."""


def add(
    model: LensModel,
    sae: SAE,
    folder: Path,
    *,
    kept: int = KEPT,
    rows: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Add the table of co-active features to the index in ``folder``; the share of activations that differ from it.

    The text is the index's own, so that nothing else is needed. Raises ``LensError`` if features are active at
    other numbers of tokens than the index says: it is of another model or SAE then.
    """
    index = FeatureIndex(folder)
    counter = PairCounter(index.width)
    for features, per_token in _active(model, sae, index, rows, progress):
        counter.add(features, per_token)
    counted = np.diagonal(counter.both).astype(np.int64)
    difference = float(np.abs(counted - index.count).sum() / max(index.count.sum(), 1))
    if difference > TOLERANCE:
        raise LensError(
            f"{difference:.2%} of the activations are not those of the index.",
            "Give the model and the SAE that it is of.",
        )
    # What the index says of one feature stands: no pair may be active at more tokens than either of its two.
    both, count = counter.both, index.count.astype(np.uint32)
    np.minimum(np.minimum(both, count, out=both), count[:, None], out=both)
    np.fill_diagonal(both, count)
    add_co_active(folder, co_active_table(both, kept))
    return difference


def _active(
    model: LensModel, sae: SAE, index: FeatureIndex, rows: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The active features of some tokens after one another, and how many each token has."""
    starts = np.load(_text(index) / "sequence_starts.npy").astype(np.int64)
    edges = list(pairwise([*starts.tolist(), index.n_tokens]))
    special, tokens = index.special.take(), index.tokens.take().astype(np.int32)
    for at in range(0, len(edges), rows):
        some = edges[at : at + rows]
        longest = max(high - low for low, high in some)
        ids = np.zeros((len(some), longest), np.int32)
        real = np.zeros(ids.shape, bool)
        for row, (low, high) in enumerate(some):
            ids[row, : high - low] = tokens[low:high]
            real[row, : high - low] = ~special[low:high]
        with model.capture(index.identity.layer, site=index.identity.site) as held:
            model.forward(mx.array(ids))
            residual = held[index.identity.layer]
        flat = mx.take(residual.reshape(-1, residual.shape[-1]), mx.array(np.flatnonzero(real)), axis=0)
        active = np.asarray(sae.encode(flat)) > 0
        yield np.nonzero(active)[1], active.sum(1)
        progress(at + len(some), len(edges))


def _text(index: FeatureIndex) -> Path:
    shared = index.manifest.get("text")
    return index.path.parent / shared if shared else index.path
