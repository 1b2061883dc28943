"""NLL and KL of given tokens under several steerings at once: what every measure is made of.

A text and its steerings are one group of rows: the unsteered row and one row for
each steering, with coefficients of their own. Groups of similar length share a forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, LensError

from .rows import MAX_LOGITS, MAX_ROWS, forward_rows

if TYPE_CHECKING:
    from .model import LensModel
    from .tokens import Span

Plan = tuple[Intervention, ...]
Array = NDArray[np.float64]
_BLOCK = 1 << 25


@dataclass(frozen=True, eq=False)
class Item:
    """Token ids, the steerings to score them under, and the first token that is scored (the prompt's length)."""

    ids: tuple[int, ...]
    plans: tuple[Plan, ...]
    n_prompt: int = 1
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """One steering on one text, each array (scored tokens,) in nats: NLL without and with it, KL both ways."""

    base: Array
    nll: Array
    forward: Array
    reverse: Array


def score(lens: LensModel, items: Sequence[Item], base: Sequence[Array] | None = None) -> list[list[Score]]:
    """For each item one :class:`Score` a plan; float32 log-softmax.

    ``base`` holds the unsteered NLL of each item where it is known: then no unsteered rows are run, and
    there is no KL.
    """
    lead: list[Plan] = [()] if base is None else []
    found: list[list[Score]] = [[] for _ in items]
    for at, item in enumerate(items):
        _check(item, at)
    for batch in _batches(items, lens.registry.decoder.vocab_size, len(lead)):
        rows, plans, ends = [], [], []
        for at, chosen in batch:
            item = items[at]
            rows += [item.ids] * (len(lead) + len(chosen))
            plans += [*lead, *chosen]
            ends += [item.n_prompt] * (len(lead) + len(chosen))
        logits = forward_rows(lens, rows, plans, ends, spans=items[batch[0][0]].spans)
        start = 0
        for at, chosen in batch:
            stop = start + len(lead) + len(chosen)
            found[at] += _scores(logits[start:stop], items[at], None if base is None else base[at])
            start = stop
    return found


def _check(item: Item, at: int) -> None:
    if not 1 <= item.n_prompt < len(item.ids):
        raise LensError(f"Text {at + 1} has {len(item.ids)} tokens, of which none can be scored.", "Give a longer one.")
    for plan in item.plans:
        if any(record.positions.kind == "role" and record.positions.role == "thinking" for record in plan):
            raise LensError(
                "Positions of role 'thinking' are not known of given tokens.", "Measure with positions ALL."
            )


def _batches(items: Sequence[Item], vocabulary: int, lead: int) -> Iterator[list[tuple[int, tuple[Plan, ...]]]]:
    """Groups of rows in batches: items of one chat layout, by length, plans cut where one item has too many."""
    order = sorted(range(len(items)), key=lambda at: (repr(items[at].spans), len(items[at].ids), at))
    batch: list[tuple[int, tuple[Plan, ...]]] = []
    rows = 0
    for at in order:
        item = items[at]
        most = max(1 + lead, min(MAX_ROWS, MAX_LOGITS // (len(item.ids) * vocabulary)))
        for start in range(0, len(item.plans), most - lead):
            chosen = item.plans[start : start + most - lead]
            if batch and (rows + lead + len(chosen) > most or items[batch[-1][0]].spans != item.spans):
                yield batch
                batch, rows = [], 0
            batch.append((at, chosen))
            rows += lead + len(chosen)
    if batch:
        yield batch


def _scores(logits: mx.array, item: Item, base: Array | None) -> list[Score]:
    """Scores of one group, logits (rows, longest, vocabulary), a block of positions at a time.

    The first row is the unsteered one unless ``base`` is given.
    """
    first, last = item.n_prompt - 1, len(item.ids) - 1
    size = max(1, _BLOCK // (logits.shape[0] * logits.shape[-1]))
    parts: list[list[Any]] = []
    for start in range(first, last, size):
        stop = min(last, start + size)
        logprobs = logits[:, start:stop].astype(mx.float32)
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
        target = mx.array(np.asarray(item.ids[start + 1 : stop + 1], np.int32))[None, :, None]
        target = mx.broadcast_to(target, (logprobs.shape[0], stop - start, 1))
        block = [-mx.take_along_axis(logprobs, target, axis=-1)[..., 0]]
        if base is None:
            gap = logprobs[:1] - logprobs
            block += [(mx.exp(logprobs[:1]) * gap).sum(axis=-1), -(mx.exp(logprobs) * gap).sum(axis=-1)]
        mx.eval(block)
        parts.append([np.array(values, dtype=np.float64) for values in block])
    nll, *kl = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    if base is not None:
        return [Score(base, row, row[:0], row[:0]) for row in nll]
    forward, reverse = (np.maximum(values, 0.0) for values in kl)
    return [Score(nll[0], nll[row], forward[row], reverse[row]) for row in range(1, nll.shape[0])]
