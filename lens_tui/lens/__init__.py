"""The interpretability library: read and push on the residual stream of MLX models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BatchGeneration": ".batch",
    "CaptureResult": ".capture",
    "Comparison": ".compare",
    "Generation": ".compare",
    "LensModel": ".model",
    "Steering": ".handle",
}

__all__ = ["BatchGeneration", "CaptureResult", "Comparison", "Generation", "LensModel", "Steering"]

if TYPE_CHECKING:
    from .batch import BatchGeneration
    from .capture import CaptureResult
    from .compare import Comparison, Generation
    from .handle import Steering
    from .model import LensModel


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
