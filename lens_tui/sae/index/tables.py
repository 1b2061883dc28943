"""From a block of residuals to the active features of each token: the one place of the index that uses a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.training import ActivationBlock

from .index_settings import IndexSettings, Unsigned, narrow
from .tally import SPECIAL, START, Activations


class Encoder(Protocol):
    """What the index asks of an SAE."""

    def top_k(self, residual: Any, k: int) -> tuple[Any, Any]:
        """The ``k`` strongest features of each row of ``(n, d)``: ids and values ``(n, k)``."""


def as_numpy(array: Any, kind: Any) -> NDArray[Any]:
    """An MLX or NumPy array as NumPy of the given type (bfloat16 goes through float32)."""
    if type(array).__module__.startswith("mlx"):
        import mlx.core as mx

        array = array.astype(mx.float32 if np.issubdtype(kind, np.floating) else mx.int64)
    return np.asarray(array).astype(kind, copy=False)


def encode_block(
    block: ActivationBlock, residual: Any, encoder: Encoder, width: int, settings: IndexSettings
) -> tuple[Activations, int, int]:
    """The activations of a block, how many tokens were counted, and how many of those had more than ``max_active``.

    One more than ``max_active`` features are asked for, so that overflow is known, not guessed.
    """
    n = len(block.token_ids)
    keep = min(settings.max_active, width)
    ask = min(keep + 1, width)
    ids, values = encoder.top_k(residual, ask)
    ids, values = as_numpy(ids, np.int64), as_numpy(values, np.float32)
    if ids.shape != (n, ask) or values.shape != (n, ask):
        raise LensError(f"The SAE gave features of shape {ids.shape} for {n} tokens; {(n, ask)} was asked for.")
    counted = np.ones(n, bool) if settings.include_special else ~block.special
    if not np.isfinite(values[counted]).all():
        raise LensError(
            f"Block {block.index} of the corpus gives activations that are NaN or infinite.",
            "Check the model's precision: float16 overflows on some models.",
        )
    ids, values = _descending(ids, values)
    overflowed = int((values[counted, keep] > 0).sum()) if ask > keep else 0
    mask = (values[:, :keep] > 0) & counted[:, None]
    row, place = np.nonzero(mask)
    feature = ids[row, place]
    if len(feature) and (feature.min() < 0 or feature.max() >= width):
        raise LensError(f"The SAE gave a feature id outside 0..{width - 1}.")
    found = Activations(
        block.index,
        row,
        feature.astype(np.uint32),
        values[row, place],
        block.documents.astype(np.uint32),
        block.offsets.astype(np.uint32),
    )
    return found, int(counted.sum()), overflowed


def block_columns(block: ActivationBlock) -> dict[str, NDArray[Any]]:
    """What is kept of every token of a block, special or not."""
    flags = np.where(block.special, SPECIAL, 0) | np.where(sequence_starts(block), START, 0)
    return {
        "tokens": block.token_ids,
        "documents": block.documents,
        "offsets": block.offsets,
        "flags": flags.astype(np.uint8),
    }


def sequence_starts(block: ActivationBlock) -> NDArray[np.bool_]:
    """Where the text breaks off: a new document, a gap in it, or a BOS or separator (offset -1)."""
    offset, document = block.offsets.astype(np.int64), block.documents
    starts = np.ones(len(offset), bool)
    broken = (document[1:] != document[:-1]) | (offset[1:] != offset[:-1] + 1)
    starts[1:] = (offset[1:] < 0) | ((offset[:-1] >= 0) & broken)
    return starts


def _descending(ids: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if (values[:, :-1] >= values[:, 1:]).all():
        return ids, values
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


CONVENTIONS = ("norm", "raw")
"""``norm``: direction times the final norm's gain, then the unembedding. ``raw``: without the gain, as in
SAEDashboard and Neuronpedia."""

FIELDS = ("promoted_ids", "promoted_values", "suppressed_ids", "suppressed_values")


class Unembed(Protocol):
    """The model's part: which tokens directions push up and down, under one convention."""

    def __call__(self, directions: Any, k: int) -> tuple[Any, Any, Any, Any]:
        """For ``(n, d)``: ids and values of the ``k`` most promoted, then of the ``k`` most suppressed, ``(n, k)``."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """Arrays ``(width, k)``: the tokens each feature's unit decoder direction promotes and suppresses, strongest first.

    Values are logits per unit of activation along the direction, under ``convention``.
    """

    convention: str
    promoted_ids: NDArray[Unsigned]
    promoted_values: NDArray[np.float32]
    suppressed_ids: NDArray[Unsigned]
    suppressed_values: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise LensError(f"There is no convention {self.convention!r}.", f"Choose from {', '.join(CONVENTIONS)}.")
        shapes = {getattr(self, name).shape for name in FIELDS}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise LensError("The arrays of a token table differ in shape.", "All have the shape (width, k).")

    def save(self, folder: Path) -> None:
        """Write the four arrays into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:
            array = getattr(self, name)
            np.save(folder / f"{name}.npy", narrow(array) if name.endswith("_ids") else array)


def token_table(
    directions: Callable[[NDArray[np.int64]], Any],
    width: int,
    unembed: Unembed,
    convention: str,
    *,
    k: int = 10,
    block: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> TokenTable:
    """The table of an SAE: ``directions(ids)`` gives unit decoder rows ``(n, d)``, ``unembed`` their tokens.

    Runs in blocks of ``block`` features: memory stays near that many rows of what ``unembed`` holds.
    """
    if not 1 <= k <= 1000:
        raise LensError(f"A table of {k} tokens a feature was asked for.", "Give k from 1 to 1000.")
    kinds = (np.uint32, np.float32, np.uint32, np.float32)
    arrays: list[NDArray[Any]] = [np.zeros((width, k), kind) for kind in kinds]
    for start in range(0, width, block):
        stop = min(start + block, width)
        rows = unembed(directions(np.arange(start, stop)), k)
        for array, row, kind in zip(arrays, rows, kinds, strict=True):
            array[start:stop] = as_numpy(row, kind)
        if progress:
            progress(stop, width)
    return TokenTable(convention, *arrays)
