"""One forward pass, and the loss, under the interventions that hold."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError

from .capture import CaptureResult
from .checks import check_scored
from .finite import check_values, explained, origin_of
from .meter import Meter
from .program import Key
from .proxy import first_of
from .registry import Plan, Registry, Run

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
