"""Look inside language models and push on them.

The names below are the public face of the library. Each is imported the first
time it is used, so ``import lens_tui`` costs nothing and pulls in neither MLX
nor Textual.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "LensModel": "lens_tui.lens",
    "CaptureResult": "lens_tui.lens",
    "JumpReLUSAE": "lens_tui.sae",
    "load_sae": "lens_tui.sae",
    "Arm": "lens_tui.records",
    "SteeringVector": "lens_tui.records",
    "Sampling": "lens_tui.records",
    "LensError": "lens_tui.records",
    "load_vectors": "lens_tui.records.vector_formats",
    "save_vectors": "lens_tui.records.vector_formats",
}

__all__ = [
    "Arm",
    "CaptureResult",
    "JumpReLUSAE",
    "LensError",
    "LensModel",
    "Sampling",
    "SteeringVector",
    "__version__",
    "load_sae",
    "load_vectors",
    "save_vectors",
]

if TYPE_CHECKING:
    from lens_tui.lens import CaptureResult, LensModel
    from lens_tui.records import Arm, LensError, Sampling, SteeringVector
    from lens_tui.records.vector_formats import load_vectors, save_vectors
    from lens_tui.sae import JumpReLUSAE, load_sae


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
