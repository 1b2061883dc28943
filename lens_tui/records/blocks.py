"""Blocks of tokens with their residuals: what a model hands to whoever streams over a corpus.

The lens library produces them, the feature index consumes them; neither knows
the other. A *place* is a ``(layer, site)`` pair, for example ``(12, "resid_post")``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBlock:
    """Some whole sequences of a corpus, end to end, without padding. ``n`` is the number of tokens.

    ``number`` counts blocks of the whole corpus from 0: block ``k`` holds the
    same tokens, run through the model in the same batch, whichever shard reads
    it, so that its numbers are the same to the bit. ``token_ids``, ``doc_ids``
    and ``positions`` have shape ``(n,)``; ``doc_ids`` numbers documents of the
    corpus from 0, ``positions`` counts tokens of the *document* from 0 (a
    long document is cut into sequences; the pair names a token whatever the
    block size). A special token that the corpus does not hold, such as the BOS
    put before a sequence, has the position of the token after it. ``special``
    is true at BOS and other special tokens, ``starts`` at the first token of
    every sequence: what one token can have seen of another ends there.
    ``residuals`` maps a place to an array ``(n, d_model)``: an ``mlx`` array,
    evaluated, or numpy.
    """

    number: int
    token_ids: NDArray[np.uint32]
    doc_ids: NDArray[np.uint32]
    positions: NDArray[np.uint32]
    special: NDArray[np.bool_]
    starts: NDArray[np.bool_]
    residuals: Mapping[Place, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many tokens the block holds."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Which model read which corpus, for provenance and for the key of an index.

    The hashes are of contents (``records.fingerprint``); ``settings`` is plain
    JSON: sequence length, batch size, whether BOS was put in front, truncation.
    ``n_tokens`` is 0 where it is not known before the pass.
    """

    model: str
    model_hash: str
    corpus: str
    corpus_hash: str
    precision: str = ""
    n_tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


class BlockSource(Protocol):
    """A corpus read by a model, block by block, repeatable from any block."""

    @property
    def facts(self) -> SourceFacts:
        """Which model, which corpus."""

    def blocks(self, start: int = 0, shard: tuple[int, int] = (0, 1)) -> Iterator[TokenBlock]:
        """The blocks with ``number >= start`` and ``number % n == i`` for ``shard = (i, n)``, in order."""
