"""Dose-response and scale search in steps that can be heard of and stopped: what the screen and the verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from lens_tui.records import Intervention, LensError
from lens_tui.records.measures import DoseResponse, ScaleSearch

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import FeatureProbe
    from lens_tui.lens.model import LensModel


ON_CPU, ON_GPU = 2, 6
"""Scales measured at once: a batch costs a GPU little more than one row, a CPU as much as its rows."""
N_TEXTS = 16
"""Texts of the loss where no number is given: they are most of the work."""
Heard = Callable[[DoseResponse, int, int], None]


def blocks(scales: Sequence[float], size: int) -> list[list[float]]:
    """The scales in blocks, from 0 outwards, so that the middle of a curve is there first."""
    ordered = sorted({float(scale) for scale in scales}, key=lambda scale: (abs(scale), -scale))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def measure_dose(
    lens: LensModel,
    prompt: str,
    interventions: Sequence[Intervention],
    scales: Sequence[float],
    *,
    controls: int = 1,
    probe: FeatureProbe | None = None,
    max_tokens: int = 60,
    n_texts: int | None = None,
    raw: bool = False,
    seed: int = 0,
    heard: Heard | None = None,
) -> DoseResponse:
    """As :func:`lens_tui.dose_response`, some scales at a time, the loss on the first ``n_texts`` of its 64 texts.

    ``heard(response so far, scales done, scales in all)`` is called after each block; what it
    raises ends the measuring. The random directions are the same in every block.
    Raises :class:`LensError` for positions that the loss cannot be measured at.
    """
    from lens_tui.lens.measure.dose import curves_of, dose_response, known_of
    from lens_tui.lens.measure.measures import LOSS_TEXTS

    check_positions(interventions)
    found: DoseResponse | None = None
    on_cpu = lens.info.device.startswith("cpu")
    texts = LOSS_TEXTS[: n_texts or N_TEXTS]
    parts = blocks(scales, ON_CPU if on_cpu else ON_GPU)
    total = sum(map(len, parts))
    known = known_of(lens, interventions, texts)
    for part in parts or [[]]:
        more = dose_response(
            lens,
            prompt,
            interventions,
            part,
            texts=texts,
            controls=controls,
            probe=probe,
            raw=raw,
            seed=seed,
            known=known,
            max_tokens=max_tokens,
        )
        points = (*(found.points if found else ()), *more.points)
        found = replace(more, points=tuple(sorted(points, key=lambda point: point.scale)))
        found = replace(found, curves=curves_of(found))
        if heard is not None:
            heard(found, len(found.points), total)
    assert found is not None
    return found


def check_positions(interventions: Sequence[Intervention]) -> None:
    """Refuse positions that no token of the loss's texts can have: those texts have no prompt."""
    if any(record.positions.kind == "prompt" for record in interventions):
        raise LensError(
            "A loss is measured on texts that count as generated, which prompt-only steering does not touch.",
            "Choose other positions to measure.",
        )


def find(
    lens: LensModel,
    interventions: Sequence[Intervention],
    quantity: str = "delta_loss",
    target: float | None = None,
    *,
    heard: Callable[[dict[float, float]], None] | None = None,
) -> ScaleSearch:
    """As :func:`lens_tui.find_scale`, with ``quantity`` checked; ``heard`` is its ``progress``."""
    from lens_tui.lens.measure.search import Quantity, find_scale

    check_positions(interventions)
    known: dict[str, Any] = {name: name for name in get_args(Quantity)}
    if quantity not in known:
        raise LensError(f"There is no quantity {quantity!r} to search for.", f"Use one of {', '.join(known)}.")
    return find_scale(lens, *interventions, quantity=known[quantity], target=target, progress=heard)
