"""SAE matrices in 8 bits: one signed byte a weight and one scale a latent.

Of latent ``f``, ``w_enc[:, f]`` and ``w_dec[f]`` are whole numbers from -127 to 127 times that latent's scale, which
is its largest weight over 127 (symmetric absmax quantisation, one scale a channel, as in Dettmers et al. 2022,
"LLM.int8()"). The scales stand beside the matrices as ``w_enc_scale`` and ``w_dec_scale``, float32 ``(n,)``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.read_files import shown

from .tensors import Stored

LARGEST = 127
SUFFIX = "_scale"


def quantised(matrix: NDArray[np.float32], latents: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix as signed bytes and the scales of its latents, which lie along axis ``latents``.

    Each weight is off by at most half a scale. A latent that is all zeros has scale 1.
    """
    largest = np.abs(matrix).max(axis=1 - latents)
    scales = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(matrix / np.expand_dims(scales, 1 - latents)).astype(np.int8), scales


def in_eight_bits(w_enc: NDArray[np.float32], w_dec: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The tensors of a file that stand for ``w_enc (d_in, n)`` and ``w_dec (n, d_out)``."""
    made: dict[str, NDArray[Any]] = {}
    for name, matrix, latents in (("w_enc", w_enc, 1), ("w_dec", w_dec, 0)):
        made[name], made[name + SUFFIX] = quantised(matrix, latents)
    return made


def with_scales(matrix: Stored, tensors: dict[str, Stored], name: str, latents: int, path: Path) -> Stored:
    """``matrix``, the tensor ``name`` of a file, with its scales if it is in 8 bits.

    Raises ``LensError`` if they are missing, too few, not positive, or there for a matrix that is not in 8 bits.
    """
    scales = tensors.get(name + SUFFIX)
    if (matrix.array.dtype == np.int8) != (scales is not None):
        what = f"{name} in 8 bits without {name}{SUFFIX}" if scales is None else f"{name}{SUFFIX} without 8-bit {name}"
        raise LensError(f"{shown(path)} has {what}.", "Fetch it again.")
    if scales is None or len(matrix.shape) != 2:
        return matrix
    if scales.shape != (matrix.shape[latents],):
        raise LensError(f"{name}{SUFFIX} of {shown(path)} has shape {scales.shape}; it needs one number a latent.")
    values = scales.host()
    if not (values > 0).all():
        raise LensError(f"{name}{SUFFIX} of {shown(path)} holds numbers that are not positive.", "Fetch it again.")
    return replace(matrix, scales=np.expand_dims(values, 1 - latents))
