"""Matrix products by NumPy where MLX is slow at them.

MLX's Linux packages for the CPU are built with the reference BLAS, which is some 20 times slower than the one
that NumPy brings. On macOS and on a GPU nothing here is used.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def on_host() -> bool:
    """Whether products that need no gradient are better left to NumPy."""
    return sys.platform != "darwin" and mx.default_device().type == mx.DeviceType.cpu


def times(x: mx.array, w: NDArray[Any]) -> mx.array:
    """``x @ w`` in float32, computed at once; no gradient goes through it."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is said where results are looked at
        return mx.array(np.asarray(x.astype(mx.float32)) @ w)
