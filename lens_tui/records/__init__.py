"""Plain data and the disk: records, settings, paths, sanitising. No MLX, no Textual."""

from .errors import LensError
from .info import ModelInfo, SAEInfo
from .interventions import ALL, Add, Arm, Intervention, Positions
from .sampling import Sampling
from .vectors import FloatArray, Origin, SteeringVector

__all__ = [
    "ALL",
    "Add",
    "Arm",
    "FloatArray",
    "Intervention",
    "LensError",
    "ModelInfo",
    "Origin",
    "Positions",
    "SAEInfo",
    "Sampling",
    "SteeringVector",
]
