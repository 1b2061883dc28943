"""Plain data and the disk: records, settings, paths, sanitising. No MLX, no Textual."""

from .errors import LensError
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
from .run import ArmEnd, Candidate, Dose, Token, TokenWeight
from .sampling import Sampling
from .vectors import FloatArray, Origin, SteeringVector

__all__ = [
    "ALL",
    "Ablate",
    "Add",
    "Arm",
    "ArmEnd",
    "Candidate",
    "CapProjection",
    "ClampFeature",
    "Dose",
    "FloatArray",
    "Intervention",
    "LensError",
    "ModelInfo",
    "NormMatch",
    "Origin",
    "Positions",
    "ProjectOut",
    "SAEInfo",
    "Sampling",
    "SetProjection",
    "SteeringVector",
    "Token",
    "TokenWeight",
]
