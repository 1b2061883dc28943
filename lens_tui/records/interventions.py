"""Interventions: what is changed, where, by how much, on which positions.

These are plain frozen records. What each does to a residual stream is written
in ``lens_tui.lens.interventions``, one function a record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .vectors import SteeringVector

PositionKind = Literal["all", "prompt", "generated", "last", "not_bos", "indices", "slice", "role"]


@dataclass(frozen=True, slots=True)
class Positions:
    """Which token positions an intervention touches.

    Positions are absolute: 0 is the first token of the sequence (usually BOS),
    whatever chunks the prompt was prefilled in. ``prompt`` is every position of
    the prompt *except its last*, ``generated`` is the last prompt position and
    all after it: the last prompt token is the one whose output predicts the
    first generated token. ``indices`` holds absolute positions, ``start`` and
    ``stop`` bound a slice, ``role`` names a role of the chat template.
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
    """

    mode: ClassVar[str] = ""
    id: str
    layer: int
    site: str = "resid_post"
    positions: Positions = field(default=ALL)
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Intervention):
    """``h + scale * direction``: scale is absolute, in residual-stream units, on a unit direction."""

    mode: ClassVar[str] = "add"
    vector: SteeringVector
    scale: float


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
