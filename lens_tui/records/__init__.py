"""Plain data and the disk: records, settings, paths, sanitising. No MLX, no Textual.

The names below are imported when they are first used: an error message needs no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ALL": "interventions",
    "Ablate": "interventions",
    "Add": "interventions",
    "Arm": "interventions",
    "ArmEnd": "run",
    "BatchRow": "requests",
    "Candidate": "run",
    "CapProjection": "interventions",
    "ClampFeature": "interventions",
    "Dose": "run",
    "Echo": "run",
    "FloatArray": "vectors",
    "Intervention": "interventions",
    "LensError": "errors",
    "LensWarning": "errors",
    "ModelInfo": "info",
    "NormMatch": "interventions",
    "NotFinite": "errors",
    "Origin": "vectors",
    "Positions": "interventions",
    "ProjectOut": "interventions",
    "Request": "requests",
    "SAEInfo": "info",
    "Sampling": "run",
    "SetProjection": "interventions",
    "Steered": "run",
    "SteeringVector": "vectors",
    "Token": "run",
    "TokenWeight": "run",
}

if TYPE_CHECKING:
    from .errors import LensError, LensWarning, NotFinite
    from .info import ModelInfo, SAEInfo
    from .interventions import (
        ALL,
        Ablate,
        Add,
        Arm,
        CapProjection,
        ClampFeature,
        Intervention,
        NormMatch,
        Positions,
        ProjectOut,
        SetProjection,
    )
    from .requests import BatchRow, Request
    from .run import ArmEnd, Candidate, Dose, Echo, Sampling, Steered, Token, TokenWeight
    from .vectors import FloatArray, Origin, SteeringVector

__all__ = [
    "ALL",
    "Ablate",
    "Add",
    "Arm",
    "ArmEnd",
    "BatchRow",
    "Candidate",
    "CapProjection",
    "ClampFeature",
    "Dose",
    "Echo",
    "FloatArray",
    "Intervention",
    "LensError",
    "LensWarning",
    "ModelInfo",
    "NormMatch",
    "NotFinite",
    "Origin",
    "Positions",
    "ProjectOut",
    "Request",
    "SAEInfo",
    "Sampling",
    "SetProjection",
    "Steered",
    "SteeringVector",
    "Token",
    "TokenWeight",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
