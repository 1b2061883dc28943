"""Texts side by side in one forward, each row with interventions of its own: what vectors and measures are read from.

Rows are padded at their end. The models are causal, so that no real token sees
the padding; what is there is never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import FloatArray, Intervention, LensError

from .capture import CaptureResult
from .checks import entries_of
from .finite import check_values, explained, origin_of
from .meter import Meter
from .packing import pack
from .program import Key, Program
from .registry import Plan, Recorder, Resume, Run

if TYPE_CHECKING:
    from .core import Core
    from .tokens import Span

Ids = Sequence[int]
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


def read_rows(lens: Core, rows: Sequence[Ids], keys: Sequence[Key]) -> Iterator[tuple[int, dict[Key, mx.array]]]:
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


def _padded(rows: Sequence[Ids]) -> NDArray[np.int32]:
    if not rows or not all(len(row) for row in rows):
        raise LensError("A text has no tokens.", "Leave empty texts out.")
    table = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table
