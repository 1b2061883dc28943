"""The whole model, run once: logits, losses and activations of texts, under the interventions that hold.

Everything here goes through :meth:`.hooks.registry.Registry.forward`, the one door into a forward pass, and adds
what is known once it is through: that what must move something did, and that what was read is finite.

The downstream echo is how much of a change at one layer is still there at the layers behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Echo, FloatArray, Intervention, LensError, ModelInfo

from .decode.sampling import cross_entropy
from .hooks.capture_result import CaptureResult
from .hooks.passage import Passage
from .hooks.program import DoseMeter, Key
from .hooks.registry import Plan, PlanEntry, Recorder, Registry, Resume, Run
from .hooks.steering import (
    captured,
    check_moved,
    check_scored,
    check_values,
    entries_of,
    explained,
    origin_in,
    origin_of,
)
from .room import check_forward
from .tokens import Span, Tokens, id_table

LOSS_BLOCK = 256
"""Positions whose loss is computed at once."""


class Core(Protocol):
    """What reading, measuring and generating need of a model; :class:`~lens_tui.lens.model.LensModel` is one.

    The functions of this package take a ``Core`` and never import that class, which is built on all of them.
    """

    tokens: Tokens
    info: ModelInfo

    @property
    def registry(self) -> Registry:
        """What is hooked, and how."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""

    def ids(self, tokens: Any) -> mx.array:
        """Token ids as an array (batch, tokens), each one inside the vocabulary."""

    def sites(self, layer: int) -> tuple[str, ...]:
        """The sites that a layer has."""


def run_through(
    run: Run,
    ids: mx.array,
    cache: list[Any] | None = None,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    start: int = 0,
    held: bool = False,
) -> mx.array:
    """Logits ``(batch, tokens, vocabulary)`` of ids under a run; with a meter, what must move them was measured to.

    Args:
        run: What acts, what is recorded, and what the forward needs to know.
        ids: ``(batch, tokens)``, padded at the end.
        cache: mlx-lm's prompt cache, which the ids are appended to; without one they are whole texts.
        rows: The same without padding, where there is any.
        start: Tokens that went in before these, of the row that has most.
        held: The run's sites are proxied already.

    Raises:
        LensError: For an intervention that must move something, and touches no token or is lost in rounding.
        NotFinite: For a residual that is not finite where it is steered.
    """
    if cache is None:
        check_forward(run.registry, run, *ids.shape)
    logits = run.registry.forward(run, ids, cache, start=start, held=held)
    if run.meter is not None:
        # Of tokens that are in a cache nothing is known, so that nobody could say where it begins.
        with nullcontext() if cache is not None else explained(run, ids if rows is None else rows):
            check_moved(run.registry, run.plan, run.meter, touched=True)
    return logits


def run_forward(
    registry: Registry, ids: mx.array, cache: list[Any] | None = None, *, n_prompt: int | None = None
) -> mx.array:
    """Logits of token ids under the calling context's plan.

    The first forward under an intervention measures that it moves something.

    Args:
        registry: What is hooked.
        ids: ``(batch, tokens)``.
        cache: mlx-lm's prompt cache, filled under the same interventions.
        n_prompt: Where the prompt ends, by default at the end.

    Returns:
        ``(batch, tokens, vocabulary)``, lazy.
    """
    entries, recorders = registry.ambient()
    plan = Plan((entries,), recorders)
    start = 0 if cache is None else registry.caches.check(cache, plan.fingerprint())
    unproved = [entry for entry in entries if entry.proved != entry.stamp]
    end = start + ids.shape[1] if n_prompt is None else n_prompt
    run = Run(registry, plan, end, meter=DoseMeter() if unproved else None)
    logits = run_through(run, ids, cache, start=start, held=True)
    for entry in unproved:
        entry.proved = entry.stamp
    for recorder in recorders:
        recorder.end(logits)
    return logits


def mean_loss(registry: Registry, ids: mx.array) -> float:
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
        total += float(cross_entropy(logits[:, start:stop], ids[:, start + 1 : stop + 1]).sum())
    check_values(np.asarray(total), "The losses", lambda: origin_of(registry, ids, entries, n_prompt=1))
    return total / count


OVERHEAD = {"cpu": 4, "gpu": 256}
"""What a forward costs however few its tokens, in tokens. A GPU reads all weights for one token as for hundreds; a CPU
takes its time for each token."""


def pack(
    lengths: Sequence[int], rows: Sequence[int], *, most_rows: int, most_tokens: int, overhead: int | None = None
) -> list[list[int]]:
    """Places in batches, each of similar lengths, so that all the forwards together cost least.

    A batch costs ``overhead`` and all its rows at the length of its longest one. The best cut of the places in order
    of length is found by dynamic programming.

    Args:
        lengths: Tokens of a row at each place.
        rows: How many rows each place stands for.
        most_rows: Rows of a batch, at most, unless a single place has more.
        most_tokens: Tokens of a batch, padding included, at most, unless a single place has more.
        overhead: What a batch costs beside its tokens, in tokens; by default that of the device.

    Returns:
        The places of each batch.
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


Ids = Sequence[int]
"""Token ids of one text."""
MAX_LOGITS = 1 << 27
"""Logits of one forward, at most, unless a single row has more: 512 MB in float32."""
MAX_ROWS = 32


def forward_rows(
    lens: Core,
    rows: Sequence[Ids],
    plans: Sequence[Sequence[Intervention]] = ((),),
    n_prompt: Sequence[int] | None = None,
    recorders: Sequence[Recorder] = (),
    *,
    spans: tuple[Span, ...] | None = None,
    meter: DoseMeter | None = None,
    resume: Resume | None = None,
) -> mx.array:
    """Logits ``(rows, longest, vocabulary)``, lazy; what holds in blocks around the call is left out.

    Args:
        lens: The model.
        rows: Token ids of each row.
        plans: A sequence of interventions for every row, or one for all.
        n_prompt: Where each row's prompt ends, by default at its end.
        recorders: What reads tensors on the way.
        spans: The chat roles that all rows share.
        meter: What measures the dose; one is made where there is none.
        resume: Where the forward continues from what is known already.

    Raises:
        LensError: For interventions that had to move a row and did not.
    """
    registry = lens.registry
    registry.between()
    plan = Plan([entries_of(plan, registry) for plan in plans], recorders)
    ends = mx.array(np.asarray(n_prompt if n_prompt is not None else [len(row) for row in rows], np.int32))
    meter = meter or (DoseMeter() if any(plan.rows) else None)
    run = Run(registry, plan, ends, spans, meter, resume=resume, real=real_of(rows))
    return run_through(run, mx.array(padded(rows)), rows=rows)


def as_float(array: mx.array) -> FloatArray:
    """An MLX array of any float type as float32 numpy."""
    return np.array(array.astype(mx.float32))


def real_of(rows: Sequence[Ids]) -> mx.array | None:
    """Which tokens of padded rows are theirs, ``(rows, longest, 1)``; ``None`` where all are of one length."""
    lengths = np.asarray([len(row) for row in rows])
    if (lengths == lengths.max()).all():
        return None
    return mx.array(np.arange(int(lengths.max())) < lengths[:, None])[..., None]


def padded(rows: Sequence[Ids]) -> NDArray[np.int32]:
    """Rows of ids ``(rows, longest)``, padded at the end. Raises :class:`LensError` for one without tokens."""
    if not rows or not all(len(row) for row in rows):
        raise LensError("A text has no tokens.", "Leave empty texts out.")
    table = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table


def tolerance(dtype: mx.Dtype) -> float:
    """KL in nats between next-token distributions: rounding of the dtype, and no more."""
    return 1e-4 if dtype == mx.float32 else 0.02


def one_text(lens: Core, tokens: Any) -> tuple[int, ...]:
    """The ids of one text or list of token ids; raises :class:`LensError` for a batch."""
    ids = lens.ids(tokens)
    if ids.shape[0] != 1:
        raise LensError(f"A readout takes one text, not {ids.shape[0]}.", "Read them one after the other.")
    return tuple(int(token) for token in ids[0].tolist())  # type: ignore[union-attr, arg-type]


def read_sites(
    lens: Core, ids: Sequence[int], keys: Sequence[Key], interventions: Sequence[Intervention] | None
) -> dict[Key, mx.array]:
    """The tensors at sites of one text, evaluated, after all interventions there.

    Args:
        lens: The model.
        ids: The text's token ids.
        keys: Layers and sites.
        interventions: Replace those of the blocks around the call, which hold if it is ``None``. That they move
            something is measured.

    Returns:
        ``(tokens, width)`` by layer and site.
    """
    registry = lens.registry
    entries = registry.ambient()[0]
    if interventions is not None:
        entries = tuple(entries_of(interventions, registry))
    result = CaptureResult(registry, tuple(dict.fromkeys(keys)), by_site=True)
    run = Run(registry, Plan((entries,), (result,)), len(ids), meter=DoseMeter() if entries else None)
    run_through(run, mx.array([list(ids)], dtype=mx.int32))
    found = captured(result, lambda: origin_of(registry, [list(ids)], entries))
    return {key: values[0] for key, values in found.items()}


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
        spaced = f" {text}"
        whole = text[:1].strip() and len([token for token in tokens.encode(spaced) if token not in special]) == 1
        hint = f"With the blank in front, {spaced!r}, it is one." if whole else "Give the token's id, or another text."
        raise LensError(f"{text!r} is not one token but {parts}.", hint)
    return ids[0]


def echo(registry: Registry, rows: Sequence[Sequence[int]], interventions: Sequence[Intervention]) -> tuple[Echo, ...]:
    """What interventions leave in ``resid_post`` of every layer, averaged over the tokens of texts (their ids)."""
    entries = tuple(entries_of(interventions, registry))
    parts = [_changes(registry, Passage(tuple(row), len(row), bos=registry.bos), entries) for row in rows]
    return _echoes(registry, parts, entries)


def echo_of(registry: Registry, passage: Passage, entries: Sequence[PlanEntry]) -> tuple[Echo, ...]:
    """The same of a run: over its prompt and its text, with the positions that its tokens have there.

    Raises :class:`LensError` for a run that went on from a cache, whose tokens are not known.
    """
    if passage.start:
        raise LensError("The run went on from a prompt cache, whose tokens are not known.", "Use echo(tokens, ...).")
    return _echoes(registry, [_changes(registry, passage, entries)], entries)


def _changes(
    registry: Registry, passage: Passage, entries: Sequence[PlanEntry]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """``resid_post`` of every layer, plain and changed, ``(tokens, d_model)`` each: two forwards over the same ids."""
    plain, changed = (_stack(registry, passage, rows) for rows in ((), entries))
    return plain, changed


def _stack(registry: Registry, passage: Passage, entries: Sequence[PlanEntry]) -> list[FloatArray]:
    keys = tuple((layer, "resid_post") for layer in range(registry.decoder.n_layers))
    result = CaptureResult(registry, keys, by_site=True)
    passage.forward(registry, Plan((entries,), (result,)))
    found = captured(result, lambda: origin_in(registry, passage, entries))
    return [np.array(values.astype(mx.float32))[0] for values in found.values()]


def _echoes(
    registry: Registry, parts: Sequence[tuple[list[FloatArray], list[FloatArray]]], entries: Sequence[PlanEntry]
) -> tuple[Echo, ...]:
    vector = next((entry.item.vector for entry in entries if hasattr(entry.item, "vector")), None)
    direction = None if vector is None else vector.direction
    echoes = []
    for layer in range(registry.decoder.n_layers):
        before, after = (np.concatenate([part[side][layer] for part in parts]) for side in (0, 1))
        echoes.append(_compare(layer, before, after, direction))
    return tuple(echoes)


def _compare(layer: int, before: FloatArray, after: FloatArray, direction: FloatArray | None) -> Echo:
    change = after - before
    moved = np.linalg.norm(change, axis=-1)
    length = np.maximum(np.linalg.norm(before, axis=-1), 1e-30)
    # Lengths of the residual differ by layer; a direction that is of another width has no projection here.
    along = (
        float((change @ direction).mean()) if direction is not None and direction.shape == change.shape[-1:] else None
    )
    return Echo(layer, float(moved.mean()), float((moved / length).mean()), along)
