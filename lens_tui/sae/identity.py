"""What an SAE is known by: a name for its contents, so that labels and indexes stay with it wherever its files go."""

from __future__ import annotations

import hashlib

import numpy as np

from .definition import Definition, Weights
from .tensors import Stored

_ROWS = 16


def content_id(definition: Definition, weights: Weights) -> str:
    """``sae-`` and 16 hex digits, the same for the same tensors and definition in whatever folder they lie.

    Biases, thresholds and 16 evenly spaced rows of encoder and decoder are hashed (SHA-256), which takes
    milliseconds at any width. Files altered on purpose in the rows between, and nowhere else, can share an id.
    """
    digest = hashlib.sha256(repr(definition).encode())
    for name, tensor in sorted({"b_dec": weights.b_dec, **weights.vectors}.items()):
        _add(digest, name, tensor, tensor.shape[0])
    matrices = {"w_enc": weights.w_enc, "w_dec": weights.w_dec}
    if weights.w_skip is not None:
        matrices["w_skip"] = weights.w_skip
    for name, tensor in matrices.items():
        _add(digest, name, tensor, _ROWS)
    return f"sae-{digest.hexdigest()[:16]}"


def _add(digest: hashlib._Hash, name: str, tensor: Stored, rows: int) -> None:
    array = tensor.array
    if tensor.turned:
        array = array.T  # rows as they lie in the file: a column would touch every page of it
    digest.update(f"{name}{tensor.shape}{array.dtype.str}{int(tensor.bfloat16)}".encode())
    places = np.unique(np.linspace(0, len(array) - 1, min(rows, len(array))).astype(np.int64))
    digest.update(np.ascontiguousarray(array[places]).tobytes())
    if tensor.scales is not None:
        digest.update(np.ascontiguousarray(tensor.scales).tobytes())
