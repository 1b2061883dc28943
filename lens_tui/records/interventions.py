"""Interventions: what is changed, where, by how much, on which positions.

These are plain frozen records. What each does to a residual stream is written
in ``lens_tui.lens.hooks.formulas``, one function a record.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar, Literal

from .errors import LensError
from .steering_vector import FloatArray, SteeringVector, numbers

PositionKind = Literal["all", "prompt", "generated", "last", "not_bos", "indices", "slice", "role"]
Precision = Literal["model", "float32"]


@dataclass(frozen=True, slots=True)
class Positions:
    """Which token positions an intervention touches.

    Positions are absolute: 0 is the first token of the sequence (usually BOS),
    whatever chunks the prompt was prefilled in. ``prompt`` is every position of
    the prompt *except its last*, ``generated`` is the last prompt position and
    all after it: the last prompt token is the one whose output predicts the
    first generated token. ``last`` is the last prompt position alone; of a text
    that nothing is generated from, its last position. ``indices`` holds absolute
    positions (a negative one counts from the end of the prompt), ``start`` and
    ``stop`` bound a slice, ``role`` names a role of the chat template (``system``,
    ``user``, ``assistant``, ``thinking``; generated tokens are the assistant's).
    ``not_bos`` is every position whose token is not BOS.

    Where positions are taken, the name of a kind that needs nothing else (``"generated"``), a number, a list or
    range of numbers, or a slice will do as well: see :func:`as_positions`.
    """

    kind: PositionKind = "all"
    indices: tuple[int, ...] = ()
    start: int = 0
    stop: int | None = None
    role: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", _indices(self.indices))
        for name in ("start", "stop"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole(getattr(self, name)))


SIMPLE: tuple[PositionKind, ...] = ("all", "prompt", "generated", "last", "not_bos")
"""Kinds of positions that need nothing else said."""


def as_positions(value: Any) -> Positions:
    """Positions from what people write: ``"generated"``, ``3``, ``[1, 2]``, ``range(4)``, ``slice(2, 5)``.

    Raises :class:`LensError` for anything else.
    """
    if isinstance(value, Positions):
        return value
    if isinstance(value, str):
        for kind in SIMPLE:
            if kind == value:
                return Positions(kind)
        raise LensError(
            f"There are no positions {value!r}.",
            f"Use one of {', '.join(SIMPLE)}, numbers, or Positions('role', role='user').",
        )
    if isinstance(value, slice):
        if value.step not in (None, 1):
            raise LensError(f"The positions have the step {value.step}.", "Give a list of positions.")
        return Positions("slice", start=value.start or 0, stop=value.stop)
    return Positions("indices", _indices(value))


def _indices(value: Any) -> tuple[int, ...]:
    """Whole numbers as a tuple: of one, of a list, or of an array."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise LensError(
            f"Positions cannot be {value!r}.", "Give Positions, whole numbers, or a name such as 'generated'."
        )
    return tuple(_whole(item) for item in value)


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or type(value).__name__ == "bool":
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise LensError(
            f"A position is {value!r}.", "Give whole numbers; write a mask as the numbers it selects."
        ) from None


ALL = Positions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """What every intervention has: an id, a place and positions.

    ``layer`` is stored counted from 0, never negative, once it has been through
    a model. ``enabled`` lets a screen keep an intervention that is switched off.
    ``precision`` ``"model"`` keeps the residual in the model's own dtype: what is
    delivered is what survives its rounding. ``"float32"`` keeps the stream in
    float32 from this site on, for every row of the batch, at twice the memory.

    A direction may be given as a list, numpy or MLX array: its own length then counts, so that the scale of
    ``Add`` and ``NormMatch`` becomes the scale given times that length, on the unit direction.
    """

    mode: ClassVar[str] = ""
    id: str
    layer: int
    site: str = "resid_post"
    positions: Positions = field(default=ALL)
    enabled: bool = True
    precision: Precision = "model"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", as_positions(self.positions))
        vector, mean = getattr(self, "vector", None), getattr(self, "mean", None)
        if vector is not None and not isinstance(vector, SteeringVector):
            made = SteeringVector.of(str(self.id), vector, self.layer, site=self.site)
            object.__setattr__(self, "vector", made)
            scale = getattr(self, "scale", None)
            if scale is not None:
                object.__setattr__(self, "scale", as_number(scale, f"The scale of {self.id!r}") * made.norm)
        if mean is not None:
            object.__setattr__(self, "mean", numbers(mean, f"The mean of {self.id!r}").astype("float32"))


def _cut(value: Any) -> str:
    """A value as it would be typed, at most 60 characters of it: a whole number may have any number of digits."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return f"a {type(value).__name__} of very many digits"
    return text if len(text) <= 60 else f"{text[:59]}…"


def as_number(value: Any, what: str) -> float:
    """A finite number as a float. Raises :class:`LensError`."""
    try:
        found = float("nan") if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not isfinite(found):
        raise LensError(f"{what} is {_cut(value)}.", "Give a finite number.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Intervention):
    """``h + scale * direction``: scale is absolute, in residual-stream units, on a unit direction."""

    mode: ClassVar[str] = "add"
    vector: SteeringVector
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NormMatch(Intervention):
    """``h + scale * ||h|| * direction``, with the norm of each token: scale is a share of the residual's length.

    The meaning of ``norm_match`` in vLLM-Lens.
    """

    mode: ClassVar[str] = "norm_match"
    vector: SteeringVector
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOut(Intervention):
    """``h - (h . direction) direction``: nothing is left along the direction (Arditi et al. 2024, 2406.11717)."""

    mode: ClassVar[str] = "project_out"
    vector: SteeringVector


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProjection(Intervention):
    """``h + (value - h . direction) direction``: the projection becomes ``value`` at every token."""

    mode: ClassVar[str] = "set"
    vector: SteeringVector
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapProjection(Intervention):
    """The projection is clipped to ``[low, high]``; a bound that is ``None`` does not bind. What is inside stays.

    Its mode is ``at_most`` or ``at_least`` where it has one bound, else ``between``.
    """

    vector: SteeringVector
    low: float | None = None
    high: float | None = None

    @property
    def mode(self) -> str:  # type: ignore[override]
        """What it is called by its bounds."""
        if (self.low is None) == (self.high is None):
            return "between"
        return "at_least" if self.high is None else "at_most"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampFeature(Intervention):
    """A feature of an SAE is given the activation ``value``; the SAE's error term is kept.

    ``h + (value - a) d``, where ``a`` is the activation that the SAE reads at the
    token and ``d`` what its decoder adds for one unit: all that the SAE does not
    explain passes through unchanged. An SAE that reads the result again finds another
    number than ``value``: encoder and decoder are not each other's inverse, and the decoder's
    rows are not orthogonal, so that other features move too. ``sae`` names an SAE that the
    model has been given (``LensModel.attach_sae``); it is refused at another layer or site
    than the one it was made for.
    """

    mode: ClassVar[str] = "clamp_feature"
    sae: str
    feature: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablate(Intervention):
    """The site is replaced by zero, or by ``mean`` (shape ``(width of the site,)``) if one is given."""

    mode: ClassVar[str] = "ablate"
    mean: FloatArray | None = None


def as_records(records: Any) -> tuple[Intervention, ...]:
    """Interventions as a tuple: of one, or of several in any container. Raises :class:`LensError` for others."""
    if isinstance(records, Intervention):
        return (records,)
    if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
        raise LensError(f"Interventions cannot be {type(records).__name__}.", "Give Add, NormMatch, ... of lens_tui.")
    found: tuple[Intervention, ...] = tuple(records)
    for record in found:
        if not isinstance(record, Intervention):
            raise LensError(f"An intervention is {type(record).__name__}.", "Give Add, NormMatch, ... of lens_tui.")
    return found


@dataclass(frozen=True, slots=True)
class Arm:
    """One column of a comparison: a name and the interventions applied in it, in order.

    The baseline is the arm with no interventions.
    """

    name: str
    interventions: tuple[Intervention, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", as_records(self.interventions))

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is changed in this arm."""
        return not any(item.enabled for item in self.interventions)
