"""Matrix products by NumPy where MLX is slow at them: on a Linux CPU without OpenBLAS (:mod:`lens_tui.blas`).

The reference BLAS of MLX's packages is some 20 times slower than the one that NumPy brings. Where MLX has OpenBLAS, on
macOS and on a GPU nothing here is used.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui import blas


def on_host() -> bool:
    """Whether products that need no gradient are better left to NumPy."""
    return mx.default_device().type == mx.DeviceType.cpu and blas.is_slow()


def times(x: mx.array, w: NDArray[Any]) -> mx.array:
    """``x @ w`` in float32, computed at once; no gradient goes through it."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is said where results are looked at
        return mx.array(np.asarray(x.astype(mx.float32)) @ w)
