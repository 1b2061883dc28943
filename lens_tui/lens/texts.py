"""Many texts of any lengths, read together: logits, losses and activations, each what its text alone gives.

Texts of similar length are padded at the end and go through the model together, in groups that bound the memory. What
stands behind a text's end is never seen from within it; whether that holds for a model is found out by a tiny forward,
and where it does not, only texts of one length go together. Long texts go in pieces over a KV cache, so that a stop
does not have to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .decode.sampling import cross_entropy, kl, log_softmax
from .forward import LOSS_BLOCK, MAX_LOGITS, MAX_ROWS, Core, Ids, pack, padded, real_of, tolerance
from .hooks.capture_result import CaptureResult
from .hooks.program import DoseMeter, Key
from .hooks.registry import Plan, PlanEntry, Registry, Run
from .hooks.steering import captured, check_moved, check_scored, check_values, explained, origin_of
from .room import FEWEST, check_forward, piece_of
from .tokens import Tokens, id_table

Rows = Sequence[Ids]
Entries = Sequence[PlanEntry]
Progress = Callable[[int, int], None]


def texts_in(tokens: Tokens, given: Any) -> tuple[Ids, ...] | None:
    """The token ids of each text, where several are given: a list of texts, or lists of ids that differ in length.

    ``None`` for what is one text, or a table of ids, as :func:`~.tokens.id_table` reads it. Raises :class:`LensError`
    with the number of a text that cannot be read.
    """
    if not isinstance(given, (list, tuple)) or not given:
        return None
    items = [item.tolist() if hasattr(item, "tolist") else item for item in given]
    named = any(isinstance(item, str) for item in items)
    lengths = {len(item) if isinstance(item, (list, tuple)) else -1 for item in items if not isinstance(item, str)}
    if -1 in lengths or not (named or len(lengths) > 1):
        return None
    return tuple(_ids(tokens, item, number) for number, item in enumerate(items, 1))


def _ids(tokens: Tokens, item: Any, number: int) -> Ids:
    if not len(item):
        raise LensError(f"Text {number} has no tokens.", "Leave empty texts out.")
    if isinstance(item, str):
        return tokens.encode(item)
    ids = id_table(item)
    if ids.ndim != 1:
        raise LensError(f"Text {number} is an array of {ids.shape}.", "Give one list of token ids for each text.")
    return tokens.check(ids.tolist())


def groups_of(registry: Registry, lengths: Sequence[int], per_token: int, *, most: int = MAX_LOGITS) -> list[list[int]]:
    """The numbers of texts that go together: of similar length, or of one where padding would change what is read.

    Args:
        registry: Of the model.
        lengths: Tokens of each text.
        per_token: Numbers that are held of each token.
        most: Numbers that a forward holds, at most, unless a single text has more.
    """
    rows = max(1, min(MAX_ROWS, piece_of(registry, 1) // FEWEST))
    tokens = max(1, most // max(1, per_token))
    if len(set(lengths)) < 2 or registry.once(_pads):
        return pack(lengths, [1] * len(lengths), most_rows=rows, most_tokens=tokens)
    by_length: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        by_length.setdefault(length, []).append(at)
    found = []
    for length, places in by_length.items():
        step = max(1, min(rows, tokens // length))
        found += [places[start : start + step] for start in range(0, len(places), step)]
    return found


def _pads(registry: Registry) -> bool:
    """Two texts together, one of them padded: whether each gives the distributions that it gives alone."""
    vocabulary = registry.decoder.vocab_size
    rows = [[(7 * at + 3) % vocabulary for at in range(length)] for length in (9, 4)]
    run = Run(registry, Plan())
    try:
        together = log_softmax(registry.forward(run, mx.array(padded(rows))))
        alone = [log_softmax(registry.forward(run, mx.array([row]))) for row in rows]
        far = [kl(one, together[at : at + 1, : len(rows[at])]).max() for at, one in enumerate(alone)]
        return bool((mx.stack(far) < tolerance(registry.decoder.dtype)).all())
    except Exception:  # whatever a model raises that does not take several texts at once
        return False


# -- activations ------------------------------------------------------------


def read_table(
    registry: Registry,
    table: mx.array,
    keys: Sequence[Key],
    entries: Entries = (),
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> dict[Key, mx.array]:
    """The tensors at sites, evaluated; nothing behind the last of them is computed.

    Args:
        registry: What is hooked.
        table: Ids ``(rows, tokens)``. Long rows go in pieces, between which ``registry.between`` may stop it.
        keys: Layers and sites.
        entries: What acts.
        rows: The same without padding, where there is any.
        progress: ``progress(done, total)`` counts a row's tokens, behind each piece of a long one.

    Returns:
        ``(rows, tokens, width)`` by layer and site.

    Raises:
        LensError: For what does not fit into memory.
        NotFinite: With the layer from which on the residual is not finite.
    """
    n_rows, length = table.shape
    result = CaptureResult(registry, tuple(dict.fromkeys(keys)), by_site=True)
    ends = length if rows is None else mx.array([len(row) for row in rows])
    run = Run(registry, Plan((entries,), (result,)), ends)
    check_forward(registry, run, n_rows, length)
    if length <= piece_of(registry, n_rows):
        registry.between()
        registry.forward(run, table)
    else:
        _in_pieces(run, table, result, progress)
    return captured(result, lambda: origin_of(registry, table if rows is None else rows, entries))


def _in_pieces(run: Run, table: mx.array, result: CaptureResult, progress: Progress | None) -> None:
    """Rows of ids through the model piece by piece, over a cache that is filled as far as the deepest layer read."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    registry = run.registry
    root: Any = registry.decoder.root
    cache = make_prompt_cache(root)
    own = len(cache) == registry.decoder.n_layers  # a layer's cache stands at its number
    deepest = max(layer for layer, _ in result.places)
    unread = [item for item in cache[deepest + 1 :] if own and type(item) in (KVCache, RotatingKVCache)]
    (n_rows, length), start = table.shape, 0
    while start < length:
        registry.between()
        piece = table[:, start : start + piece_of(registry, n_rows, start)]
        registry.forward(run, piece, cache, start=start)
        mx.eval(result.pending())
        start += piece.shape[1]
        if progress is not None:
            progress(start, length)
        for item in unread:
            # What lies behind is never computed: left alone, it would hold on to all that it could be computed from.
            item.keys, item.values = (mx.zeros(part.shape, part.dtype) for part in (item.keys, item.values))


def read_texts(
    registry: Registry, rows: Rows, keys: Sequence[Key], entries: Entries = ()
) -> Iterator[tuple[list[int], dict[Key, mx.array]]]:
    """Groups of texts: their numbers, and their activations ``(texts, longest of them, width)`` at sites, evaluated."""
    width = sum(registry.sites.point(*key).width for key in dict.fromkeys(keys))
    for places in groups_of(registry, [len(row) for row in rows], width):
        some = [rows[at] for at in places]
        yield places, read_table(registry, mx.array(padded(some)), keys, entries, some)


def read_rows(lens: Core, rows: Rows, keys: Sequence[Key]) -> Iterator[tuple[int, dict[Key, mx.array]]]:
    """For each text its number and its unsteered activations ``(tokens, width)`` at sites, evaluated."""
    # A row that is there twice is read once: in a batch of another size its numbers would differ in their last bits.
    places: dict[tuple[int, ...], list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(at)
    distinct = list(places)
    for chosen, held in read_texts(lens.registry, distinct, keys):
        for place, one in enumerate(chosen):
            for at in places[distinct[one]]:
                yield at, {key: held[key][place, : len(rows[at])] for key in keys}


def text_residuals(registry: Registry, rows: Rows, key: Key, *, steered: bool) -> mx.array:
    """Activations of texts at one site ``(texts, longest, width)``, zero behind a text's end, evaluated.

    Args:
        registry: What is hooked.
        rows: Token ids of each text.
        key: The layer and site.
        steered: Under what holds in the calling context, or of the plain model.
    """
    entries = registry.ambient()[0] if steered else ()
    found = _together([(places, held[key]) for places, held in read_texts(registry, rows, [key], entries)], rows)
    mx.eval(found)
    return found


# -- logits and losses ------------------------------------------------------


def text_logits(registry: Registry, rows: Rows) -> mx.array:
    """Logits of texts ``(texts, longest, vocabulary)`` under what holds, zero behind a text's end.

    What captures hold afterwards is of the same form. Positions count each text's end as its prompt's.
    """
    recorders = registry.ambient()[1]
    if not recorders:
        check_forward(registry, Run(registry, Plan()), len(rows), max(len(row) for row in rows))
    parts = []
    for places, logits in _groups(registry, rows):
        if not recorders and len(places) < len(rows):
            mx.eval(logits)  # so that a group's own tensors are gone before the next one; who captures may want none
        parts.append((places, logits))
    return _together(parts, rows)


def text_losses(registry: Registry, rows: Rows) -> NDArray[np.float64]:
    """Mean next-token cross-entropy of each text in nats ``(texts,)`` under what holds, by float32 log-softmax.

    For positions every token but the first counts as generated. Raises :class:`LensError` for a text of one token.
    """
    if short := next((number for number, row in enumerate(rows, 1) if len(row) < 2), None):
        raise LensError(f"A loss needs at least two tokens, and text {short} has one.", "Leave it out.")
    entries = registry.ambient()[0]
    for entry in entries:
        check_scored(entry.item, rows, 1, registry.bos)
    found = np.zeros(len(rows))
    for places, logits in _groups(registry, rows, n_prompt=1):
        found[places] = _losses(logits, [rows[at] for at in places])
    check_values(found, "The losses", lambda: origin_of(registry, rows, entries, n_prompt=1))
    return found


def _losses(logits: mx.array, rows: Rows) -> NDArray[np.float64]:
    table = padded(rows)
    counts = np.asarray([len(row) - 1 for row in rows])
    total = np.zeros(len(rows))
    for start in range(0, table.shape[1] - 1, LOSS_BLOCK):
        stop = min(start + LOSS_BLOCK, table.shape[1] - 1)
        values = cross_entropy(logits[:, start:stop], mx.array(table[:, start + 1 : stop + 1]))
        within = mx.array(np.arange(start, stop) < counts[:, None])
        total += np.array(mx.where(within, values, 0.0).sum(axis=1), np.float64)
    found: NDArray[np.float64] = total / counts
    return found


def _groups(registry: Registry, rows: Rows, n_prompt: int | None = None) -> Iterator[tuple[list[int], mx.array]]:
    """Groups of texts with their logits, under what holds; captures get all texts once the last group is taken."""
    entries, recorders = registry.ambient()
    keys = tuple(dict.fromkeys(place for recorder in recorders for place in recorder.places))
    lengths = [len(row) for row in rows]
    ends = mx.array([n_prompt] * len(rows) if n_prompt else lengths)
    whole = Run(registry, Plan((entries,), recorders), ends)
    unproved = [entry for entry in entries if entry.proved != entry.stamp]
    total = DoseMeter() if unproved else None
    if keys:
        check_forward(registry, whole, len(rows), max(lengths))
    held: dict[Key, list[tuple[list[int], mx.array]]] = {key: [] for key in keys}
    for places in groups_of(registry, lengths, registry.decoder.vocab_size):
        registry.between()
        some, result = [rows[at] for at in places], CaptureResult(registry, keys, by_site=True)
        plan = Plan((entries,), (result,) if keys else ())
        meter = DoseMeter() if unproved else None
        run = Run(registry, plan, ends[mx.array(places)], meter=meter, real=real_of(some))
        logits = registry.forward(run, mx.array(padded(some)))
        result.end()
        for key in keys:
            held[key].append((places, result[key]))
        if meter is not None and total is not None:
            total.add({key: sums.sum(axis=1) for key, sums in meter.sums().items()}, [0], 1)
        yield places, logits
    if total is not None:
        with explained(whole, rows):
            check_moved(registry, whole.plan, total, touched=True)
    for entry in unproved:
        entry.proved = entry.stamp
    for recorder in recorders:
        recorder.begin(whole, True)
        for key in recorder.places:
            recorder.record(key, _together(held[key], rows))
        recorder.end()


def _together(parts: Sequence[tuple[list[int], mx.array]], rows: Rows) -> mx.array:
    """What groups of texts gave, ``(texts of the group, longest of it, width)`` each, as one, in the texts' order."""
    lengths = np.asarray([len(row) for row in rows])
    longest = int(lengths.max())
    wide = [mx.pad(values, [(0, 0), (0, longest - values.shape[1]), (0, 0)]) for _, values in parts]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    found = wide[0] if len(wide) == 1 else mx.concatenate(wide)
    if (order != np.arange(len(order))).any():
        found = found[mx.array(order.astype(np.int32))]
    real = real_of(rows)
    return found if real is None else mx.where(real, found, mx.zeros((), found.dtype))
