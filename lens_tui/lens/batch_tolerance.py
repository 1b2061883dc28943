"""How far two ways to compute the same rows may differ."""

from __future__ import annotations

import mlx.core as mx


def tolerance(dtype: mx.Dtype) -> float:
    """KL in nats between next-token distributions: rounding of the dtype, and no more."""
    return 1e-4 if dtype == mx.float32 else 0.02
