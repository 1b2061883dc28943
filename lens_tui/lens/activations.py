"""Activations of a model over a text: what SAEs are trained on and feature indexes are made of.

Implements ``records.activations.ActivationSource`` for a ``LensModel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.activations import ActivationBlock, Place, SourceFacts, Splice
from lens_tui.records.corpus import Corpus, open_corpus

from .batches import Batch, Batches, Reading
from .model import LensModel
from .texts import TokenStore, tokenize

_LOGITS_AT_ONCE = 1 << 27


class TextActivations:
    """Blocks of activations at some layers and sites of a model over a tokenised text.

    The forward pass is computed only as far as the deepest place: MLX is lazy, and what lies above is never asked
    for. Interventions that are put up on the model hold here too. Use it on the model's thread.
    ``model_name`` is what goes on record (default: the hub id, or the name of the model's folder). Raises
    ``LensError`` for a place that the model does not have.
    """

    def __init__(
        self,
        model: LensModel,
        store: TokenStore,
        places: Sequence[Place],
        reading: Reading | None = None,
        *,
        model_name: str = "",
        corpus_sha256: str = "",
        extra: tuple[tuple[str, str], ...] = (),
    ) -> None:
        decoder = model.registry.decoder
        self._model = model
        self._places = tuple(dict.fromkeys((decoder.index(layer), site) for layer, site in places))
        if not self._places:
            raise LensError("There is no layer and site to read.", "Name at least one.")
        self._widths = {(layer, site): model.registry.sites.point(layer, site).width for layer, site in self._places}
        reading = reading or Reading()
        self._batches = Batches(store, model.tokens, reading)
        self._facts = SourceFacts(
            model_name=model_name or _public_name(model.info.name),
            corpus_sha256=corpus_sha256,
            n_documents=len(store.documents),
            n_tokens=self._batches.n_tokens(),
            context=reading.context,
            bos=self._batches.bos is not None,
            skipped=reading.skip,
            packed=reading.packed,
            seed=reading.seed,
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

    def d_model(self, place: Place) -> int:
        """The width of the activations at a place (not the model's at ``attn_z``)."""
        return self._widths[place]

    @property
    def n_blocks(self) -> int:
        """Blocks in one pass."""
        return self._batches.per_pass

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        """Blocks from ``start`` on, pass after pass, lazily. Values have shape ``(n, d)`` in the model's dtype."""
        index = start
        while stop is None or index < stop:
            batch = self._batches.batch(index)
            values = self._read(batch)
            yield ActivationBlock(index, batch.token_ids, batch.documents, batch.offsets, batch.special, values)
            index += 1

    def loss_with(self, place: Place, splice: Splice | None, blocks: int) -> float:
        """Mean cross-entropy (nats a predicted token) over the first ``blocks`` blocks, with a splice or without.

        The splice gets the activations of all positions of a block that are not special, ``(n, d)``; what it gives is
        put in their place in the model's dtype.
        """
        total, count = 0.0, 0
        for index in range(blocks):
            batch = self._batches.batch(index)
            for rows in self._portions(batch):
                loss, n = self._loss(batch, rows, place, splice)
                total, count = total + loss, count + n
        if not count:
            raise LensError("There is no predicted token to measure a loss on.", "Give a longer text.")
        return total / count

    def _read(self, batch: Batch) -> dict[Place, mx.array]:
        by_site: dict[str, list[int]] = {}
        for layer, site in self._places:
            by_site.setdefault(site, []).append(layer)
        with ExitStack() as stack:
            captured = {
                site: stack.enter_context(self._model.capture(layers, site=[site])) for site, layers in by_site.items()
            }
            self._model.forward(mx.array(batch.ids))
            tensors = {(layer, site): captured[site][layer, site] for layer, site in self._places}
        return {place: _rows_of(tensor, batch.real) for place, tensor in tensors.items()}

    def _loss(self, batch: Batch, rows: slice, place: Place, splice: Splice | None) -> tuple[float, int]:
        ids = mx.array(batch.ids[rows])
        t = ids.shape[1]
        inside = (batch.real >= rows.start * t) & (batch.real < rows.stop * t)
        real = batch.real[inside] - rows.start * t
        kept = mx.array(real[~batch.special[inside]])

        def put(_: Any, h: mx.array) -> mx.array:
            if splice is None or kept.size == 0:
                return h
            flat = h.reshape(-1, h.shape[-1])
            flat[kept] = splice(mx.take(flat, kept, axis=0)).astype(h.dtype)
            return flat.reshape(h.shape)

        if splice is None:
            logits = self._model.forward(ids)
        else:
            with self._model.hook(place[0], put, site=place[1]):
                logits = self._model.forward(ids)
        predicted = real[(real % t > 0)].astype(np.int32)
        if not len(predicted):
            return 0.0, 0
        before = mx.take(logits.reshape(-1, logits.shape[-1]), mx.array(predicted - 1), axis=0).astype(mx.float32)
        target = mx.take(ids.reshape(-1), mx.array(predicted))
        nll = mx.logsumexp(before, axis=-1) - mx.take_along_axis(before, target[:, None], axis=-1)[:, 0]
        return float(np.asarray(nll, np.float64).sum()), len(predicted)

    def _portions(self, batch: Batch) -> Iterator[slice]:
        rows, t = batch.ids.shape
        step = max(1, _LOGITS_AT_ONCE // (t * self._model.tokens.vocab_size))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


def _public_name(name: str) -> str:
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
    reading: Reading | None = None,
    model_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TextActivations, TextActivations | None]:
    """Open a text folder, ``.txt`` or ``.jsonl`` file for training: ``(source, held_out_source)``.

    With ``held_out=n`` every ``n``-th document of each file is kept out of the first source and makes the
    second one. ``max_tokens`` bounds the tokens of the first (the second gets at most a tenth of it), drawn at
    random by the seed of the reading. ``progress(done, total)`` follows the tokenising. Raises ``LensError`` where
    nothing can be read.
    """
    corpus = text if isinstance(text, Corpus) else open_corpus(text, text_key=text_key)
    reading = reading or Reading()
    name = corpus.names[0] if len(corpus.names) == 1 else f"{len(corpus.names)} files"
    facts: dict[str, Any] = {"model_name": model_name, "corpus_sha256": corpus.sha256, "extra": (("corpus", name),)}
    held: TextActivations | None = None
    if held_out:
        corpus, rest = corpus.split(held_out, min(7, held_out - 1))
        if len(rest) and len(corpus):
            limit = None if max_tokens is None else max(max_tokens // 10, 1)
            store = tokenize(rest, model.tokens, max_tokens=limit, seed=reading.seed)
            held = TextActivations(model, store, places, reading, **facts)
    store = tokenize(corpus, model.tokens, max_tokens=max_tokens, seed=reading.seed, progress=progress)
    return TextActivations(model, store, places, reading, **facts), held
