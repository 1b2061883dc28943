"""Interventions: what is changed, where, by how much, on which positions.

These are plain frozen records. What each does to a residual stream is written
in ``lens_tui.lens.interventions``, one function a record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .vectors import FloatArray, SteeringVector

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
    """

    kind: PositionKind = "all"
    indices: tuple[int, ...] = ()
    start: int = 0
    stop: int | None = None
    role: str = ""


ALL = Positions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """What every intervention has: an id, a place and positions.

    ``layer`` is stored counted from 0, never negative, once it has been through
    a model. ``enabled`` lets a screen keep an intervention that is switched off.
    ``precision`` ``"model"`` keeps the residual in the model's own dtype: what is
    delivered is what survives its rounding. ``"float32"`` keeps the stream in
    float32 from this site on, for every row of the batch, at twice the memory.
    """

    mode: ClassVar[str] = ""
    id: str
    layer: int
    site: str = "resid_post"
    positions: Positions = field(default=ALL)
    enabled: bool = True
    precision: Precision = "model"


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

    mode: ClassVar[str] = "set_projection"
    vector: SteeringVector
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapProjection(Intervention):
    """The projection is clipped to ``[low, high]``; a bound that is ``None`` does not bind. What is inside stays."""

    mode: ClassVar[str] = "cap_projection"
    vector: SteeringVector
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampFeature(Intervention):
    """A feature of an SAE is given the activation ``value``; the SAE's error term is kept.

    ``h + (value - a) d``, where ``a`` is the activation that the SAE reads at the
    token and ``d`` what its decoder adds for one unit: all that the SAE does not
    explain passes through unchanged. ``sae`` names an SAE that the model has been
    given (``LensModel.attach_sae``).
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


@dataclass(frozen=True, slots=True)
class Arm:
    """One column of a comparison: a name and the interventions applied in it, in order.

    The baseline is the arm with no interventions.
    """

    name: str
    interventions: tuple[Intervention, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is changed in this arm."""
        return not any(item.enabled for item in self.interventions)
