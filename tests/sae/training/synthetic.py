"""A source of activations with known features: sparse sums of unit directions, made from the block's number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records.training import ActivationBlock, Place, SourceFacts, Splice

PLACE: Place = (1, "resid_post")


class Synthetic:
    """``features`` unit directions in ``d``; a token is the sum of about ``active`` of them and an offset."""

    def __init__(
        self,
        d: int = 24,
        features: int = 40,
        active: float = 3.0,
        *,
        seed: int = 0,
        rows: int = 200,
        scale: float = 5.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        directions = rng.normal(size=(features, d))
        self.directions: NDArray[np.float64] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.offset = rng.normal(size=d) * scale
        self._d, self._rate, self._rows, self._seed, self._scale = d, active / features, rows, seed, scale
        self.served: list[int] = []

    @property
    def places(self) -> tuple[Place, ...]:
        return (PLACE,)

    @property
    def facts(self) -> SourceFacts:
        return SourceFacts("synthetic", "0" * 64, 1, self._rows * 20, self._rows, True, 1, True, self._seed)

    def d_model(self, place: Place) -> int:
        return self._d

    @property
    def n_blocks(self) -> int:
        return 20

    def values(self, index: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([self._seed, index])
        fires = rng.random((self._rows, len(self.directions))) < self._rate
        strength = fires * rng.uniform(0.5, 1.5, fires.shape) * self._scale
        return np.asarray(strength @ self.directions + self.offset, np.float32)

    def special(self) -> NDArray[np.bool_]:
        flags = np.zeros(self._rows, np.bool_)
        flags[:: self._rows // 4] = True
        return flags

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        index = start
        while stop is None or index < stop:
            self.served.append(index)
            special = self.special()
            values = self.values(index)
            values[special] = 1e4  # BOS-like outliers: whoever learns from them is far off
            flat = np.zeros(self._rows, np.int32)
            yield ActivationBlock(index, flat, flat, flat, special, {PLACE: mx.array(values)})
            index += 1

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """A stand-in for a model's loss: 1 plus the share of the variance that the splice loses."""
        x = np.concatenate([self.values(i)[~self.special()] for i in range(blocks)])
        given: Any = mx.array(x) if splice is None else splice(mx.array(x))
        lost = np.square(np.asarray(given) - x).sum() / np.square(x - x.mean(0)).sum()
        return float(1.0 + lost)


def mean_max_cosine(found: NDArray[Any], true: NDArray[Any]) -> float:
    """MMCS: for each true direction the cosine of the closest found one, averaged (Sharkey et al. 2022)."""
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return float((true @ found.T).max(axis=1).mean())
