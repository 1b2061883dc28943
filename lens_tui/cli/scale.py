"""``mlx-lens-tui scale``: the scale at which a steering reaches a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lens_tui.records import Intervention
from lens_tui.records.measure_words import QUANTITIES
from lens_tui.records.measures import ScaleSearch
from lens_tui.records.modes import told

from .arms import parse_arm
from .long_work import Meter
from .output import note, print_json, say
from .sources import Vectors, open_model


def scale(arm: str, *, model: str, sae: str, quantity: str, target: float | None, as_json: bool) -> None:
    """Search and print; a line on standard error says what was tried."""
    spec = parse_arm(arm, scale=1.0)
    from lens_tui.worker.dosing import find

    meter = Meter()
    with open_model(model) as lens:
        records = Vectors(lens, sae, model).arm(spec).interventions
        found = find(lens, records, quantity, target, heard=lambda tried: meter.say("scales", f"{len(tried)} tried"))
    meter.end()
    result = record(lens.info.name, records, found)
    if as_json:
        print_json(result)
    else:
        _print(result)


def record(model: str, records: Sequence[Intervention], found: ScaleSearch) -> dict[str, Any]:
    """The search as plain data; ``scale`` is absolute where one record is multiplied, ``factor`` what it is times."""
    acting = told(records[0]) if len(records) == 1 else None
    return {
        "model": model,
        **asdict(found),
        "factor": found.scale,
        "scale": None if acting is None else found.scale * acting[1],
    }


def _print(result: dict[str, Any]) -> None:
    label, unit, _ = QUANTITIES[result["quantity"]]
    for at, value in zip(result["curve"]["scales"], result["curve"]["values"], strict=True):
        say(f"{at:12.4g}  {label} {value:+.4f} {unit}".rstrip())
    shown = result["scale"] if result["scale"] is not None else result["factor"]
    verdict = "reached" if result["reached"] else "not reached; the nearest is"
    held = "" if result["held_out"] is None else f", {result['held_out']:+.4f} on the texts held out"
    say(f"{label} {result['target']:+g} {unit} {verdict} at {shown:.4g}: {result['value']:+.4f}{held}")
    note(f"{result['model']}, {result['evaluations']} scales tried")
