"""The engine under patching and tracing: many changes of one run, each a row of a batch, judged by a metric.

A row differs from the run that is patched at its own layer and above, so that a batch, sorted by layer, resumes at the
lowest one with what the run has there and computes nothing below; and only the token that the metric reads is
unembedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import FloatArray, LensError, NotFinite

from ..architecture.find import heads_of
from ..architecture.taps import Tap, install, uninstall
from ..forward import Core, run_through
from ..hooks.program import Hook, HookContext, Key
from ..hooks.registry import Plan, PlanEntry, Recorder, Registry, Resume, Run
from ..measure.scores import can_resume
from .metrics import Metric, from_residual, measured
from .prompt_pairs import Places

MOST_ROWS = 64
MOST_TOKENS = 4096
"""Of one batch: more fills no processor better, and activations are held for each."""
Progress = Callable[[int, int], None]


class Kept(Recorder):
    """The tensors at some sites as a forward leaves them: lazy, and so fit for the inside of a gradient."""

    def __init__(self, registry: Registry, places: Sequence[Key]) -> None:
        self.registry = registry
        self.places = tuple(dict.fromkeys(places))
        self.tensors: dict[Key, mx.array] = {}

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins."""

    def record(self, key: Key, tensor: mx.array) -> None:
        """The tensor at a site."""
        self.tensors[key] = tensor


@dataclass(frozen=True, eq=False)
class TextRun:
    """One text and what it gives at sites, ``(tokens, width)`` each; ``start`` replaces its embeddings (noise)."""

    ids: tuple[int, ...]
    hidden: Mapping[Key, mx.array]
    start: mx.array | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """One row: at ``keys``, tokens ``places[0]`` become what ``source`` has at ``places[1]``.

    ``head`` restricts it to one of ``heads`` equal parts of the tensor. ``along`` ``(amounts (tokens, 1), direction
    (width,))`` adds to the run's own tensor instead. ``random`` turns the change of each token in a random direction
    and keeps its length.
    """

    keys: tuple[Key, ...]
    places: Places
    source: TextRun
    head: int | None = None
    heads: int = 1
    along: tuple[mx.array, mx.array] | None = None
    random: int | None = None

    @property
    def layer(self) -> int:
        """The lowest that is changed."""
        return min(key[0] for key in self.keys)


def heads_at(lens: Core, layer: int) -> int:
    """How many heads ``attn_z`` of a layer is made of, one after the other. Raises :class:`LensError`."""
    sites = lens.registry.sites
    attention = sites.point(layer, "attn_out").module
    width = sites.point(layer, "attn_z").width
    count = heads_of(attention)
    if not count or width % count:
        raise LensError(f"The attention of layer {layer} does not say how many heads it has, so none can be patched.")
    return count


def layers_with(lens: Core, site: str, layers: Sequence[int] | None = None) -> tuple[int, ...]:
    """The layers that have a site, of those asked for (all of them where none are).

    Raises :class:`LensError` for a layer that was asked for and does not have it, and where none does.
    """
    decoder, sites = lens.registry.decoder, lens.registry.sites
    if layers is not None:
        found = tuple(dict.fromkeys(decoder.index(layer) for layer in layers))
        for layer in found:
            sites.point(layer, site)
        return found
    if not (found := tuple(layer for layer in range(decoder.n_layers) if site in lens.sites(layer))):
        sites.point(0, site)  # says why
    return found


def read_run(lens: Core, ids: Sequence[int], keys: Sequence[Key], start: mx.array | None = None) -> TextRun:
    """A text run through the plain model, with its tensors at ``keys`` evaluated.

    Raises :class:`NotFinite` for activations that are not numbers.
    """
    kept = Kept(lens.registry, keys)
    resume = None if start is None else Resume((0, "resid_pre"), start[None])
    run_through(Run(lens.registry, Plan((), (kept,)), len(ids), resume=resume), mx.array([list(ids)], dtype=mx.int32))
    hidden = {key: tensor[0] for key, tensor in kept.tensors.items()}
    finite = [mx.isfinite(tensor).all() for tensor in hidden.values()]
    mx.eval(list(hidden.values()), finite)
    for key, fine in zip(hidden, finite, strict=True):
        if not fine.item():
            raise NotFinite(f"The activations at layer {key[0]} {key[1]} are not finite.", "Use another dtype.")
    return TextRun(tuple(ids), hidden, start)


def needed_for(lens: Core, keys: Sequence[Key]) -> list[Key]:
    """The sites of the patched run that :func:`judged` needs for changes at ``keys``."""
    below = [(layer, "resid_pre") for layer, _ in keys] if can_resume(lens.registry) else []
    return list(dict.fromkeys([*keys, *below]))


def judged(
    lens: Core,
    base: TextRun,
    changes: Sequence[Change],
    metric: Metric,
    *,
    progress: Progress | None = None,
    so_far: Callable[[FloatArray], None] | None = None,
) -> FloatArray:
    """The metric under each change of a run, ``(changes,)``.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        base: The run that is changed, with its tensors at :func:`needed_for` the changes.
        changes: Each one is a row.
        metric: What is read.
        progress: Is called with (rows done, rows in all) after each batch.
        so_far: Is called after each batch with the values as far as they are, NaN where they are not.

    Raises:
        NotFinite: For a metric that is not a number.
    """
    values = np.full(len(changes), np.nan, np.float32)
    done = 0
    for batch in _batches(changes, len(base.ids)):
        lens.registry.between()
        rows = [changes[at] for at in batch]
        found = np.array(_forward(lens, base, rows, metric))
        if not np.isfinite(found).all():
            bad = rows[int(np.flatnonzero(~np.isfinite(found))[0])]
            raise NotFinite(f"The metric {metric.name!r} is not finite with layer {bad.layer} patched.")
        values[batch] = found
        done += len(batch)
        if so_far is not None:
            so_far(values.copy())
        if progress is not None:
            progress(done, len(changes))
    return values


def _batches(changes: Sequence[Change], length: int) -> Iterator[list[int]]:
    order = sorted(range(len(changes)), key=lambda at: (changes[at].layer, at))
    rows = max(1, min(MOST_ROWS, MOST_TOKENS // max(1, length)))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def _forward(lens: Core, base: TextRun, rows: Sequence[Change], metric: Metric) -> mx.array:
    registry, count = lens.registry, len(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row.keys))
    edits = [Hook(f"patch at layer {key[0]}", *key, _edit(base, rows, key)) for key in keys]
    lowest = (min(row.layer for row in rows), "resid_pre")
    below = base.hidden.get(lowest) if can_resume(registry) else None
    if below is None and base.start is not None:
        lowest, below = (0, "resid_pre"), base.start
    resume = None if below is None else Resume(lowest, mx.broadcast_to(below[None], (count, *below.shape)))
    ids = mx.broadcast_to(mx.array([list(base.ids)], dtype=mx.int32), (count, len(base.ids)))
    return metric_of_run(lens, ids, edits, metric, resume)


def metric_of_run(
    lens: Core,
    ids: mx.array,
    hooks: Sequence[Hook],
    metric: Metric,
    resume: Resume | None = None,
    taps: Sequence[tuple[Module, Tap]] = (),
) -> mx.array:
    """The metric ``(rows,)``, lazy, of a forward of ids ``(rows, tokens)`` under hooks and taps."""
    registry = lens.registry
    decoder = registry.decoder
    last = (decoder.n_layers - 1, "resid_post")
    reads = metric.reads if metric.reads is not None else (last if decoder.closed else None)
    kept = Kept(registry, () if reads is None else (reads,))
    plan = Plan(([PlanEntry(registry, hook) for hook in hooks],), (kept,))
    with ExitStack() as stack:
        for module, tap in taps:
            install(module, tap)
            stack.callback(uninstall, module, tap)
        logits = run_through(Run(registry, plan, ids.shape[1], resume=resume), ids)
    if reads is None:
        return measured(metric, logits)
    return measured(metric, kept.tensors[reads]) if metric.reads else from_residual(lens, metric, kept.tensors[last])


def _edit(base: TextRun, rows: Sequence[Change], key: Key) -> Callable[[HookContext, mx.array], mx.array]:
    """What puts every row's own change in at one site."""
    mine = [at for at, row in enumerate(rows) if key in row.keys]
    heads = max(rows[at].heads for at in mine)
    length = len(base.ids)
    mask = np.zeros((len(rows), length, heads), bool)
    variants: dict[object, int] = {}
    tensors: list[mx.array] = []
    index = np.zeros(len(rows), np.int32)
    for at in mine:
        row = rows[at]
        part = slice(None) if row.head is None else row.head
        mask[at, list(row.places[0]), part] = True
        name = variant_of(row, length)
        if name not in variants:
            variants[name] = len(tensors)
            tensors.append(replacement(base, row, key))
        index[at] = variants[name]
    new = tensors[0][None] if len(tensors) == 1 else mx.stack(tensors)[mx.array(index)]
    width = int(new.shape[-1])
    wide = mx.array(mask if heads == 1 else np.repeat(mask, width // heads, axis=-1))
    return lambda ctx, h: mx.where(wide, new.astype(h.dtype), h)


def variant_of(row: Change, length: int) -> object:
    """Equal for rows whose replacements are the same tensor but for where they are put in."""
    straight = row.places[0] == row.places[1] and len(row.source.ids) == length
    along = None if row.along is None else id(row.along[1])
    return (id(row.source), None if straight else row.places, along, row.random, row.random is not None and row.heads)


def replacement(base: TextRun, row: Change, key: Key) -> mx.array:
    """What the site becomes where the row changes it, ``(tokens, width)`` float32."""
    here = base.hidden[key].astype(mx.float32)
    if row.along is not None:
        amounts, direction = row.along
        new = here + amounts * direction
    else:
        there = row.source.hidden[key].astype(mx.float32)
        if row.places[0] == row.places[1] and there.shape == here.shape:
            new = there
        else:
            take = np.zeros(here.shape[0], np.int32)
            take[list(row.places[0])] = row.places[1]
            new = there[mx.array(take)]
    return new if row.random is None else here + _turned(new - here, row, key)


def _turned(change: mx.array, row: Change, key: Key) -> mx.array:
    """A random direction for each token (and head) with the length of its change."""
    rng = np.random.default_rng([row.random or 0, key[0], *key[1].encode()])
    shape = (change.shape[0], row.heads, change.shape[1] // row.heads)
    noise = rng.standard_normal(shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    size = mx.linalg.norm(change.reshape(shape), axis=-1, keepdims=True)
    return (mx.array(noise) * size).reshape(change.shape)
