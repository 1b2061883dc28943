"""Windows of a text side by side: the batches a model reads, by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .texts import NO_DOCUMENT, TokenStore, document_windows, packed_windows
from .tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a text is cut and ordered.

    A window is ``context`` tokens: BOS, if ``bos`` says so (``None``: if the tokenizer has one), then text. ``packed``
    windows run on through the documents (with end-of-text between them) and are all of one length; others are
    of one document each. The first ``skip`` positions of a window and every special token count as special: the
    first position is an attention sink whose activations are unlike all others. ``rows`` windows make a
    batch. With ``shuffle`` each pass takes the windows in another order, which depends on ``seed`` and the pass only.
    """

    context: int = 256
    rows: int = 32
    packed: bool = True
    shuffle: bool = True
    bos: bool | None = None
    skip: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows padded at the end, ids ``(rows, t)``.

    ``real`` ``(n,)`` holds the flat places that are no padding; the others, ``(n,)``, say of
    each: token, corpus document, offset in it (-1 for BOS and separators), whether it is special.
    """

    ids: NDArray[np.int32]
    real: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]


class Batches:
    """The batches of a tokenised text; batch ``i`` is the same whenever it is asked for.

    Batches go on without end: number ``per_pass`` begins the second pass. Raises ``LensError`` for a reading
    that leaves nothing to read.
    """

    def __init__(self, store: TokenStore, tokens: Tokens, reading: Reading) -> None:
        wanted = tokens.bos is not None if reading.bos is None else reading.bos
        if wanted and tokens.bos is None:
            raise LensError("This tokenizer has no BOS token to begin windows with.", "Leave bos out.")
        self.reading, self._store = reading, store
        self.bos: int | None = tokens.bos if wanted else None
        text = reading.context - (1 if wanted else 0)
        if text < 2 or reading.rows < 1 or not 0 <= reading.skip < reading.context:
            raise LensError(
                f"{reading.rows} windows of {reading.context} tokens, {reading.skip} left out, leave nothing to read.",
                "Use a context of 64 or more.",
            )
        self._windows = (packed_windows if reading.packed else document_windows)(store, text)
        self._specials = np.asarray(sorted(tokens.special_ids()), np.int32)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def per_pass(self) -> int:
        """Batches in one pass."""
        return -(-len(self._windows) // self.reading.rows)

    def batch(self, index: int) -> Batch:
        """Batch ``index``."""
        number, place = divmod(index, self.per_pass)
        rows = self.reading.rows
        chosen = self._pass_order(number)[place * rows : (place + 1) * rows]
        start, length = self._windows.start[chosen], self._windows.length[chosen]
        within = np.arange(int(length.max()))
        inside = within < length[:, None]
        flat = np.where(inside, start[:, None] + within, 0)
        text = np.where(inside, self._store.ids[flat], 0)
        document, offset = (part.reshape(flat.shape) for part in self._store.where(flat.reshape(-1)))
        if self.bos is not None:
            text = _lead(text, self.bos)
            document = np.concatenate([document[:, :1], document], axis=1)
            offset, inside = _lead(offset, NO_DOCUMENT), _lead(inside, True)
        special = np.isin(text, self._specials) | (offset < 0)
        special[:, : self.reading.skip] = True
        ids = text.astype(np.int32)
        real = np.flatnonzero(inside).astype(np.int32)
        return Batch(ids, real, ids[inside], document[inside], offset[inside], special[inside])

    def n_tokens(self) -> int:
        """Tokens in one pass that are not special."""
        store, windows = self._store, self._windows
        special = np.isin(store.ids, self._specials)
        if store.separated:
            special[store.starts + store.lengths] = True
        seen = np.concatenate([[0], np.cumsum(~special)])
        begin = windows.start + max(0, self.reading.skip - (0 if self.bos is None else 1))
        end = windows.start + windows.length
        return int((seen[end] - seen[np.minimum(begin, end)]).sum())

    def _pass_order(self, number: int) -> NDArray[np.int64]:
        number = number if self.reading.shuffle else 0
        if self._order is None or self._order[0] != number:
            n = len(self._windows)
            generator = np.random.Generator(np.random.PCG64([self.reading.seed, number]))
            self._order = (number, generator.permutation(n) if self.reading.shuffle else np.arange(n))
        return self._order[1]


def _lead(table: NDArray[Any], value: int) -> NDArray[Any]:
    """The table with a column of ``value`` in front."""
    return np.pad(table, ((0, 0), (1, 0)), constant_values=value)
