"""Paths through a model: what one part sends straight to another, patched exactly or estimated for every edge at once.

Path patching: Wang et al. 2022 (2211.00593), Goldowsky-Dill et al. 2023 (2304.05969). Edge attribution patching: Syed
et al. 2023 (2310.10348). An edge is patched by giving the receiver, in place of what it reads of the stream, that plus
the difference of what the sender adds to the stream in the two runs; all between them stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError
from lens_tui.records.patch_grid import Direction, Doubles, EdgeGrid, Method, PathEffects, PromptPair, Receiver, Sender

from ..architecture.taps import Call, Tap, input_of, install, replace_input, uninstall
from ..forward import Core, unhooked
from ..hooks.program import Hook, Key
from ..hooks.registry import Plan, Resume, Run
from ..measure.effects import bootstrap
from ..measure.scores import can_resume
from .cells import MOST_ROWS, MOST_TOKENS, Kept, TextRun, heads_at, metric_of_run, read_run
from .gradients import differentiated
from .metrics import Measure, Metric, metric_of
from .patching import check_gap, final_logits
from .prompt_pairs import align, several_pairs

_ADDS_UP = 2e-3
"""By how much, of the residual's length, the parts may miss it in float32; rounding, and no more."""
Edit = Callable[[mx.array], mx.array]


@dataclass(frozen=True, eq=False)
class _Both:
    """A pair run both ways, with what every sender adds to the stream in the one less the other."""

    ids: tuple[int, ...]
    base: TextRun
    read: dict[str, mx.array]
    senders: tuple[Sender, ...]
    deltas: mx.array
    metric: Metric
    clean: float
    corrupted: float
    start: float


def path_patch(
    lens: Core,
    pairs: PromptPair | Sequence[PromptPair],
    metric: Measure = "logit-difference",
    *,
    receivers: Receiver | Sequence[Receiver],
    senders: Sequence[Sender] | None = None,
    direction: Direction = "denoise",
    controls: bool = True,
    seed: int = 0,
) -> PathEffects:
    """Patch the direct paths from each sender to some receivers, all of these at once, and see what that does.

    Everything but the receivers, and what comes behind them, stays as in the patched run: attentions and MLPs between
    a sender and a receiver are frozen.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        pairs: Two prompts of the same number of tokens, or several such pairs.
        metric: As for :func:`~.patching.patch`.
        receivers: ``Receiver("attn", 5)``, ``("mlp", 5)``, ``("q", 5, 2)`` or ``("logits")``.
        senders: By default every head, MLP and the embedding; those behind a receiver send it nothing.
        direction: Which run is patched.
        controls: Send changes of the same length at each token in random directions too: twice the work.
        seed: Of these and of the intervals.

    Raises:
        LensError: For a block whose parts do not add up to the stream, or read it through a shared norm; for heads
            behind a norm of their own sum; and as :func:`~.patching.patch`.
    """
    ends = (receivers,) if isinstance(receivers, Receiver) else tuple(receivers)
    if not ends:
        raise LensError("There is no receiver.", "Give one, such as Receiver('logits').")
    ends = tuple(_checked(lens, each) for each in ends)
    several = several_pairs(pairs)
    found, at_random, ready = [], [], None
    figures: list[tuple[float, float, float]] = []
    for pair in several:
        ready = _run_both(lens, pair, metric, direction, heads=True, chosen=senders)
        rows = range(len(ready.senders))
        found.append(_exact(lens, ready, ends, rows))
        figures.append((ready.start, ready.clean, ready.corrupted))
        if controls:
            at_random.append(_exact(lens, replace(ready, deltas=_turned(ready.deltas, seed)), ends, rows))
    assert ready is not None
    return _summed(lens, (ready.metric.name, direction, ready.senders, ends), found, at_random, figures, seed)


def _summed(
    lens: Core,
    said: tuple[str, Direction, tuple[Sender, ...], tuple[Receiver, ...]],
    found: Sequence[Doubles],
    at_random: Sequence[Doubles],
    figures: Sequence[tuple[float, float, float]],
    seed: int,
) -> PathEffects:
    """What the paths of all pairs carry: the ratio of sums over pairs, with its interval."""
    start, clean, corrupted = np.array(figures).T
    gaps = clean - corrupted
    if abs(gaps.sum()) <= 1e-6 * np.abs(gaps).sum():
        raise LensError("The pairs' metrics cancel: what is clean in one is corrupted in another.", "Turn some round.")
    moved = np.stack(found) + (start - corrupted)[:, None]
    low = high = random = None
    if len(found) > 1:
        ends = np.array([bootstrap(moved[:, at], gaps, seed) for at in range(moved.shape[1])]).reshape(-1, 2)
        low, high = ends[:, 0], ends[:, 1]
    if at_random:
        random = (np.stack(at_random) + (start - corrupted)[:, None]).sum(axis=0) / gaps.sum()
    raw = np.stack(found).mean(axis=0)
    return PathEffects(
        lens.info.name, *said, raw, moved.sum(axis=0) / gaps.sum(), float(clean.mean()), float(corrupted.mean()),
        random, low, high, len(found),
    )  # fmt: skip


def _turned(deltas: mx.array, seed: int) -> mx.array:
    """Changes (senders, tokens, d_model) in random directions, as long at each token as they are."""
    noise = np.random.default_rng(seed).standard_normal(deltas.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    return mx.array(noise) * mx.linalg.norm(deltas, axis=-1, keepdims=True)


def patch_edges(
    lens: Core,
    pairs: PromptPair | Sequence[PromptPair],
    metric: Measure = "logit-difference",
    *,
    method: Method = "attribution",
    heads: bool = True,
    senders: Sequence[Sender] | None = None,
    direction: Direction = "denoise",
    controls: bool = True,
    seed: int = 0,
) -> EdgeGrid:
    """What every edge carries, from each sender to what each attention, MLP and the unembedding reads.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        pairs: Two prompts of the same number of tokens, or several such pairs.
        metric: As for :func:`~.patching.patch`.
        method: ``attribution`` estimates all edges from one backward pass; ``exact`` patches each, a row for each.
        heads: Senders are single heads, else whole attentions.
        senders: These alone.
        direction: Which run is patched.
        controls: Send changes of the same length at each token in random directions too: twice the work where exact.
        seed: Of these and of the intervals.

    Raises:
        LensError: As :func:`path_patch`.
    """
    if method not in ("attribution", "exact"):
        raise LensError(f"There is no method {method!r}.", "Use attribution or exact.")
    ends = [Receiver(kind, layer) for layer in range(lens.n_layers) for kind in ("attn", "mlp")]
    ends.append(Receiver("logits"))
    found, at_random, figures, ready = [], [], [], None
    for pair in several_pairs(pairs):
        ready = _run_both(lens, pair, metric, direction, heads=heads, chosen=senders)
        figures.append((ready.start, ready.clean, ready.corrupted))
        slopes = _slopes(lens, ready, ends) if method == "attribution" else None
        found.append(_edges(lens, ready, ends, slopes).ravel())
        if controls:
            at_random.append(_edges(lens, replace(ready, deltas=_turned(ready.deltas, seed)), ends, slopes).ravel())
    assert ready is not None
    said = (ready.metric.name, direction, ready.senders, tuple(ends))
    every = _summed(lens, said, found, at_random, figures, seed)
    shape = (len(ready.senders), len(ends))

    def table(values: Doubles | None) -> Doubles | None:
        return None if values is None else values.reshape(shape)

    return EdgeGrid(
        every.model, every.metric, direction, method, ready.senders, tuple(ends), every.raw.reshape(shape),
        every.effect.reshape(shape), every.clean, every.corrupted, table(every.random), table(every.low),
        table(every.high), every.n_pairs,
    )  # fmt: skip


def _edges(lens: Core, ready: _Both, ends: Sequence[Receiver], slopes: Sequence[mx.array] | None) -> Doubles:
    """The metric's change by every edge, (senders, receivers), NaN where there is none; estimated where slopes are."""
    raw = np.full((len(ready.senders), len(ends)), np.nan)
    for column, end in enumerate(ends):
        rows = _before(lens, ready, end)
        if slopes is None:
            raw[rows, column] = _exact(lens, ready, (end,), rows)
        else:
            found = np.array(mx.sum(ready.deltas * slopes[column][None], axis=(1, 2)), np.float64)
            raw[rows, column] = found[rows]
    return raw


def _checked(lens: Core, end: Receiver) -> Receiver:
    if end.kind == "logits":
        return end
    return Receiver(end.kind, lens.registry.decoder.index(end.layer), end.head)


def _before(lens: Core, ready: _Both, end: Receiver) -> list[int]:
    """The numbers of the senders whose part is in what a receiver reads."""
    return [at for at, sender in enumerate(ready.senders) if _feeds(lens, sender, end)]


def _feeds(lens: Core, sender: Sender, end: Receiver) -> bool:
    if end.kind == "logits" or sender.kind == "embed" or sender.layer < end.layer:
        return True
    if sender.layer > end.layer or end.kind != "mlp" or sender.kind == "mlp":
        return False
    return not lens.registry.sites.entries(end.layer).parallel


def _added_site(lens: Core, layer: int, kind: str) -> str:
    """The site that is added to the stream: what a part gives, after its own norm where it has one."""
    normed = f"{kind}_out_normed"
    return normed if normed in lens.sites(layer) else f"{kind}_out"


def _run_both(
    lens: Core,
    pair: PromptPair,
    measure: Measure,
    direction: Direction,
    *,
    heads: bool,
    chosen: Sequence[Sender] | None,
) -> _Both:
    lens.registry.decoder.check_whole("What a path carries")
    if pair.spans:
        raise LensError("Paths are patched at all tokens, so that spans say nothing.", "Leave the pair's spans out.")
    aligned, layers = align(lens, pair), range(lens.n_layers)
    parts: list[Key] = [(layer, _added_site(lens, layer, kind)) for layer in layers for kind in ("attn", "mlp")]
    reads = [(0, "resid_pre"), (lens.n_layers - 1, "resid_post")]
    needed = [*reads, *parts, *((layer, "resid_pre") for layer in layers), *((layer, "attn_z") for layer in layers)]
    clean, corrupted = (read_run(lens, ids, needed) for ids in (aligned.clean, aligned.corrupted))
    metric = metric_of(lens, measure, pair, lambda: final_logits(lens, clean))
    values = check_gap(lens, metric, clean, corrupted)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    _check_sum(lens, base, parts)
    senders = tuple(_senders(lens, heads) if chosen is None else chosen)
    deltas = [_delta(lens, sender, base, source) for sender in senders]
    start = values[1] if direction == "denoise" else values[0]
    return _Both(base.ids, base, _entries(lens, base), senders, mx.stack(deltas), metric, *values, start)


def _check_sum(lens: Core, run: TextRun, parts: Sequence[Key]) -> None:
    """Raise :class:`LensError` unless the embedding and what attentions and MLPs give are the final residual."""
    whole = run.hidden[lens.n_layers - 1, "resid_post"].astype(mx.float32)
    total = run.hidden[0, "resid_pre"].astype(mx.float32)
    for key in parts:
        total = total + run.hidden[key].astype(mx.float32)
    error = float(mx.linalg.norm(total - whole) / mx.linalg.norm(whole))
    if not error < max(_ADDS_UP, 8 * float(mx.finfo(lens.registry.decoder.dtype).eps)):
        raise LensError(
            f"The attentions and MLPs of this model do not add up to its residual stream (off by {error:.0%}), so that "
            "no part can be said to send another anything."
        )


def _senders(lens: Core, heads: bool) -> Iterator[Sender]:
    yield Sender("embed")
    for layer in range(lens.n_layers):
        if heads:
            yield from (Sender("head", layer, head) for head in range(heads_at(lens, layer)))
        else:
            yield Sender("attn", layer)
        yield Sender("mlp", layer)


def _delta(lens: Core, sender: Sender, base: TextRun, source: TextRun) -> mx.array:
    """What a sender adds to the stream in the source less that in the base, (tokens, d_model), float32."""

    def change(key: Key) -> mx.array:
        return source.hidden[key].astype(mx.float32) - base.hidden[key].astype(mx.float32)

    if sender.kind == "embed":
        return change((0, "resid_pre"))
    layer = lens.registry.decoder.index(sender.layer)
    if sender.kind != "head":
        return change((layer, _added_site(lens, layer, sender.kind)))
    if _added_site(lens, layer, "attn") != "attn_out":
        raise LensError(
            f"Layer {layer} norms the sum of its heads, so that no head has a part of its own.", "Use heads=False."
        )
    count = heads_at(lens, layer)
    if not 0 <= sender.head < count:
        raise LensError(f"Layer {layer} has no head {sender.head}: it has {count}.", f"Choose 0 to {count - 1}.")
    return head_output(lens, layer, sender.head, change((layer, "attn_z")).astype(base.hidden[layer, "attn_z"].dtype))


def head_output(lens: Core, layer: int, head: int, handed_on: mx.array) -> mx.array:
    """What a head's part of ``attn_z`` (tokens, width) becomes in the output projection, (tokens, d_model), float32."""
    width = handed_on.shape[-1]
    mine = mx.array((np.arange(width) // (width // heads_at(lens, layer)) == head)[None])
    module: Any = lens.registry.sites.point(layer, "attn_z").module
    moved = mx.where(mine, handed_on, 0.0).astype(handed_on.dtype)[None]
    with unhooked(lens):  # the projection is linear but for its bias, which is that of nothing
        found: mx.array = (module(moved) - module(mx.zeros_like(moved)))[0].astype(mx.float32)
    mx.eval(found)
    return found


def _entries(lens: Core, base: TextRun) -> dict[str, mx.array]:
    """What every attention and MLP reads of the stream in a run, by the receiver's label, ``(tokens, d_model)``."""
    found: dict[str, mx.array] = {}
    with ExitStack() as stack:
        for layer in range(lens.n_layers):
            entries = lens.registry.sites.entries(layer)
            for kind, module in (("attn", entries.attention), ("mlp", entries.mlp)):

                def tap(call: Call, args: Any, kwargs: Any, label: str = f"{kind} {layer}") -> Any:
                    found[label] = input_of(args, kwargs)[0] + 0  # what is kept must not be changed in place
                    return call(*args, **kwargs)

                install(module, tap)
                stack.callback(uninstall, module, tap)
        kept = Kept(lens.registry, [(lens.n_layers - 1, "resid_post")])
        run = Run(lens.registry, Plan((), (kept,)), len(base.ids))
        lens.registry.forward(run, mx.array([list(base.ids)], dtype=mx.int32))
    mx.eval(list(found.values()))
    found["logits"] = base.hidden[lens.n_layers - 1, "resid_post"]
    return found


Acting = tuple[list[Hook], list[tuple[Module, Tap]]]
"""Hooks and taps that act in one forward."""


def _reading(lens: Core, ends: Sequence[Receiver], changed: Callable[[Receiver], Edit]) -> Acting:
    """What makes receivers read what ``changed`` makes of what they read."""
    hooks: list[Hook] = []
    taps: list[tuple[Module, Tap]] = []
    for end in ends:
        if end.kind == "logits":
            hooks.append(Hook("path", lens.n_layers - 1, "resid_post", _as_hook(changed(end))))
        else:
            taps.append(_tap(lens, end, changed(end)))
    return hooks, taps


def _as_hook(edit: Edit) -> Callable[[Any, mx.array], mx.array]:
    return lambda ctx, h: edit(h)


def _tap(lens: Core, end: Receiver, change: Edit) -> tuple[Module, Tap]:
    entries = lens.registry.sites.entries(end.layer)
    if end.kind in ("attn", "mlp"):

        def whole(call: Call, args: Any, kwargs: Any) -> Any:
            args, kwargs = replace_input(args, kwargs, change(input_of(args, kwargs)))
            return call(*args, **kwargs)

        return (entries.attention if end.kind == "attn" else entries.mlp), whole
    attention = lens.registry.sites.point(end.layer, "attn_out").module
    projection = getattr(attention, f"{end.kind}_proj", None)
    if not isinstance(projection, Module):
        raise LensError(f"The attention of layer {end.layer} has no projection of its own for {end.kind}.")
    norm: Any = None if entries.attention is attention else entries.attention
    size = int(lens.registry.sites.point(end.layer, "attn_z").width) // heads_at(lens, end.layer)

    def part(call: Call, args: Any, kwargs: Any) -> Any:
        given = call(*args, **kwargs)
        read = change(input_of(args, kwargs))
        new = call(read if norm is None else norm(read))
        count = given.shape[-1] // size
        if end.head >= count:
            raise LensError(
                f"Layer {end.layer} has no head {end.head} of {end.kind}: it has {count}.", f"Choose 0 to {count - 1}."
            )
        mine = np.ones(given.shape[-1], bool) if end.head < 0 else np.arange(given.shape[-1]) // size == end.head
        return mx.where(mx.array(mine), new, given)

    return projection, part


def _exact(lens: Core, ready: _Both, ends: Sequence[Receiver], rows: Sequence[int]) -> Doubles:
    """The metric's change when each of some senders' parts is changed in what the receivers read, (rows,)."""
    per_batch = max(1, min(MOST_ROWS, MOST_TOKENS // len(ready.ids)))
    lowest = min(lens.n_layers - 1 if end.kind == "logits" else end.layer for end in ends)
    found: list[Doubles] = []
    for begin in range(0, len(rows), per_batch):
        lens.registry.between()
        batch = list(rows[begin : begin + per_batch])
        deltas = ready.deltas[mx.array(batch)]

        def changed(end: Receiver, batch: list[int] = batch, deltas: mx.array = deltas) -> Edit:
            name = end.label if end.kind in ("attn", "mlp", "logits") else f"attn {end.layer}"
            feeds = mx.array([[[_feeds(lens, ready.senders[at], end)]] for at in batch])
            new = ready.read[name].astype(mx.float32)[None] + mx.where(feeds, deltas, 0.0)
            return lambda h: new.astype(h.dtype)

        values = _metric(lens, ready, len(batch), _reading(lens, ends, changed), lowest)
        found.append(np.array(values, np.float64))
    whole: Doubles = np.concatenate(found) - ready.start if found else np.zeros(0)
    return whole


def _metric(lens: Core, ready: _Both, count: int, acting: Acting, lowest: int) -> mx.array:
    """The metric (rows,) of so many rows of the base, resumed at a layer where that is possible."""
    ids = mx.broadcast_to(mx.array([list(ready.ids)], dtype=mx.int32), (count, len(ready.ids)))
    below = ready.base.hidden[lowest, "resid_pre"]
    resume = Resume((lowest, "resid_pre"), mx.broadcast_to(below[None], (count, *below.shape)))
    hooks, taps = acting
    return metric_of_run(lens, ids, hooks, ready.metric, resume if can_resume(lens.registry) else None, taps)


def _slopes(lens: Core, ready: _Both, ends: Sequence[Receiver]) -> list[mx.array]:
    """The gradient of the metric with respect to what each receiver reads, (tokens, d_model), by one backward pass."""
    zeros = [mx.zeros((1, len(ready.ids), lens.d_model)) for _ in ends]
    place = {end: at for at, end in enumerate(ends)}

    def value(added: list[mx.array]) -> mx.array:
        def changed(end: Receiver) -> Edit:
            return lambda h: h + added[place[end]].astype(h.dtype)

        return _metric(lens, ready, 1, _reading(lens, ends, changed), 0)[0]

    _, slopes = differentiated(ready.metric.name, value, zeros)
    return [slope[0] for slope in slopes]
