"""A row of the bench: a vector, a way to act with one number as its amount, positions, an arm. And what it makes.

The bench of the app, its session file, an arm on the command line and the bundled comparison are made of rows; what a
model is steered with are the records of :mod:`lens_tui.records.interventions`. :meth:`BenchRow.intervention` makes one
of the other. The modes are those of :attr:`Intervention.mode`: a mode has one name wherever it is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, log10
from typing import Literal, get_args

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
from .run import TokenWeight
from .steering_vector import SteeringVector


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
"""Those of one direction and one number, in the order in which a key goes through them."""

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


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A vector at a layer, what is done with it, how much, where, and in which arm.

    ``arm`` counts from 1; rows with the same arm act together. ``mode`` is one of ``MODES`` and says what ``scale``
    means: for ``add`` it is absolute, in residual-stream units on the unit direction. ``positions`` ``None`` are all
    tokens. ``residual_norm`` is the median ``||h||`` where the vector was made, ``None`` where it was not measured;
    ``promoted`` and ``suppressed`` are the tokens the direction moves most.
    """

    id: str
    vector: SteeringVector
    layer: int
    scale: float
    enabled: bool = True
    arm: int = 1
    residual_norm: float | None = None
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    mode: str = "add"
    positions: Positions | None = None

    @property
    def unit(self) -> float:
        """The size a scale is held against: the feature's maximum, else the median ``||h||``, else 10.

        Of a norm-match the same as a share of ``||h||``, 1 where that is not known.
        """
        unit = self.vector.max_activation or self.residual_norm or 10.0
        if self.mode != "norm_match":
            return unit
        return unit / self.residual_norm if self.residual_norm else 1.0

    def intervention(self, scale: float | None = None) -> Intervention:
        """What the model is steered with, at the row's scale or another, at the vector's own site.

        Raises :class:`LensError` for a mode that there is not.
        """
        amount, vector, layer, site = self.scale if scale is None else scale, self.vector, self.layer, self.vector.site
        positions, name = self.positions or ALL, self.id
        match mode_of(self.mode).id:
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

    def turned_to(self, mode: str) -> BenchRow:
        """The row in another mode; into and out of a norm-match the push stays about the same."""
        turned = replace(self, mode=mode)
        return replace(turned, scale=float(f"{self.scale * turned.unit / self.unit:.3g}"))

    @property
    def reference(self) -> float:
        """What a dose is a multiple of: the scale a row has at first, the feature's maximum or half of ``||h||``."""
        return self.unit if self.vector.max_activation else self.unit / 2

    @property
    def step(self) -> float:
        """One press of + or -: a round number of about a tenth of :attr:`unit`."""
        exact = abs(self.unit) / 10
        power = 10.0 ** floor(log10(exact))
        return power * min((1, 2, 5, 10), key=lambda digit: abs(digit * power - exact))

    def moved(self, steps: int) -> BenchRow:
        """The row with its scale moved by whole steps, landing on multiples of the step."""
        return replace(self, scale=round((round(self.scale / self.step) + steps) * self.step, 6))


@dataclass(frozen=True, slots=True)
class Term:
    """A row as it is written down, before its vector is found: on the command line, or in the bundled comparison.

    ``source`` is the number of a feature (of ``sae``, where one is named), a seed, or a file's path. ``layer`` ``None``
    is that of the vector. ``positions`` is one of ``POSITIONS``.
    """

    kind: Literal["feature", "random", "file"]
    source: str
    layer: int | None
    scale: float
    mode: str = "add"
    positions: str = "all"
    name: str = ""
    sae: str = ""

    @property
    def feature(self) -> int:
        """The number of the feature that is the source."""
        return int(self.source)

    def row(self, name: str, vector: SteeringVector) -> BenchRow:
        """The row of this id, its vector found."""
        layer = vector.layer if self.layer is None else self.layer
        positions = positions_of(self.positions)
        return BenchRow(name, vector, layer, self.scale, mode=self.mode, positions=positions)


def amount_of(record: Intervention) -> float | None:
    """The number of a record that a bench row can make, 0 where its mode has none; ``None`` for every other record."""
    match record:
        case Add() | NormMatch():
            return record.scale
        case ProjectOut():
            return 0.0
        case SetProjection():
            return record.value
        case CapProjection() if record.low is None or record.high is None:
            return record.high if record.low is None else record.low
    return None
