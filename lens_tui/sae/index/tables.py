"""Promoted and suppressed tokens of every feature: made once for an SAE and a model, kept with the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .arrays import Unsigned, narrow
from .encode import as_numpy

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
