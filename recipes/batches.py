"""The order of training: a pure function of seed and step, so that a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recipes.tokens import TokenSet


@dataclass(slots=True)
class Batches:
    """Windows of ``context + 1`` tokens, each token once per epoch.

    Every epoch shuffles the documents of all domains, joins them (each begins with its
    marker), cuts the row into windows and shuffles those. ``domain_epochs`` lets a domain
    be seen fewer times than ``epochs``: each epoch then leaves a rotating part of its
    documents out.

    Attributes:
        sets: domain name -> training documents.
        context: tokens predicted per window.
        batch: windows per step.
        epochs: passes over the corpus; need not be whole.
        seed: of the order.
        domain_epochs: domain name -> its own number of passes, at most ``epochs``.
    """

    sets: Mapping[str, TokenSet]
    context: int
    batch: int
    epochs: float
    seed: int = 0
    domain_epochs: Mapping[str, float] = field(default_factory=dict)
    _epoch: int = -1
    _row: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    _order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        unknown = set(self.domain_epochs) - set(self.sets)
        if unknown:
            raise ValueError(f"no such domain: {', '.join(sorted(unknown))}; there are {', '.join(sorted(self.sets))}")
        if self.steps_per_epoch < 1:
            raise ValueError(f"the corpus is smaller than one step of {self.batch} windows of {self.context} tokens")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the last part of a batch is dropped and differs every epoch."""
        seen = sum(len(tokens.ids) * self._share(name) for name, tokens in self.sets.items())
        # A domain's part varies a little between epochs: stay a percent below where documents are left out.
        margin = 0.99 if self.domain_epochs else 1.0
        return int((seen * margin - 1) // self.context) // self.batch

    @property
    def steps(self) -> int:
        """Steps in the whole run."""
        return int(self.steps_per_epoch * self.epochs)

    def step(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Inputs and targets of one step, each int32 (batch, context)."""
        epoch, place = divmod(index, self.steps_per_epoch)
        if epoch != self._epoch:
            self._begin(epoch)
        places = self._order[place * self.batch : (place + 1) * self.batch, None] * self.context
        window = self._row[places + np.arange(self.context + 1)[None]].astype(np.int32)
        return window[:, :-1], window[:, 1:]

    def _share(self, name: str) -> float:
        return min(1.0, self.domain_epochs.get(name, self.epochs) / self.epochs)

    def _begin(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        documents = [
            tokens.document(index) for name, tokens in self.sets.items() for index in self._kept(name, tokens, epoch)
        ]
        self._row = np.concatenate([documents[place] for place in rng.permutation(len(documents))])
        windows = (len(self._row) - 1) // self.context
        if windows < self.steps_per_epoch * self.batch:
            raise ValueError("an epoch came out shorter than planned; give the small domains whole epochs")
        self._order = rng.permutation(windows)
        self._epoch = epoch

    def _kept(self, name: str, tokens: TokenSet, epoch: int) -> list[int]:
        share = self._share(name)
        # Documents have fixed random phases; a window of width `share` over them moves on every epoch.
        phases = np.random.default_rng([self.seed, len(tokens)]).permutation(len(tokens)) / max(1, len(tokens))
        return [index for index in range(len(tokens)) if (phases[index] - epoch * share) % 1.0 < share]
