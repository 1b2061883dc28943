"""The downstream echo: how much of a change at one layer is still there at the layers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lens_tui.records import Echo, FloatArray, Intervention, LensError

from ..hooks.capture import CaptureResult
from ..hooks.finite import check_values, origin_in
from ..hooks.registry import Entry, Plan, Registry, Run, entries_of
from ..hooks.steered import Passage

if TYPE_CHECKING:
    from ..core import Core


def echo(lens: Core, tokens: Any, interventions: Sequence[Intervention]) -> tuple[Echo, ...]:
    """What interventions leave in ``resid_post`` of every layer, averaged over a text's tokens."""
    registry = lens.registry
    entries = tuple(entries_of(interventions, registry))
    rows = [tuple(row) for row in np.array(lens.batch(tokens)).tolist()]
    parts = [_changes(registry, Passage(row, len(row), bos=registry.bos), entries) for row in rows]
    return _echoes(registry, parts, entries)


def echo_of(registry: Registry, passage: Passage, entries: Sequence[Entry]) -> tuple[Echo, ...]:
    """The same of a run: over its prompt and its text, with the positions that its tokens have there.

    Raises :class:`LensError` for a run that went on from a cache, whose tokens are not known.
    """
    if passage.start:
        raise LensError("The run went on from a prompt cache, whose tokens are not known.", "Use echo(tokens, ...).")
    return _echoes(registry, [_changes(registry, passage, entries)], entries)


def _changes(
    registry: Registry, passage: Passage, entries: Sequence[Entry]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """``resid_post`` of every layer, plain and changed, ``(tokens, d_model)`` each: two forwards over the same ids."""
    plain, changed = (_stack(registry, passage, rows) for rows in ((), entries))
    return plain, changed


def _stack(registry: Registry, passage: Passage, entries: Sequence[Entry]) -> list[FloatArray]:
    keys = tuple((layer, "resid_post") for layer in range(registry.decoder.n_layers))
    captured = CaptureResult(registry, keys, by_site=False)
    plan, where = Plan((entries,), (captured,)), passage.where()
    assert where.ids is not None
    registry.need(plan.keys)
    try:
        with registry.running(Run(registry, plan, passage.n_prompt, passage.spans, thinking=where.thinking)):
            registry.decoder.forward(where.ids)
    finally:
        registry.release(plan.keys)
    found = [captured[layer] for layer, _ in keys]
    for layer, values in enumerate(found):
        check_values(values, f"The residuals at layer {layer}", lambda: origin_in(registry, passage, entries))
    return [np.array(values.astype(mx.float32))[0] for values in found]


def _echoes(
    registry: Registry, parts: Sequence[tuple[list[FloatArray], list[FloatArray]]], entries: Sequence[Entry]
) -> tuple[Echo, ...]:
    vector = next((entry.item.vector for entry in entries if hasattr(entry.item, "vector")), None)
    direction = None if vector is None else vector.direction
    made = []
    for layer in range(registry.decoder.n_layers):
        before, after = (np.concatenate([part[side][layer] for part in parts]) for side in (0, 1))
        made.append(_compare(layer, before, after, direction))
    return tuple(made)


def _compare(layer: int, before: FloatArray, after: FloatArray, direction: FloatArray | None) -> Echo:
    change = after - before
    moved = np.linalg.norm(change, axis=-1)
    length = np.maximum(np.linalg.norm(before, axis=-1), 1e-30)
    # Lengths of the residual differ by layer; a direction that is of another width has no projection here.
    along = (
        float((change @ direction).mean()) if direction is not None and direction.shape == change.shape[-1:] else None
    )
    return Echo(layer, float(moved.mean()), float((moved / length).mean()), along)
