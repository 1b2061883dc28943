"""NLL and KL of given tokens under several steerings at once: what every measure is made of.

A text and its steerings are one group of rows: the unsteered row and one row for
each steering, with coefficients of their own. Groups of similar length share a forward.
What lies below the first steered site is computed once a text, not once a row; and what
does not depend on the steering at all can be computed once for many calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, LensError

from ..architecture.find import Decoder
from ..decode.sampling import kl, log_softmax
from ..forward import MAX_LOGITS, MAX_ROWS, Core, forward_rows, pack, tolerance
from ..hooks.capture_result import CaptureResult
from ..hooks.program import Key, has_effect
from ..hooks.registry import Plan, Registry, Resume, Run
from ..hooks.steering import check_scored, entries_of, not_finite, origin_of
from ..tokens import Span

Interventions = tuple[Intervention, ...]
"""The interventions that a text is scored under; none at all is the plain model."""
Text = tuple[int, ...]
Chosen = tuple[int, tuple[Interventions, ...]]
"""The number of an item, and those of its plans that go into one batch."""
Array = NDArray[np.float64]
_BLOCK = 1 << 25


@dataclass(frozen=True, eq=False)
class ScoredText:
    """Token ids, the steerings to score them under, and the first token that is scored (the prompt's length)."""

    ids: tuple[int, ...]
    plans: tuple[Interventions, ...]
    n_prompt: int = 1
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """One steering on one text, each array (scored tokens,) in nats: NLL without and with it, KL both ways."""

    base: Array
    nll: Array
    forward: Array
    reverse: Array

    def unmoved(self) -> Score:
        """The score without steering on the same text."""
        return Score(self.base, self.base, np.zeros_like(self.forward), np.zeros_like(self.reverse))


@dataclass(frozen=True, eq=False)
class Unsteered:
    """What does not depend on a steering: each item's unsteered NLL, and where forwards may resume.

    ``nll`` is ``None`` where it is not known: unsteered rows are then run beside the steered ones.
    """

    nll: list[Array] | None = None
    below: Below | None = None


def score(lens: Core, items: Sequence[ScoredText], known: Unsteered | None = None) -> list[list[Score]]:
    """For each item one :class:`Score` a plan; float32 log-softmax.

    Where the unsteered NLL is ``known``, no unsteered rows are run and there is no KL.
    """
    known = known or Unsteered()
    lead: list[Interventions] = [()] if known.nll is None else []
    found: list[list[Score]] = [[] for _ in items]
    for at, item in enumerate(items):
        _check(lens, item, at)
    for batch in _batches(items, lens.registry.decoder.vocab_size, len(lead)):
        rows, plans, ends = [], [], []
        for at, chosen in batch:
            item = items[at]
            rows += [item.ids] * (len(lead) + len(chosen))
            plans += [*lead, *chosen]
            ends += [item.n_prompt] * (len(lead) + len(chosen))
        resume = _resume(lens, rows, plans, known.below)
        logits = forward_rows(lens, rows, plans, ends, spans=items[batch[0][0]].spans, resume=resume)
        start = 0
        for at, chosen in batch:
            stop = start + len(lead) + len(chosen)
            scores = _scores(logits[start:stop], items[at], None if known.nll is None else known.nll[at])
            _check_finite(lens, items[at], chosen, scores)
            # A steering of scale 0 is none, whatever the last bits of a row computed beside others say.
            found[at] += [
                one if any(map(has_effect, plan)) else one.unmoved() for plan, one in zip(chosen, scores, strict=True)
            ]
            start = stop
    return found


def unsteered(lens: Core, items: Sequence[ScoredText], *, with_nll: bool = True) -> Unsteered:
    """What is known of items before they are scored, for as many calls of :func:`score` as there will be.

    Those calls may have other plans, of other scales say. Residuals too large to be kept are left out, and
    computed in each batch. ``with_nll=False`` leaves the NLL out.
    """
    key = first_site(lens.registry, (plan for item in items for plan in item.plans))
    if key is not None and not fits(lens.registry.decoder, {item.ids for item in items}):
        key = None
    plain_reading = _PlainReading(lens, key)
    plain = [ScoredText(item.ids, ((),), item.n_prompt, item.spans) for item in items]
    if with_nll or key is not None:
        for at, item in enumerate(plain if with_nll else ()):
            _check(lens, item, at)
        for batch in _batches(plain, lens.registry.decoder.vocab_size, 0):
            plain_reading.read([(at, plain[at]) for at, _ in batch], with_nll=with_nll)
    nll = [plain_reading.nll[at] for at in range(len(items))] if with_nll else None
    return Unsteered(nll, None if key is None else Below(key, plain_reading.residuals))


@dataclass(eq=False)
class _PlainReading:
    """Texts read without steering, a batch at a time."""

    lens: Core
    key: tuple[int, str] | None
    nll: dict[int, Array] = field(default_factory=dict)
    residuals: dict[tuple[int, ...], mx.array] = field(default_factory=dict)

    def read(self, batch: Sequence[tuple[int, ScoredText]], *, with_nll: bool) -> None:
        rows = [item.ids for _, item in batch]
        recorders = () if self.key is None else (CaptureResult(self.lens.registry, (self.key,), by_site=True),)
        logits = forward_rows(self.lens, rows, recorders=recorders)
        for recorder in recorders:
            hidden = recorder[recorder.places[0]]
            self.residuals |= {row: hidden[at, : len(row)] for at, row in enumerate(rows)}
        for place, (at, item) in enumerate(batch):
            if with_nll:
                (only,) = _scores(logits[place : place + 1], item, np.zeros(0))
                _check_finite(self.lens, item, item.plans, [only])
                self.nll[at] = only.nll


def _resume(
    lens: Core, rows: Sequence[tuple[int, ...]], plans: Sequence[Interventions], below: Below | None
) -> Resume | None:
    """Where the forward of a batch resumes: what lies below is known, or computed here once for each text in it."""
    if below is not None and not reaches_behind(lens.registry, plans, below.key):
        return below.resume(rows)
    distinct = list(dict.fromkeys(rows))
    key = first_site(lens.registry, plans) if len(distinct) < len(rows) else None
    if key is None:
        return None
    read = CaptureResult(lens.registry, (key,), by_site=True)
    forward_rows(lens, distinct, recorders=(read,))
    return spread_over(key, read[key], distinct, rows)


def _check(lens: Core, item: ScoredText, at: int) -> None:
    if not 1 <= item.n_prompt < len(item.ids):
        raise LensError(f"Text {at + 1} has {len(item.ids)} tokens, of which none can be scored.", "Give a longer one.")
    for plan in item.plans:
        if any(record.positions.kind == "role" and record.positions.role == "thinking" for record in plan):
            raise LensError(
                "Positions of role 'thinking' are not known of given tokens.", "Measure with positions ALL."
            )
    # One check for all steerings with the same positions: a search tries hundreds of scales.
    distinct = {record.positions: record for plan in item.plans for record in plan if has_effect(record)}
    for record in distinct.values():
        check_scored(record, [item.ids], item.n_prompt, lens.registry.bos, item.spans)


def _batches(items: Sequence[ScoredText], vocabulary: int, lead: int) -> Iterator[list[Chosen]]:
    """Groups of rows in batches: items of one chat layout, of similar length, plans cut where one item has too many."""
    layouts = sorted(range(len(items)), key=lambda at: repr(items[at].spans))
    for _, alike in itertools.groupby(layouts, key=lambda at: repr(items[at].spans)):
        groups: list[Chosen] = []
        for at in alike:
            item = items[at]
            most = max(1 + lead, min(MAX_ROWS, MAX_LOGITS // (len(item.ids) * vocabulary))) - lead
            groups += [(at, item.plans[start : start + most]) for start in range(0, len(item.plans), most)]
        lengths = [len(items[at].ids) for at, _ in groups]
        rows = [lead + len(chosen) for _, chosen in groups]
        for batch in pack(lengths, rows, most_rows=MAX_ROWS, most_tokens=MAX_LOGITS // vocabulary):
            yield [groups[place] for place in batch]


def _check_finite(lens: Core, item: ScoredText, plans: Sequence[Interventions], scores: Sequence[Score]) -> None:
    """Raise ``NotFinite`` for the first steering, or the plain model, that gives no numbers on this text."""
    registry = lens.registry
    for plan, one in zip(plans, scores, strict=True):
        numbers = np.concatenate([one.base, one.nll, one.forward, one.reverse])
        if np.isnan(numbers).any():
            acting = () if np.isnan(one.base).any() else plan
            entries = entries_of(acting, registry)
            where = origin_of(registry, [item.ids], entries, n_prompt=item.n_prompt)
            raise not_finite("The model's logits" if not entries else "The steered model's logits", where)


def _scores(logits: mx.array, item: ScoredText, base: Array | None) -> list[Score]:
    """Scores of one group, logits (rows, longest, vocabulary), a block of positions at a time.

    The first row is the unsteered one unless ``base`` is given.
    """
    first, last = item.n_prompt - 1, len(item.ids) - 1
    size = max(1, _BLOCK // (logits.shape[0] * logits.shape[-1]))
    parts: list[list[Any]] = []
    for start in range(first, last, size):
        stop = min(last, start + size)
        logprobs = log_softmax(logits[:, start:stop])
        target = mx.array(np.asarray(item.ids[start + 1 : stop + 1], np.int32))[None, :, None]
        target = mx.broadcast_to(target, (logprobs.shape[0], stop - start, 1))
        block = [-mx.take_along_axis(logprobs, target, axis=-1)[..., 0]]
        if base is None:
            block += [kl(logprobs[:1], logprobs), kl(logprobs, logprobs[:1])]
        mx.eval(block)
        parts.append([np.array(values, dtype=np.float64) for values in block])
    nll, *divergences = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    if base is not None:
        return [Score(base, row, row[:0], row[:0]) for row in nll]
    forward, reverse = divergences
    return [Score(nll[0], nll[row], forward[row], reverse[row]) for row in range(1, nll.shape[0])]


MAX_BYTES = 1 << 29
"""Residuals kept between forwards, at most: those of more text are computed again in each batch."""


def first_site(registry: Registry, plans: Iterable[Sequence[Intervention]]) -> Key | None:
    """The last point of the residual stream that none of these plans reaches back behind.

    ``None`` where nothing acts, where no layer lies below, or where the model cannot resume there.
    """
    places = [
        (registry.decoder.index(record.layer), record.site) for plan in plans for record in plan if has_effect(record)
    ]
    if not places:
        return None
    layer = min(layer for layer, _ in places)
    sites = {site for at, site in places if at == layer}
    if sites != {"resid_post"} and layer == 0:
        return None
    if not can_resume(registry):
        return None
    return (layer, "resid_post" if sites == {"resid_post"} else "resid_pre")


def reaches_behind(registry: Registry, plans: Iterable[Sequence[Intervention]], key: Key) -> bool:
    """Whether any of these plans changes what is at a point of the residual stream before it is touched there."""
    layer, site = key
    acting = [record for plan in plans for record in plan if has_effect(record)]
    places = [(registry.decoder.index(record.layer), record.site) for record in acting]
    return any(at < layer or (at == layer and site == "resid_post" != other) for at, other in places)


def can_resume(registry: Registry) -> bool:
    """Whether a forward that resumes half way up gives what a whole one gives; found out once."""
    return registry.once(_resumes)


@dataclass(frozen=True, eq=False)
class Below:
    """Residuals of texts at a site, ``(tokens, width)`` each, by the texts' token ids."""

    key: Key
    residuals: Mapping[Text, mx.array]

    def resume(self, rows: Sequence[Text]) -> Resume:
        """Where a forward of these rows, padded at their end, resumes."""
        longest = max(len(row) for row in rows)
        padded = {row: _padded_layer(self.residuals[row], longest) for row in set(rows)}
        return Resume(self.key, mx.stack([padded[row] for row in rows]))


def spread_over(key: Key, hidden: mx.array, distinct: Sequence[Text], rows: Sequence[Text]) -> Resume:
    """Where a forward of rows resumes whose texts were read side by side.

    Args:
        key: The layer and site.
        hidden: ``(texts, longest, width)`` there.
        distinct: The texts that were read, each once.
        rows: The texts of the forward's rows.
    """
    place = {row: at for at, row in enumerate(distinct)}
    return Resume(key, hidden[mx.array(np.asarray([place[row] for row in rows], np.int32))])


def fits(decoder: Decoder, rows: Iterable[Text]) -> bool:
    """Whether the residuals of these texts may be kept."""
    return sum(map(len, rows)) * decoder.d_model * decoder.dtype.size <= MAX_BYTES


def _padded_layer(residual: mx.array, length: int) -> mx.array:
    """The last token's residual once more for each place of padding: nothing reads it, and it is an ordinary number."""
    missing = length - residual.shape[0]
    return residual if not missing else mx.pad(residual, [(0, missing), (0, 0)], mode="edge")


def _resumes(registry: Registry) -> bool:
    """Two rows of a text, resumed half way up and whole: every next token's distribution agrees.

    Blocks that are handed the residual normed as well round it their own way where it is put in: not the same bits.
    Blocks that read other layers' keys need those layers run.
    """
    decoder = registry.decoder
    if decoder.view is not None or decoder.shares_keys:
        return False
    # The same residual is put in where it was read, half way up, and the rest computed: a model whose upper blocks use
    # nothing else from below gives what the whole forward gives. Half way, because what fails at one layer (values
    # handed on from the first block, say) fails there too.
    key = (decoder.n_layers // 2, "resid_post")
    row = tuple((7 * at + 3) % decoder.vocab_size for at in range(7))
    read = CaptureResult(registry, (key,), by_site=False)
    both = mx.array([row, row])
    try:
        registry.forward(Run(registry, Plan(recorders=(read,)), len(row)), mx.array([row]))
        resumed, whole = (
            log_softmax(registry.forward(Run(registry, Plan(), len(row), resume=resume), both))
            for resume in (spread_over(key, read[key[0]], [row], [row, row]), None)
        )
        agree = bool((kl(whole, resumed) < tolerance(decoder.dtype)).all())
    except Exception:  # whatever a model raises that does not take it; whole forwards are always right
        return False
    return agree
