"""A corpus as token ids, and the windows that a model reads it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.corpus import Corpus

from .tokens import Tokens, whole

_DOCUMENTS_AT_ONCE = 512
NO_DOCUMENT = -1


@dataclass(frozen=True, slots=True, eq=False)
class TokenStore:
    """Documents as one run of token ids, each followed by a separator if the tokenizer has an end-of-text token.

    ``ids`` ``(n,)``; document ``i`` of the store begins at ``starts[i]``, has ``lengths[i]`` tokens and is
    number ``documents[i]`` in the corpus. 4 bytes a token. ``separated``: whether there are separators.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    documents: NDArray[np.int32]
    separated: bool

    def where(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """For indices into ``ids``: corpus document and offset in it; offset -1 for a separator."""
        index = np.searchsorted(self.starts, places, side="right") - 1
        offset = places - self.starts[index]
        offset = np.where(offset < self.lengths[index], offset, NO_DOCUMENT)
        return self.documents[index], offset.astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Runs of a store's tokens: the ``i``-th is ``ids[start[i] : start[i] + length[i]]``."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


def tokenize(
    corpus: Corpus,
    tokens: Tokens,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Tokenise a corpus without special tokens; with ``max_tokens``, documents drawn at random until there are as many.

    What is drawn depends on ``seed`` only, and stands in corpus order. ``progress(done, total)`` counts documents
    (or tokens, with ``max_tokens``).
    """
    order: NDArray[Any] = np.arange(len(corpus))
    if max_tokens is not None:
        order = np.random.Generator(np.random.PCG64([seed, 0x70])).permutation(len(corpus))
    found: list[tuple[int, NDArray[np.int32]]] = []
    total = 0
    for begin in range(0, len(order), _DOCUMENTS_AT_ONCE):
        some = [int(index) for index in order[begin : begin + _DOCUMENTS_AT_ONCE]]
        texts = [document.text for document in corpus.read(some)]
        for index, ids in zip(some, encode_batch(tokens, texts), strict=True):
            if len(ids):
                found.append((index, ids))
                total += len(ids)
            if max_tokens is not None and total >= max_tokens:
                break
        if progress:
            progress(*((begin + len(some), len(order)) if max_tokens is None else (min(total, max_tokens), max_tokens)))
        if max_tokens is not None and total >= max_tokens:
            break
    if not found:
        raise LensError("The text has no tokens.", "Give a text that is not empty.")
    return _store(sorted(found, key=lambda item: item[0]), _separator(tokens))


def encode_batch(tokens: Tokens, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
    """Token ids of many texts, without special tokens, checked against the vocabulary.

    Fast tokenizers use all cores.
    """
    if tokens.tokenizer is None:
        raise LensError("This model was given without a tokenizer.", "Use from_model(model, tokenizer).")
    inner: Any = getattr(tokens.tokenizer, "_tokenizer", tokens.tokenizer)
    backend: Any = getattr(inner, "backend_tokenizer", None)
    if backend is not None:
        found = backend.encode_batch([whole(text) for text in texts], add_special_tokens=False)
        lists: list[Any] = [encoding.ids for encoding in found]
    else:
        lists = [inner.encode(whole(text), add_special_tokens=False) for text in texts]
    for ids in lists:
        array = np.asarray(ids, np.int32)
        if len(array) and not 0 <= int(array.min()) <= int(array.max()) < tokens.vocab_size:
            raise LensError(
                f"The tokenizer gives ids beyond the model's vocabulary of {tokens.vocab_size}.", "Check the pair."
            )
        yield array


def packed_windows(store: TokenStore, length: int) -> Windows:
    """Windows of exactly ``length`` tokens through all documents, one after the other; a shorter rest is left out."""
    count = max(1, len(store.ids) // length)
    start = np.arange(count, dtype=np.int64) * length
    return Windows(start, np.minimum(length, len(store.ids) - start))


def document_windows(store: TokenStore, length: int) -> Windows:
    """Windows of at most ``length`` tokens, each of one document."""
    pieces = -(-store.lengths // length)
    document = np.repeat(np.arange(len(pieces)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = piece * length
    return Windows(store.starts[document] + begin, np.minimum(length, store.lengths[document] - begin))


def _separator(tokens: Tokens) -> int | None:
    eos = getattr(tokens.tokenizer, "eos_token_id", None)
    return eos if isinstance(eos, int) and 0 <= eos < tokens.vocab_size else None


def _store(found: list[tuple[int, NDArray[np.int32]]], separator: int | None) -> TokenStore:
    gap = 0 if separator is None else 1
    lengths = np.asarray([len(ids) for _, ids in found], np.int64)
    ends = np.cumsum(lengths + gap)
    ids = np.full(int(ends[-1]), separator or 0, np.int32)
    starts = ends - lengths - gap
    for start, (_, part) in zip(starts, found, strict=True):
        ids[start : start + len(part)] = part
    return TokenStore(ids, starts, lengths, np.asarray([index for index, _ in found], np.int32), gap == 1)
