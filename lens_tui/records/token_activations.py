"""How activations get from a model to what learns from them or indexes them.

``lens`` makes them, ``sae`` uses them and neither knows the other: what they share is in
these protocols. Arrays are whatever the maker uses (MLX, or NumPy in a test);
nothing here looks into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, str]
"""A layer and a site, e.g. ``(4, "resid_post")``."""


@dataclass(frozen=True, slots=True)
class ActivationBlock:
    """Some token positions of a text and what the model held there.

    ``index`` is the block's number in its source: block ``i`` is the same rows,
    in the same order, whenever and wherever it is asked for. ``token_ids``,
    ``documents``, ``offsets`` and ``special`` have shape ``(n,)``: the token,
    the corpus number of its document, its place among the tokens of that document
    (-1 for tokens that belong to none: BOS, separators) and whether it is left out
    by convention (BOS, other special tokens, the positions that every window
    skips). ``values`` maps a place to an array ``(n, d)`` in the model's dtype.
    """

    index: int
    token_ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]
    values: dict[Place, Any]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source is, for the record: enough to know whether two sources are the same one.

    ``context`` is the window length in tokens, ``bos`` whether each window begins
    with BOS, ``skipped`` how many positions at the start of a window are special.
    ``n_tokens`` counts the tokens that are not special in one pass.
    """

    model_name: str
    corpus_sha256: str
    n_documents: int
    n_tokens: int
    context: int
    bos: bool
    skipped: int
    packed: bool
    seed: int
    extra: tuple[tuple[str, str], ...] = ()


Splice = Callable[[Any], Any]
"""Takes the activations ``(n, d)`` of a place, gives what the model is to continue with."""


@runtime_checkable
class ActivationSource(Protocol):
    """Blocks of activations by number, and the model's loss with something spliced in."""

    @property
    def places(self) -> tuple[Place, ...]:
        """What each block carries."""
        ...

    @property
    def facts(self) -> SourceFacts:
        """What this source is."""
        ...

    def d_model(self, place: Place) -> int:
        """The width of the activations at a place."""
        ...

    @property
    def n_blocks(self) -> int:
        """Blocks in one pass over the corpus. Block ``n_blocks`` begins the second pass, in another order."""
        ...

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        """Blocks ``start``, ``start + 1``, ... without end (or up to ``stop``)."""
        ...

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """Mean cross-entropy (nats a token) over the first ``blocks`` blocks.

        ``splice`` replaces the activations of the positions that are not special;
        ``None`` leaves the model as it is. It is given what stands at ``place``, or at ``read``, which comes before it.
        """
        ...
