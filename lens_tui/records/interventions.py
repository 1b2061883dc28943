"""Interventions: what is changed, where, by how much, on which positions. And the rows of a bench that make them.

These are plain frozen records. What each does to a residual stream is written
in ``lens_tui.lens.hooks.program``, one function a record.

The bench of the app, its session file, an arm on the command line and the bundled comparison are made of rows: a
vector, a way to act with one number as its amount, positions, an arm. :meth:`BenchRow.intervention` makes the record
that a model is steered with. The modes are those of :attr:`Intervention.mode`: one name wherever a mode is named.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import floor, isfinite, log10
from typing import Any, ClassVar, Literal, get_args

from .errors import LensError
from .gates import Gate, gate_text
from .steering_vector import FloatArray, SteeringVector, TokenWeight, numbers

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
    ``stop`` bound a slice, ``role`` names a role of the chat template: ``system``, ``user`` and ``assistant`` are the
    whole turns of those (generated tokens are the assistant's), ``thinking`` what stands between the markers of
    thinking, ``template`` the tokens that the template puts around the contents, in every turn.
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
            f"A position cannot be {value!r}.", "Give whole numbers; write a mask as the numbers it selects."
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
    ``gate`` lets it act on those of its positions alone at which a monitor reads enough.

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
    gate: Gate | None = None

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
class Swap(Intervention):
    """``h + (h . direction) (other - direction)``: as much as there is along one direction is along another instead.

    ``vector`` is what is taken out and ``other`` what is put in its place, both unit.
    """

    mode: ClassVar[str] = "swap"
    vector: SteeringVector
    other: SteeringVector


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateHeads(Intervention):
    """What some heads hand on is replaced by zero, or by ``mean``; all other heads stay.

    Heads are the equal parts of ``attn_z`` (heads concatenated), those of queries where keys and values are shared.
    ``mean`` holds ``len(heads) * head_dim`` values, head after head in the order of ``heads``: a mean over texts, or
    one token's values of another run, with the position they belong to in ``positions``. ``count``, how many heads
    the layer has, is filled in by a model.
    """

    mode: ClassVar[str] = "ablate_heads"
    site: str = "attn_z"
    heads: tuple[int, ...]
    mean: FloatArray | None = None
    count: int = 0

    def __post_init__(self) -> None:
        Intervention.__post_init__(self)
        object.__setattr__(self, "heads", _indices(self.heads))


def as_records(records: Any) -> tuple[Intervention, ...]:
    """Interventions as a tuple: of one, or of several in any container. Raises :class:`LensError` for others."""
    if isinstance(records, Intervention):
        return (records,)
    if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
        raise LensError(f"Interventions cannot be {type(records).__name__}.", "Give Add, NormMatch, ... of lens_tui.")
    found: tuple[Intervention, ...] = tuple(records)
    for record in found:
        if not isinstance(record, Intervention):
            raise LensError(
                f"An intervention cannot be {type(record).__name__}.", "Give Add, NormMatch, ... of lens_tui."
            )
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

HEADS_OFF = Mode("ablate_heads", "heads off", "puts zero in the place of what the heads hand on", "")
"""Of a vector that is what heads write (its origin names them): the heads themselves are taken away."""


def modes_of(vector: SteeringVector) -> tuple[Mode, ...]:
    """The modes that a bench row of this vector can have."""
    return (HEADS_OFF, *MODES) if heads_of_vector(vector) else MODES


def heads_of_vector(vector: SteeringVector) -> tuple[int, ...]:
    """The heads, all of the vector's own layer, whose writing it is; none of other vectors."""
    heads = vector.origin.facts.get("heads", ())
    good = isinstance(heads, (list, tuple)) and all(type(head) is int and head >= 0 for head in heads)
    return tuple(heads) if good else ()


POSITIONS: dict[PositionKind, str] = {
    "all": "all tokens",
    "prompt": "prompt only",
    "generated": "generated only",
    "last": "last prompt token",
    "not_bos": "all but BOS",
}
"""The kinds of positions that need nothing else said, and what they are called."""

ROLES: dict[str, str] = {
    "system": "the system's turn",
    "user": "the user's turns",
    "assistant": "the assistant's turns",
    "thinking": "the thinking",
    "template": "the template's own tokens",
}
"""The roles that positions can be of where the prompt is a chat, and what they are called."""


def mode_of(name: str) -> Mode:
    """The mode of that id. Raises :class:`LensError` with those there are."""
    for mode in (*MODES, HEADS_OFF):
        if mode.id == name:
            return mode
    raise LensError(f"There is no mode {name!r} of steering.", f"Use one of {', '.join(mode.id for mode in MODES)}.")


def positions_of(name: str) -> Positions:
    """Positions by the name of their kind, or of a chat's role. Raises :class:`LensError` with those there are."""
    if name in ROLES:
        return Positions("role", role=name)
    if name not in POSITIONS:
        raise LensError(f"There are no positions {name!r}.", f"Use one of {', '.join([*POSITIONS, *ROLES])}.")
    return Positions(next(kind for kind in get_args(PositionKind) if kind == name))


def positions_name(positions: Positions) -> str:
    """The name that :func:`positions_of` takes for these positions; ``""`` where they have none."""
    if positions.kind in POSITIONS:
        return positions.kind
    return positions.role if positions.kind == "role" and positions.role in ROLES else ""


def next_positions(positions: Positions | None, *, roles: Iterable[str] = ()) -> Positions | None:
    """What a key goes on to from these positions, ``None`` for all: the next kind, and after those a chat's roles."""
    names: list[str] = [*POSITIONS, *roles]
    now = "all" if positions is None else positions_name(positions)
    name = names[(names.index(now) + 1) % len(names)] if now in names else names[0]
    return None if name == "all" else positions_of(name)


def positions_text(positions: Positions) -> str:
    """Positions in words: ``generated only``, ``tokens 3, 5``, ``tokens 2 to 8``, ``the user's turns``."""
    if positions.kind in POSITIONS:
        return POSITIONS[positions.kind]
    if positions.kind == "indices":
        return f"tokens {', '.join(map(str, positions.indices))}"
    if positions.kind == "role":
        return ROLES.get(positions.role, f"the {positions.role}'s turns")
    return f"tokens {positions.start} to {'the end' if positions.stop is None else positions.stop}"


def moved_of(sites: Iterable[str]) -> str:
    """What ``moved`` is a share of, by the sites of an arm: the residual's length, or what heads hand on."""
    return Z if set(sites) == {"attn_z"} else "‖h‖"


Z = "‖z‖"
MOVED_Z = f"moved {Z}: over what the heads of that layer hand on (attn_z), so not comparable with other edits or pushes"


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A vector at a layer, what is done with it, how much, where, and in which arm.

    ``arm`` counts from 1; rows with the same arm act together. ``mode`` is one of ``MODES`` and says what ``scale``
    means: for ``add`` it is absolute, in residual-stream units on the unit direction. ``positions`` ``None`` are all
    tokens; with a ``gate`` it acts on those alone at which a monitor reads enough. ``residual_norm`` is the median
    ``||h||`` where the vector was made, ``None`` where it was not measured; ``promoted`` and ``suppressed`` are the
    tokens the direction moves most. ``rest`` are the vectors of further layers, where the row is a set: each acts at
    its own layer, and the scale multiplies the lengths they were made with.
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
    gate: Gate | None = None
    rest: tuple[SteeringVector, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Where it acts: its layer, and those of a set."""
        return self.layer, *(vector.layer for vector in self.rest)

    @property
    def unit(self) -> float:
        """The size a scale is held against: the feature's maximum, else the median ``||h||``, else 10.

        Of a norm-match the same as a share of ``||h||``, 1 where that is not known. Of a set 1: as it was made.
        """
        if self.rest and self.mode in ("add", "norm_match"):
            return 1.0
        unit = self.vector.max_activation or self.residual_norm or 10.0
        if self.mode != "norm_match":
            return unit
        return unit / self.residual_norm if self.residual_norm else 1.0

    def interventions(self, scale: float | None = None) -> tuple[Intervention, ...]:
        """What the model is steered with: one record, or one for each layer of a set."""
        if not self.rest:
            return (self.intervention(scale),)
        amount = self.scale if scale is None else scale
        parts = [replace(self, rest=(), id=f"{self.id}@{self.layer}")]
        parts += [replace(parts[0], id=f"{self.id}@{one.layer}", vector=one, layer=one.layer) for one in self.rest]
        return tuple(part.intervention(amount * (part.vector.norm if self.mode == "add" else 1.0)) for part in parts)

    def intervention(self, scale: float | None = None) -> Intervention:
        """What the model is steered with, at the row's scale or another, at the vector's own site.

        Raises :class:`LensError` for a mode that there is not.
        """
        made = self._acting(self.scale if scale is None else scale)
        return made if self.gate is None else replace(made, gate=self.gate)

    def _acting(self, amount: float) -> Intervention:
        """What the row does where it acts."""
        vector, layer, site = self.vector, self.layer, self.vector.site
        positions, name = self.positions or ALL, self.id
        match mode_of(self.mode).id:
            case "ablate_heads":
                return AblateHeads(id=name, layer=layer, positions=positions, heads=heads_of_vector(vector))
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
        return self.unit if self.vector.max_activation or self.rest else self.unit / 2

    @property
    def step(self) -> float:
        """One press of + or -: a round number of about a tenth of :attr:`unit`."""
        exact = abs(self.unit) / 10
        power = 10.0 ** floor(log10(exact))
        return power * min((1, 2, 5, 10), key=lambda digit: abs(digit * power - exact))

    def moved(self, steps: int) -> BenchRow:
        """The row with its scale moved by whole steps: so many the other way lead back to where it was."""
        return replace(self, scale=round(self.scale + steps * self.step, 6))


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


def at_amount(record: Intervention, amount: float) -> Intervention:
    """A record of :func:`amount_of` with another number. Raises :class:`LensError` for one that has none."""
    match record:
        case Add() | NormMatch():
            return replace(record, scale=amount)
        case SetProjection():
            return replace(record, value=amount)
        case CapProjection() if record.low is None or record.high is None:
            return replace(record, high=amount) if record.low is None else replace(record, low=amount)
    raise LensError(f"{record.id!r} has no number that could be another.", "Use a mode that has a scale.")


def acting_words(interventions: Iterable[Intervention]) -> list[str]:
    """What each of these does, as ``add 22 at layer 4 resid_post, generated``."""
    found = []
    for item in interventions:
        amount = amount_of(item)
        scale = "" if amount is None else f" {amount:g}"
        where = positions_name(item.positions) or item.positions.kind
        gate = "" if item.gate is None else f", {gate_text(item.gate)}"
        found.append(f"{item.mode}{scale} at layer {item.layer} {item.site}, {where}{gate}")
    return found
