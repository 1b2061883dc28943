"""Activations over a corpus: its token ids, the windows that a model reads it in, and what is read there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.corpus import Corpus, open_corpus
from lens_tui.records.training import ActivationBlock, Place, SourceFacts, Splice

from ..decode.sampling import cross_entropy
from ..hooks.capture_result import CaptureResult
from ..hooks.steering import check_values, origin_of
from ..model import LensModel
from ..tokens import Tokens, whole

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
    """Tokenise a corpus without special tokens.

    Args:
        corpus: The documents.
        tokens: The model's tokenizer.
        max_tokens: Draw documents at random until there are as many tokens; they stand in corpus order.
        seed: What is drawn depends on it only.
        progress: ``progress(done, total)`` counts documents, or tokens with ``max_tokens``.

    Raises:
        LensError: For a corpus without a token.
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
    return store_of(sorted(found, key=lambda item: item[0]), _separator(tokens))


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
    # Windows run on over the ends of documents: none is wasted on padding, and what begins in the middle of a text is
    # what a model sees in training as well. A text shorter than one window still makes one.
    count = max(1, len(store.ids) // length)
    start = np.arange(count, dtype=np.int64) * length
    return Windows(start, np.minimum(length, len(store.ids) - start))


def document_windows(store: TokenStore, length: int) -> Windows:
    """Windows of at most ``length`` tokens, each of one document."""
    # For all documents at once: each has as many pieces as it takes, numbered within it (``piece``) by taking away
    # the number of the document's first one.
    pieces = -(-store.lengths // length)
    document = np.repeat(np.arange(len(pieces)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = piece * length
    return Windows(store.starts[document] + begin, np.minimum(length, store.lengths[document] - begin))


def _separator(tokens: Tokens) -> int | None:
    eos = getattr(tokens.tokenizer, "eos_token_id", None)
    return eos if isinstance(eos, int) and 0 <= eos < tokens.vocab_size else None


def store_of(found: list[tuple[int, NDArray[np.int32]]], separator: int | None) -> TokenStore:
    """Documents as one run: their numbers in the corpus with their ids, in order."""
    gap = 0 if separator is None else 1
    lengths = np.asarray([len(ids) for _, ids in found], np.int64)
    ends = np.cumsum(lengths + gap)
    ids = np.full(int(ends[-1]), separator or 0, np.int32)
    starts = ends - lengths - gap
    for start, (_, part) in zip(starts, found, strict=True):
        ids[start : start + len(part)] = part
    return TokenStore(ids, starts, lengths, np.asarray([index for index, _ in found], np.int32), gap == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowing:
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
class WindowBatch:
    """Windows padded at the end, ids ``(rows, t)``.

    ``real`` ``(n,)`` holds the flat places that are not padding; the others, ``(n,)``, say of
    each: token, corpus document, offset in it (-1 for BOS and separators), whether it is special.
    """

    ids: NDArray[np.int32]
    real: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]


class WindowBatches:
    """The batches of a tokenised text; batch ``i`` is the same whenever it is asked for.

    Batches never end: number ``per_pass`` begins the second pass. Raises ``LensError`` for a windowing
    that leaves nothing to read.
    """

    def __init__(self, store: TokenStore, tokens: Tokens, windowing: Windowing) -> None:
        wanted = tokens.bos is not None if windowing.bos is None else windowing.bos
        if wanted and tokens.bos is None:
            raise LensError("This tokenizer has no BOS token to begin windows with.", "Leave bos out.")
        self.windowing, self._store = windowing, store
        self.bos: int | None = tokens.bos if wanted else None
        text = windowing.context - (1 if wanted else 0)
        if text < 2 or windowing.rows < 1 or not 0 <= windowing.skip < windowing.context:
            raise LensError(
                f"{windowing.rows} windows of {windowing.context} tokens, {windowing.skip} left out, "
                "leave nothing to read.",
                "Use a context of 64 or more.",
            )
        self._windows = (packed_windows if windowing.packed else document_windows)(store, text)
        self._specials = np.asarray(sorted(tokens.special_ids()), np.int32)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def per_pass(self) -> int:
        """Batches in one pass."""
        return -(-len(self._windows) // self.windowing.rows)

    def batch(self, index: int) -> WindowBatch:
        """Batch ``index``."""
        number, place = divmod(index, self.per_pass)
        rows = self.windowing.rows
        # A batch is a function of its number alone, so that an interrupted training continues with the next one,
        # and nothing but the order of the windows has to be known of a pass.
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
        # By the ids for special tokens within a text, by the offset for BOS and separators, which no document has.
        special = np.isin(text, self._specials) | (offset < 0)
        special[:, : self.windowing.skip] = True
        ids = text.astype(np.int32)
        real = np.flatnonzero(inside).astype(np.int32)
        return WindowBatch(ids, real, ids[inside], document[inside], offset[inside], special[inside])

    def sizes(self) -> NDArray[np.int64]:
        """The positions of each batch of the first pass that are not padding, ``(per_pass,)``."""
        lengths = self._windows.length[self._pass_order(0)] + (0 if self.bos is None else 1)
        return np.add.reduceat(lengths, np.arange(0, len(lengths), self.windowing.rows))

    def n_tokens(self) -> int:
        """Tokens in one pass that are not special."""
        store, windows = self._store, self._windows
        special = np.isin(store.ids, self._specials)
        if store.separated:
            special[store.starts + store.lengths] = True
        # Counted without a pass over the windows: sums up to each place, taken at both ends of every window.
        seen = np.concatenate([[0], np.cumsum(~special)])
        begin = windows.start + max(0, self.windowing.skip - (0 if self.bos is None else 1))
        end = windows.start + windows.length
        return int((seen[end] - seen[np.minimum(begin, end)]).sum())

    def _pass_order(self, number: int) -> NDArray[np.int64]:
        number = number if self.windowing.shuffle else 0
        if self._order is None or self._order[0] != number:
            n = len(self._windows)
            generator = np.random.Generator(np.random.PCG64([self.windowing.seed, number]))
            self._order = (number, generator.permutation(n) if self.windowing.shuffle else np.arange(n))
        return self._order[1]


def _lead(table: NDArray[Any], value: int) -> NDArray[Any]:
    """The table with a column of ``value`` in front."""
    return np.pad(table, ((0, 0), (1, 0)), constant_values=value)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """A text that is tokenised, how it is cut, and its facts: what another process needs to read it alike."""

    store: TokenStore
    windowing: Windowing
    facts: dict[str, Any]

    def read_by(
        self, model: LensModel, places: Sequence[Place], pause: Callable[[], None] = lambda: None
    ) -> TextActivations:
        """The text as a model reads it at some places."""
        return TextActivations(model, self.store, places, self.windowing, pause=pause, **self.facts)


_LOGITS_AT_ONCE = 1 << 27


class TextActivations:
    """Blocks of activations at some layers and sites of a model over a tokenised text.

    The forward pass is computed only as far as the deepest place: MLX is lazy, and what lies above is never asked
    for. Interventions that act on the model apply here too. Use it on the model's thread.
    ``model_name`` is what is recorded (default: the hub id, or the name of the model's folder); ``pause`` is called
    before each forward pass and may raise. Raises ``LensError`` for a place that the model does not have.
    """

    def __init__(
        self,
        model: LensModel,
        store: TokenStore,
        places: Sequence[Place],
        windowing: Windowing | None = None,
        *,
        model_name: str = "",
        corpus_sha256: str = "",
        extra: tuple[tuple[str, str], ...] = (),
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        decoder = model.registry.decoder
        self._model, self._pause = model, pause
        self._places = tuple(dict.fromkeys((decoder.index(layer), site) for layer, site in places))
        if not self._places:
            raise LensError("There is no layer and site to read.", "Name at least one.")
        self._widths = {(layer, site): model.registry.sites.point(layer, site).width for layer, site in self._places}
        windowing = windowing or Windowing()
        named = model_name or public_name(model.info.name)
        known = {"model_name": named, "corpus_sha256": corpus_sha256, "extra": extra}
        self.text = TokenizedText(store, windowing, known)
        self._batches = WindowBatches(store, model.tokens, windowing)
        self._facts = SourceFacts(
            model_name=named,
            corpus_sha256=corpus_sha256,
            n_documents=len(store.documents),
            n_tokens=self._batches.n_tokens(),
            context=windowing.context,
            bos=self._batches.bos is not None,
            skipped=windowing.skip,
            packed=windowing.packed,
            seed=windowing.seed,
            extra=(("precision", model.info.quantization or model.info.dtype), *extra),
        )

    @property
    def places(self) -> tuple[Place, ...]:
        """Layers (from 0) and sites, in the order they were asked for."""
        return self._places

    @property
    def facts(self) -> SourceFacts:
        """What this source is."""
        return self._facts

    def at(self, places: Sequence[Place]) -> TextActivations:
        """The same text in the same windows, read at some of its places; nothing is tokenised again.

        Raises ``LensError`` for a place that is none of its own.
        """
        decoder = self._model.registry.decoder
        wanted = tuple(dict.fromkeys((decoder.index(layer), site) for layer, site in places))
        for layer, site in wanted:
            if (layer, site) not in self._widths:
                raise LensError(f"The text is not read at layer {layer}, {site}.", "Name it among the places.")
        made = copy.copy(self)
        made._places = wanted or self._places
        return made

    def d_model(self, place: Place) -> int:
        """The width of the activations at a place (not the model's at ``attn_z``)."""
        return self._widths[place]

    @property
    def n_blocks(self) -> int:
        """Blocks in one pass."""
        return self._batches.per_pass

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the model's dtype."""
        size: int = self._model.registry.decoder.dtype.size
        return size

    def sizes(self) -> NDArray[np.int64]:
        """The positions of each block of the first pass."""
        return self._batches.sizes()

    def counted(self, index: int) -> int:
        """The positions of block ``index`` that are not special."""
        return int((~self._batches.batch(index).special).sum())

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        """Blocks from ``start`` on, pass after pass, lazily. Values have shape ``(n, d)`` in the model's dtype."""
        index = start
        while stop is None or index < stop:
            batch = self._batches.batch(index)
            values = self._read(batch)
            yield ActivationBlock(index, batch.token_ids, batch.documents, batch.offsets, batch.special, values)
            index += 1

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """Mean cross-entropy (nats a predicted token) over the first ``blocks`` blocks, with a splice or without.

        The splice gets the activations of all positions of a block that are not special, ``(n, d)``; what it gives is
        put in their place in the model's dtype. With ``read`` it gets those of that place, which the model has to
        reach before ``place``, as a transcoder does.
        """
        return self.loss_with_all([] if splice is None else [(read or place, place, splice)], blocks)

    def loss_with_all(self, splices: Sequence[tuple[Place, Place, Splice]], blocks: int) -> float:
        """As :meth:`loss_with` with several splices at once, each as ``(read, place, splice)``.

        What a later one reads is what the model makes of the earlier ones.
        """
        total, count = 0.0, 0
        for index in range(blocks):
            batch = self._batches.batch(index)
            for rows in self._portions(batch):
                loss, n = self._loss(batch, rows, splices)
                total, count = total + loss, count + n
        if not count:
            raise LensError("There is no predicted token to measure a loss on.", "Give a longer text.")
        return total / count

    def _read(self, batch: WindowBatch) -> dict[Place, mx.array]:
        registry = self._model.registry
        held = CaptureResult(registry, tuple(self._places), by_site=True)
        self._pause()
        registry.put(held)
        try:
            self._model.forward(self._rows(batch))
            return {place: _rows_of(held[place], batch.real) for place in self._places}
        finally:
            registry.take(held)

    def _rows(self, batch: WindowBatch) -> Any:
        """The windows as a table; each at its own length where something acts, which may count from a window's end."""
        lengths = np.bincount(batch.real // batch.ids.shape[1], minlength=len(batch.ids))
        if not self._model.hooked or (lengths == lengths.max()).all():
            return mx.array(batch.ids)
        return [row[:length].tolist() for row, length in zip(batch.ids, lengths, strict=True)]

    def _loss(
        self, batch: WindowBatch, rows: slice, splices: Sequence[tuple[Place, Place, Splice]]
    ) -> tuple[float, int]:
        self._pause()
        ids = mx.array(batch.ids[rows])
        t = ids.shape[1]
        inside = (batch.real >= rows.start * t) & (batch.real < rows.stop * t)
        real = batch.real[inside] - rows.start * t
        kept = mx.array(real[~batch.special[inside]])

        with ExitStack() as stack:
            for read, place, splice in splices if kept.size else ():
                _splice(self._model, stack, read, place, partial(_spliced, splice, kept))
            logits = self._model.forward(ids)
        predicted = real[(real % t > 0)].astype(np.int32)
        if not len(predicted):
            return 0.0, 0
        before = mx.take(logits.reshape(-1, logits.shape[-1]), mx.array(predicted - 1), axis=0)
        target = mx.take(ids.reshape(-1), mx.array(predicted))
        total = float(np.asarray(cross_entropy(before, target), np.float64).sum())
        where = (lambda: origin_of(self._model.registry, ids)) if not splices else (lambda: "")
        check_values(np.asarray(total), "The losses", where)
        return total, len(predicted)

    def _portions(self, batch: WindowBatch) -> Iterator[slice]:
        rows, t = batch.ids.shape
        step = max(1, _LOGITS_AT_ONCE // (t * self._model.tokens.vocab_size))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


def _spliced(splice: Splice, kept: mx.array, read: mx.array, h: mx.array) -> mx.array:
    """``h`` with what the splice makes of the kept rows of ``read``."""
    flat = h.reshape(-1, h.shape[-1])
    flat[kept] = splice(mx.take(read.reshape(-1, read.shape[-1]), kept, axis=0)).astype(h.dtype)
    return flat.reshape(h.shape)


def _splice(
    model: LensModel, stack: ExitStack, read: Place, place: Place, put: Callable[[mx.array, mx.array], mx.array]
) -> None:
    """Hook ``put(what is read, what is there)`` into the model until the stack is left."""
    if read == place:
        stack.enter_context(model.hook(place[0], lambda _, h: put(h, h), site=place[1]))
        return
    held: list[mx.array] = []

    def keep(_: Any, h: mx.array) -> None:
        held[:] = [h]

    stack.enter_context(model.hook(read[0], keep, site=read[1]))
    stack.enter_context(model.hook(place[0], lambda _, h: put(held[0], h), site=place[1]))


def public_name(name: str) -> str:
    """What a model is called on record."""
    # A local path says more of the machine than of the model.
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def _rows_of(tensor: mx.array, real: NDArray[np.int32]) -> mx.array:
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if len(real) == flat.shape[0] else mx.take(flat, mx.array(real), axis=0)


def text_activations(
    model: LensModel,
    text: str | Path | Corpus,
    places: Sequence[Place],
    *,
    held_out: int = 0,
    max_tokens: int | None = None,
    text_key: str = "text",
    windowing: Windowing | None = None,
    model_name: str = "",
    progress: Callable[[int, int], None] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> tuple[TextActivations, TextActivations | None]:
    """Open a text folder, ``.txt`` or ``.jsonl`` file for training.

    Args:
        model: The model.
        text: The path, or a corpus that is open.
        places: Layers and sites to read.
        held_out: Keep every ``n``-th document of each file out of the first source; they make the second one.
        max_tokens: Bounds the tokens of the first source (the second gets at most a tenth of it), drawn at random by
            the seed of the windowing.
        text_key: The field of a JSON line that has the text.
        windowing: How the text is cut and ordered.
        model_name: What goes on record, by default the model's own name.
        progress: ``progress(done, total)`` follows the tokenising.
        pause: Called before each forward pass; what it raises ends the reading.

    Returns:
        The source, and the held-out one (``None`` where nothing is held out).

    Raises:
        LensError: Where nothing can be read.
    """
    corpus = text if isinstance(text, Corpus) else open_corpus(text, text_key=text_key)
    windowing = windowing or Windowing()
    name = corpus.names[0] if len(corpus.names) == 1 else f"{len(corpus.names)} files"
    facts: dict[str, Any] = {
        "model_name": model_name,
        "corpus_sha256": corpus.sha256,
        "extra": (("corpus", name),),
        "pause": pause,
    }
    held: TextActivations | None = None
    if held_out:
        corpus, rest = corpus.split(held_out, min(7, held_out - 1))
        if len(rest) and len(corpus):
            limit = None if max_tokens is None else max(max_tokens // 10, 1)
            store = tokenize(rest, model.tokens, max_tokens=limit, seed=windowing.seed)
            held = TextActivations(model, store, places, windowing, **facts)
    store = tokenize(corpus, model.tokens, max_tokens=max_tokens, seed=windowing.seed, progress=progress)
    return TextActivations(model, store, places, windowing, **facts), held
