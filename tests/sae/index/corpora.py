"""A corpus, a model and an SAE in plain NumPy, small enough to count everything by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records.training import ActivationBlock, Place, SourceFacts, Splice

PLACE: Place = (1, "resid_post")
D_MODEL = 8


class TinySource:
    """Documents of random tokens, a BOS in front of each, one to three documents a block."""

    def __init__(self, seed: int = 0, n_documents: int = 23, *, scale: float = 1.0, fail_at: int = -1) -> None:
        rng = np.random.default_rng(seed)
        self._blocks: list[ActivationBlock] = []
        self.fail_at = fail_at
        documents = [rng.integers(3, 50, rng.integers(1, 12)) for _ in range(n_documents)]
        at = 0
        while at < n_documents:
            some = range(at, min(at + int(rng.integers(1, 4)), n_documents))
            self._blocks.append(_block(len(self._blocks), some, documents, rng, scale))
            at = some.stop

    @property
    def places(self) -> tuple[Place, ...]:
        return (PLACE,)

    @property
    def facts(self) -> SourceFacts:
        n_tokens = sum(int((~block.special).sum()) for block in self._blocks)
        return SourceFacts("tiny", "c0ffee", 23, n_tokens, 16, True, 1, False, 0)

    def d_model(self, place: Place) -> int:
        assert place == PLACE
        return D_MODEL

    @property
    def n_blocks(self) -> int:
        return len(self._blocks)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        for block in self._blocks[start:stop]:
            if block.index == self.fail_at:
                raise RuntimeError("the power went")
            yield block

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        raise NotImplementedError


def _block(
    number: int, some: range, documents: list[NDArray[Any]], rng: np.random.Generator, scale: float
) -> ActivationBlock:
    tokens = np.concatenate([np.concatenate([[1], documents[d]]) for d in some])
    offsets = np.concatenate([np.arange(-1, len(documents[d])) for d in some])
    numbers = np.concatenate([np.full(len(documents[d]) + 1, d) for d in some])
    residual = (rng.normal(size=(len(tokens), D_MODEL)) * scale).astype(np.float32)
    residual[len(tokens) // 2] = residual[0]  # ties
    return ActivationBlock(
        number,
        tokens.astype(np.int32),
        numbers.astype(np.int32),
        offsets.astype(np.int32),
        offsets < 0,
        {PLACE: residual},
    )


class TinySAE:
    """ReLU features with a bias; feature 0 is never active, feature 1 nearly always."""

    def __init__(self, width: int = 24, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.width = width
        self.weight = rng.normal(size=(D_MODEL, width)).astype(np.float32)
        self.bias = np.full(width, -2.0, np.float32)
        self.weight[:, :2] *= 0.1
        self.bias[:2] = (-9.0, 3.0)

    def dense(self, residual: Any) -> NDArray[np.float32]:
        with np.errstate(invalid="ignore"):
            dense: NDArray[np.float32] = np.maximum(np.asarray(residual) @ self.weight + self.bias, 0)
        return dense.astype(np.float32)

    def top_k(self, residual: Any, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        dense = self.dense(residual)
        ids = np.argsort(-dense, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(dense, ids, 1)
