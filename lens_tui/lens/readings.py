"""What readouts stand on: tensors at many sites of one text in one forward pass, plain or changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lens_tui.records import Intervention, LensError

from .capture import CaptureResult
from .checks import entries_of
from .finite import check_values, explained, origin_of
from .forward import check_run
from .meter import Meter
from .program import Key
from .registry import Plan, Run
from .tokens import id_table

if TYPE_CHECKING:
    from .core import Core


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
