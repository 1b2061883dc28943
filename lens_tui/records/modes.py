"""The ways a direction can act on the residual stream, by a short name each, with one number as their amount.

A row of the vector bench and a term on the command line are a vector, a mode, an
amount and positions; what a model is steered with are the records of
:mod:`lens_tui.records.interventions`. This is how one becomes the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from .errors import LensError
from .interventions import (
    ALL,
    Add,
    CapProjection,
    Intervention,
    NormMatch,
    PositionKind,
    Positions,
    ProjectOut,
    SetProjection,
)
from .vectors import SteeringVector


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to act. ``does`` completes "the row ..."; ``amount`` says what its number is, empty where it has none.

    ``grows``: at amount 0 nothing is changed, and the push grows with the amount.
    ``measured``: a dose-response can multiply its amount.
    """

    id: str
    label: str
    does: str
    amount: str
    grows: bool = False
    measured: bool = False


MODES: tuple[Mode, ...] = (
    Mode("add", "add", "adds scale × direction", "the length added, in residual-stream units", True, True),
    Mode("norm_match", "norm-match", "adds scale × ‖h‖ × direction", "a share of each token's ‖h‖", True, True),
    Mode("project_out", "project out", "takes away what lies along the direction", ""),
    Mode("set", "set", "makes the projection on the direction equal to the scale", "the projection", measured=True),
    Mode("at_most", "at most", "lowers the projection to the scale where it is above", "the upper bound"),
    Mode("at_least", "at least", "raises the projection to the scale where it is below", "the lower bound"),
)
"""In the order in which a key goes through them."""

POSITIONS: dict[PositionKind, str] = {
    "all": "all tokens",
    "prompt": "prompt only",
    "generated": "generated only",
    "last": "last prompt token",
    "not_bos": "all but BOS",
}
"""The kinds of positions that need nothing else said, and what they are called."""


def mode_of(name: str) -> Mode:
    """The mode of that id. Raises :class:`LensError` with those there are."""
    for mode in MODES:
        if mode.id == name:
            return mode
    raise LensError(f"There is no mode {name!r} of steering.", f"Use one of {', '.join(mode.id for mode in MODES)}.")


def positions_of(name: str) -> Positions:
    """Positions by the name of their kind. Raises :class:`LensError` with those there are."""
    if name not in POSITIONS:
        raise LensError(f"There are no positions {name!r}.", f"Use one of {', '.join(POSITIONS)}.")
    return Positions(next(kind for kind in get_args(PositionKind) if kind == name))


def positions_text(positions: Positions) -> str:
    """Positions in words: ``generated only``, ``tokens 3, 5``, ``tokens 2 to 8``, ``the user's``."""
    if positions.kind in POSITIONS:
        return POSITIONS[positions.kind]
    if positions.kind == "indices":
        return f"tokens {', '.join(map(str, positions.indices))}"
    if positions.kind == "role":
        return f"the {positions.role}'s"
    return f"tokens {positions.start} to {'the end' if positions.stop is None else positions.stop}"


def acting(
    mode: str, name: str, vector: SteeringVector, layer: int, amount: float, positions: Positions = ALL
) -> Intervention:
    """The record that does this, its id ``name``, at the vector's own site. Raises :class:`LensError` for no mode."""
    site = vector.site
    match mode_of(mode).id:
        case "norm_match":
            return NormMatch(id=name, layer=layer, site=site, positions=positions, vector=vector, scale=amount)
        case "project_out":
            return ProjectOut(id=name, layer=layer, site=site, positions=positions, vector=vector)
        case "set":
            return SetProjection(id=name, layer=layer, site=site, positions=positions, vector=vector, value=amount)
        case "at_most":
            return CapProjection(id=name, layer=layer, site=site, positions=positions, vector=vector, high=amount)
        case "at_least":
            return CapProjection(id=name, layer=layer, site=site, positions=positions, vector=vector, low=amount)
    return Add(id=name, layer=layer, site=site, positions=positions, vector=vector, scale=amount)


def told(record: Intervention) -> tuple[str, float] | None:
    """Mode and amount of a record, so that ``acting`` makes it again; ``None`` for one that is no direction's."""
    match record:
        case Add():
            return "add", record.scale
        case NormMatch():
            return "norm_match", record.scale
        case ProjectOut():
            return "project_out", 0.0
        case SetProjection():
            return "set", record.value
        case CapProjection() if record.low is None and record.high is not None:
            return "at_most", record.high
        case CapProjection() if record.high is None and record.low is not None:
            return "at_least", record.low
    return None
