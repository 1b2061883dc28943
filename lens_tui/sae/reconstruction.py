"""What an SAE makes of residuals, and how much of them it leaves unexplained."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an SAE makes of residuals ``(..., d_in)``.

    ``output (..., d_out)`` is its reconstruction, ``error`` the target less it (for an autoencoder the target is
    the input; ``None`` for a transcoder that was given no target). ``l0 (...)`` counts the active latents of each
    token. ``fvu`` is the squared error over the squared distance from the mean of these tokens, ``None`` where
    there is no error or no variance.
    """

    output: mx.array
    error: mx.array | None
    l0: mx.array
    fvu: float | None


def fraction_unexplained(target: mx.array, error: mx.array) -> float | None:
    """FVU over the rows of ``(n, d)``: squared error over squared distance from the rows' mean, summed in float64.

    ``None`` if the rows do not vary.
    """
    if not target.shape[0]:
        return None
    centred = target.astype(mx.float32) - mx.mean(target.astype(mx.float32), axis=0)
    lost, spread = mx.sum(mx.square(error), axis=-1), mx.sum(mx.square(centred), axis=-1)
    total = float(np.asarray(spread, dtype=np.float64).sum())
    return float(np.asarray(lost, dtype=np.float64).sum()) / total if total > 0 else None
