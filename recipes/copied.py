"""Whether a text that the model wrote repeats what it was trained on, word for word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RUN = 30
"""So many words in a row that stand in a document are a copy of it."""

_MULTIPLIER = 0x9E3779B97F4A7C15


class Copied:
    """All runs of ``run`` words of some documents, as 64-bit hashes in memory (8 bytes a word).

    Words are what white space divides; case and punctuation count.
    """

    def __init__(self, documents: Iterable[str], run: int = RUN) -> None:
        self.run = run
        parts = [self._runs(document) for document in documents]
        self._known = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))

    def share(self, text: str) -> float:
        """The share of the text's runs that some document has too, 0 for a text of fewer words than a run."""
        runs = self._runs(text)
        if not len(runs) or not len(self._known):
            return 0.0
        place = np.minimum(np.searchsorted(self._known, runs), len(self._known) - 1)
        return float((self._known[place] == runs).mean())

    def _runs(self, text: str) -> NDArray[np.uint64]:
        words = np.fromiter(map(hash, text.split()), np.int64).view(np.uint64)
        n = len(words) - self.run + 1
        if n < 1:
            return np.zeros(0, np.uint64)
        total = np.zeros(n, np.uint64)
        for place in range(self.run):
            total = total * np.uint64(_MULTIPLIER) + words[place : place + n]
        return total
