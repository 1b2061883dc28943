"""One forward pass, and the loss, under the interventions that hold."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import FloatArray, Intervention, LensError

from .architecture.taps import first_of
from .distributions import kl
from .hooks.capture import CaptureResult
from .hooks.dose_meter import Meter
from .hooks.finite import check_values, explained, origin_of
from .hooks.program import Key, Program
from .hooks.registry import Plan, Recorder, Registry, Resume, Run, acts, check_scored, entries_of
from .tokens import id_table

if TYPE_CHECKING:
    from .architecture.find import Decoder
    from .core import Core
    from .tokens import Span


LOSS_BLOCK = 256


def run_forward(
    registry: Registry, ids: mx.array, cache: list[Any] | None = None, *, n_prompt: int | None = None
) -> mx.array:
    """Logits of ids (batch, tokens), under the calling context's plan; the prompt ends behind ``n_prompt`` tokens,
    by default behind all of them.

    The first forward under an intervention measures that it moves something.
    """
    entries, recorders = registry.ambient()
    plan = Plan((entries,), recorders)
    start = 0 if cache is None else registry.caches.check(cache, plan.fingerprint())
    registry.decoder.check_positions(start + ids.shape[1])
    unproved = [entry for entry in entries if entry.proved != entry.stamp]
    meter = Meter() if unproved else None
    run = Run(registry, plan, start + ids.shape[1] if n_prompt is None else n_prompt, None, meter)
    with registry.running(run):
        logits = registry.decoder.forward(ids) if cache is None else registry.decoder.root(ids, cache=cache)
    if meter is not None:
        ends = [n_prompt or int(ids.shape[1])] * int(ids.shape[0])
        with nullcontext() if cache is not None else explained(registry, ids, [entries], ends):
            check_run(registry, run)
        for entry in unproved:
            entry.proved = entry.stamp
    result: mx.array = first_of(logits)
    return result


def read_site(registry: Registry, ids: mx.array, key: Key, *, steered: bool) -> mx.array:
    """The tensor at one site, (batch, tokens, width), evaluated; nothing behind it is computed."""
    entries = registry.ambient()[0] if steered else ()
    result = CaptureResult(registry, (key,), by_site=False)
    registry.need([key])
    try:
        with registry.running(Run(registry, Plan((entries,), (result,)), ids.shape[1])):
            registry.decoder.forward(ids)
    finally:
        registry.release([key])
    found = result[key[0]]
    check_values(found, f"The activations at layer {key[0]} {key[1]}", lambda: origin_of(registry, ids, entries))
    return found


def check_run(registry: Registry, run: Run) -> None:
    """Raise :class:`LensError` if an intervention that must move something moved nothing."""
    assert run.meter is not None
    run.meter.settle()
    for key, program in registry.programs(run.plan).items():
        if not program.must_move[0]:
            continue
        if not run.meter.doses(0, [key]):
            names = ", ".join(repr(entry.item.id) for entry in run.plan.rows[0] if entry.key == key)
            raise LensError(
                f"{names} touches no token of this forward.", "Change its positions, or give a longer text."
            )
        run.meter.check_moved(0, [key], "Steering")


def loss_of(registry: Registry, ids: mx.array) -> float:
    """Mean next-token cross-entropy in nats, float32 log-softmax, in blocks of positions.

    For positions every token but the first counts as generated, as in ``measures``.
    """
    if ids.shape[1] < 2:
        raise LensError(f"A loss needs at least two tokens, not {ids.shape[1]}.", "Give a longer text.")
    entries = registry.ambient()[0]
    rows: list[list[int]] = ids.tolist() if entries else []  # type: ignore[assignment]
    for entry in entries:
        check_scored(entry.item, rows, 1, registry.bos)
    logits = run_forward(registry, ids, n_prompt=1)
    total = 0.0
    count = ids.shape[0] * (ids.shape[1] - 1)
    for start in range(0, ids.shape[1] - 1, LOSS_BLOCK):
        stop = min(start + LOSS_BLOCK, ids.shape[1] - 1)
        part = logits[:, start:stop].astype(mx.float32)
        target = ids[:, start + 1 : stop + 1, None]
        nll = mx.logsumexp(part, axis=-1) - mx.take_along_axis(part, target, axis=-1)[..., 0]
        total += float(nll.sum())
    check_values(np.asarray(total), "The losses", lambda: origin_of(registry, ids, entries, n_prompt=1))
    return total / count


OVERHEAD = {"cpu": 4, "gpu": 256}
"""What a forward costs however few its tokens, in tokens. A GPU reads all weights for one token as for hundreds; a CPU
takes its time for each token."""


def pack(
    lengths: Sequence[int], rows: Sequence[int], *, most_rows: int, most_tokens: int, overhead: int | None = None
) -> list[list[int]]:
    """Places in batches, each of similar lengths, so that all the forwards together cost least.

    Place ``i`` stands for ``rows[i]`` rows of ``lengths[i]`` tokens. A batch costs ``overhead`` and all its rows at
    the length of its longest one; it has at most ``most_rows`` rows and ``most_tokens`` tokens, padding included,
    unless a single place has more. The best cut of the places in order of length is found by dynamic programming.
    """
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    fixed = OVERHEAD["gpu" if mx.default_device().type == mx.gpu else "cpu"] if overhead is None else overhead
    best, cut = [0], [0]
    for stop in range(1, len(order) + 1):
        longest, count = lengths[order[stop - 1]], 0
        found: tuple[int, int] | None = None
        for start in range(stop - 1, -1, -1):
            count += rows[order[start]]
            if start < stop - 1 and (count > most_rows or count * longest > most_tokens):
                break
            cost = best[start] + fixed + count * longest
            if found is None or cost <= found[0]:
                found = cost, start
        assert found is not None
        best.append(found[0])
        cut.append(found[1])
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        batches.append(order[cut[stop] : stop])
        stop = cut[stop]
    return batches[::-1]


AnyIds = Sequence[int]
MAX_LOGITS = 1 << 27
"""Logits of one forward, at most, unless a single row has more: 512 MB in float32."""
MAX_ROWS = 32


def forward_rows(
    lens: Core,
    rows: Sequence[AnyIds],
    plans: Sequence[Sequence[Intervention]] = ((),),
    n_prompt: Sequence[int] | None = None,
    recorders: Sequence[Recorder] = (),
    *,
    spans: tuple[Span, ...] | None = None,
    meter: Meter | None = None,
    resume: Resume | None = None,
) -> mx.array:
    """Logits ``(rows, longest, vocabulary)``, lazy; what holds in blocks around the call is left out.

    ``plans`` has one sequence of interventions for every row, or one for all.
    ``n_prompt`` says where each row's prompt ends (by default at its end), ``spans`` which chat
    roles all rows share, ``resume`` where the forward goes on from what is known already. Raises :class:`LensError` for
    interventions that had to move a row and did not.
    """
    registry = lens.registry
    registry.decoder.check_positions(max(map(len, rows), default=0))
    registry.between()
    entries = [entries_of(plan, registry) for plan in plans]
    plan = Plan(entries, recorders)
    ids = mx.array(_padded(rows))
    ends = mx.array(np.asarray(n_prompt if n_prompt is not None else [len(row) for row in rows], np.int32))
    meter = meter or (Meter() if any(entries) else None)
    run = Run(registry, plan, ends, spans, meter, resume=resume)
    keys = plan.keys if resume is None else plan.keys | {resume.key}
    registry.need(keys)
    try:
        with registry.running(run):
            logits: mx.array = registry.decoder.forward(ids)
    finally:
        registry.release(keys)
    if meter is not None:
        with explained(registry, rows, entries, n_prompt or [len(row) for row in rows]):
            _check_moved(registry.programs(plan), meter)
    return logits


def read_rows(lens: Core, rows: Sequence[AnyIds], keys: Sequence[Key]) -> Iterator[tuple[int, dict[Key, mx.array]]]:
    """For each row its number and its unsteered activations ``(tokens, width)`` at the sites, evaluated, in batches."""
    per_token = lens.d_model * max(1, len(keys))  # what is kept of a token: all sites of a batch at once
    # A row that is there twice is read once: in a batch of another size its numbers would differ in their last bits.
    places: dict[tuple[int, ...], list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(at)
    first = [found[0] for found in places.values()]
    for chosen in in_batches([len(rows[at]) for at in first], per_token):
        batch = [first[at] for at in chosen]
        result = CaptureResult(lens.registry, tuple(keys), by_site=True)
        forward_rows(lens, [rows[at] for at in batch], recorders=(result,))
        mx.eval(result.pending())
        held = {key: result[key] for key in keys}
        for (layer, site), values in held.items():
            check_values(values, f"The activations at layer {layer} {site}", lambda: origin_of(lens.registry, rows))
        for place, one in enumerate(batch):
            for at in places[tuple(rows[one])]:
                yield at, {key: held[key][place, : len(rows[at])] for key in keys}


def in_batches(lengths: Sequence[int], per_token: int, *, most: int = MAX_LOGITS) -> Iterator[list[int]]:
    """Row numbers in batches of similar length: little is padded, and no forward holds more than ``most`` numbers."""
    yield from pack(lengths, [1] * len(lengths), most_rows=MAX_ROWS, most_tokens=most // per_token)


def as_float(array: mx.array) -> FloatArray:
    """An MLX array of any float type as float32 numpy."""
    return np.array(array.astype(mx.float32))


def _check_moved(programs: Mapping[Key, Program], meter: Meter) -> None:
    for key, program in programs.items():
        for row, must in enumerate(program.must_move):
            if must and not meter.doses(row, [key]):
                raise LensError(
                    f"A steering at layer {key[0]} {key[1]} touches no token of a text.",
                    "Change its positions, or give longer texts.",
                )
            if must:
                meter.check_moved(row, [key], "Steering")


def _padded(rows: Sequence[AnyIds]) -> NDArray[np.int32]:
    if not rows or not all(len(row) for row in rows):
        raise LensError("A text has no tokens.", "Leave empty texts out.")
    table = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table


def tolerance(dtype: mx.Dtype) -> float:
    """KL in nats between next-token distributions: rounding of the dtype, and no more."""
    return 1e-4 if dtype == mx.float32 else 0.02


Ids = tuple[int, ...]
MAX_BYTES = 1 << 29
"""Residuals kept between forwards, at most: those of more text are computed again in each batch."""

_known: weakref.WeakKeyDictionary[Registry, bool] = weakref.WeakKeyDictionary()


def first_site(registry: Registry, plans: Iterable[Sequence[Intervention]]) -> Key | None:
    """The last point of the residual stream that none of these plans reaches back behind.

    ``None`` where nothing acts, where no layer lies below, or where the model cannot resume there.
    """
    places = [(registry.decoder.index(record.layer), record.site) for plan in plans for record in plan if acts(record)]
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
    acting = [record for plan in plans for record in plan if acts(record)]
    places = [(registry.decoder.index(record.layer), record.site) for record in acting]
    return any(at < layer or (at == layer and site == "resid_post" != other) for at, other in places)


def can_resume(registry: Registry) -> bool:
    """Whether a forward that resumes half way up gives what a whole one gives; found out once."""
    if registry not in _known:
        _known[registry] = _proved(registry)
    return _known[registry]


@dataclass(frozen=True, eq=False)
class Below:
    """Residuals of texts at a site, ``(tokens, width)`` each, by the texts' token ids."""

    key: Key
    residuals: Mapping[Ids, mx.array]

    def resume(self, rows: Sequence[Ids]) -> Resume:
        """Where a forward of these rows, padded at their end, resumes."""
        longest = max(len(row) for row in rows)
        padded = {row: _padded_layer(self.residuals[row], longest) for row in set(rows)}
        return Resume(self.key, mx.stack([padded[row] for row in rows]))


def spread_over(key: Key, hidden: mx.array, distinct: Sequence[Ids], rows: Sequence[Ids]) -> Resume:
    """Where a forward of rows resumes whose ``distinct`` texts were read side by side, ``(texts, longest, width)``."""
    place = {row: at for at, row in enumerate(distinct)}
    return Resume(key, hidden[mx.array(np.asarray([place[row] for row in rows], np.int32))])


def fits(decoder: Decoder, rows: Iterable[Ids]) -> bool:
    """Whether the residuals of these texts may be kept."""
    return sum(map(len, rows)) * decoder.d_model * decoder.dtype.size <= MAX_BYTES


def _padded_layer(residual: mx.array, length: int) -> mx.array:
    """The last token's residual once more for each place of padding: nothing reads it, and it is no odd number."""
    missing = length - residual.shape[0]
    return residual if not missing else mx.pad(residual, [(0, missing), (0, 0)], mode="edge")


def _proved(registry: Registry) -> bool:
    """Two rows of a text, resumed half way up and whole: every next token's distribution agrees.

    Blocks that are handed the residual normed as well round it their own way where it is put in: not the same bits.
    Blocks that read other layers' keys need those layers run.
    """
    decoder = registry.decoder
    if decoder.view is not None or decoder.shares_keys:
        return False
    key = (decoder.n_layers // 2, "resid_post")
    row = tuple((7 * at + 3) % decoder.vocab_size for at in range(7))
    read = CaptureResult(registry, (key,), by_site=False)
    registry.need([key])
    try:
        with registry.running(Run(registry, Plan(recorders=(read,)), len(row))):
            decoder.forward(mx.array([row]))
        resumed, whole = (
            _logprobs(Run(registry, Plan(), len(row), resume=resume), [row, row])
            for resume in (spread_over(key, read[key[0]], [row], [row, row]), None)
        )
    except Exception:  # whatever a model raises that does not take it; whole forwards are always right
        return False
    finally:
        registry.release([key])
    return bool((kl(whole, resumed) < tolerance(decoder.dtype)).all())


def _logprobs(run: Run, rows: Sequence[Ids]) -> mx.array:
    with run.registry.running(run):
        logits = run.registry.decoder.forward(mx.array(np.asarray(rows, np.int32))).astype(mx.float32)
    found: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found


def one_text(lens: Core, tokens: Any) -> tuple[int, ...]:
    """The ids of one text or list of token ids; raises :class:`LensError` for a batch."""
    ids = lens.batch(tokens)
    if ids.shape[0] != 1:
        raise LensError(f"A readout takes one text, not {ids.shape[0]}.", "Read them one after the other.")
    return tuple(int(token) for token in ids[0].tolist())  # type: ignore[union-attr, arg-type]


def read_sites(
    lens: Core, ids: Sequence[int], keys: Sequence[Key], interventions: Sequence[Intervention] | None
) -> dict[Key, mx.array]:
    """The tensors ``(tokens, width)`` at sites of one text, evaluated, after all interventions there.

    ``interventions`` replace those of the blocks around the call, which hold if it is ``None``. That they move
    something is measured.
    """
    registry = lens.registry
    entries = registry.ambient()[0]
    if interventions is not None:
        entries = tuple(entries_of(interventions, registry))
    result = CaptureResult(registry, tuple(dict.fromkeys(keys)), by_site=True)
    plan = Plan((entries,), (result,))
    run = Run(registry, plan, len(ids), None, Meter() if entries else None)
    needed = sorted(plan.keys)
    registry.need(needed)
    try:
        with registry.running(run):
            registry.decoder.forward(mx.array([list(ids)], dtype=mx.int32))
    finally:
        registry.release(needed)
    if run.meter is not None:
        with explained(registry, [list(ids)], [entries], [len(ids)]):
            check_run(registry, run)
    found = {key: result[key][0] for key in result.places}
    for (layer, site), values in found.items():
        check_values(
            values, f"The activations at layer {layer} {site}", lambda: origin_of(registry, [list(ids)], entries)
        )
    return found


@contextmanager
def unhooked(lens: Core) -> Iterator[None]:
    """Forwards inside are of the plain model: neither steered nor recorded by the blocks around."""
    registry = lens.registry
    with registry.running(Run(registry, Plan())):
        yield


def target_per_position(lens: Core, target: int | str | Sequence[int], count: int) -> list[int]:
    """The token to follow at each of ``count`` positions: one for all (an id, or a text of one token), or a list."""
    if isinstance(target, str):
        target = single_token(lens, target)
    ids = id_table([target] * count if isinstance(target, Integral) else target).reshape(-1).tolist()
    if len(ids) != count:
        raise LensError(f"{len(ids)} target tokens were given for {count} positions.", "Give one, or one for each.")
    return list(lens.tokens.check(ids))


def single_token(lens: Core, text: str) -> int:
    """The id of a text that is one token (write the leading space: `` Paris``); :class:`LensError` if it is not."""
    tokens = lens.tokens
    special = tokens.special_ids()
    ids = [token for token in tokens.encode(text) if token not in special] if text else []
    if len(ids) != 1:
        parts = " + ".join(repr(tokens.display(token)) for token in ids) or "nothing"
        raise LensError(f"{text!r} is not one token but {parts}.", "Give the token's id, or another text.")
    return ids[0]
