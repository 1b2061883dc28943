"""The downstream echo: how much of a change at one layer is still there at the layers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lens_tui.records import Echo, FloatArray, Intervention

from .capture import CaptureResult
from .checks import checked
from .registry import Entry, Plan, Registry, Run

if TYPE_CHECKING:
    from .model import LensModel


def echo(lens: LensModel, tokens: Any, interventions: Sequence[Intervention]) -> tuple[Echo, ...]:
    """What interventions leave in ``resid_post`` of every layer, averaged over a text's tokens.

    One plain and one changed forward over the same ids. ``along`` is the
    projection of the change on the first intervention's direction.
    """
    registry = lens.registry
    entries = tuple(Entry(registry, checked(item, registry)) for item in interventions)
    ids = lens.batch(tokens)
    before, after = (_stack(registry, ids, rows) for rows in ((), entries))
    vector = next((entry.item.vector for entry in entries if hasattr(entry.item, "vector")), None)
    direction = None if vector is None else vector.direction
    return tuple(_compare(layer, before[layer], after[layer], direction) for layer in range(lens.n_layers))


def _stack(registry: Registry, ids: mx.array, entries: tuple[Entry, ...]) -> list[FloatArray]:
    keys = tuple((layer, "resid_post") for layer in range(registry.decoder.n_layers))
    captured = CaptureResult(registry, keys, by_site=False)
    plan = Plan((entries,), (captured,))
    registry.need(plan.keys)
    try:
        with registry.running(Run(registry, plan, ids.shape[1])):
            registry.decoder.root(ids)
    finally:
        registry.release(plan.keys)
    return [np.array(captured[layer].astype(mx.float32)) for layer, _ in keys]


def _compare(layer: int, before: FloatArray, after: FloatArray, direction: FloatArray | None) -> Echo:
    change = after - before
    moved = np.linalg.norm(change, axis=-1)
    length = np.maximum(np.linalg.norm(before, axis=-1), 1e-30)
    # Lengths of the residual differ by layer; a direction that is of another width has no projection here.
    along = (
        float((change @ direction).mean()) if direction is not None and direction.shape == change.shape[-1:] else None
    )
    return Echo(layer, float(moved.mean()), float((moved / length).mean()), along)
