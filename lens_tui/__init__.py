"""Look inside language models and push on them.

The names below are the public face of the library. Each is imported the first
time it is used, so ``import lens_tui`` costs nothing and pulls in neither MLX
nor Textual.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lens_tui import blas

__version__ = "0.1.0"

_HOMES = {
    "LensModel": "lens_tui.lens",
    "CaptureResult": "lens_tui.lens",
    "JumpReLUSAE": "lens_tui.sae",
    "load_sae": "lens_tui.sae",
    "FeatureIndex": "lens_tui.sae.index",
    "TrainConfig": "lens_tui.records.training",
    "train_sae": "lens_tui.tasks.train",
    "index_text": "lens_tui.tasks.index",
    "merge_index": "lens_tui.tasks.index",
    "check_sae": "lens_tui.tasks.train",
    "Arm": "lens_tui.records",
    "Request": "lens_tui.records",
    "SteeringVector": "lens_tui.records",
    "Sampling": "lens_tui.records",
    "LensError": "lens_tui.records",
    "load_vectors": "lens_tui.records.vector_formats",
    "save_vectors": "lens_tui.records.vector_formats",
}

__all__ = [
    "Arm",
    "CaptureResult",
    "FeatureIndex",
    "JumpReLUSAE",
    "LensError",
    "LensModel",
    "Request",
    "Sampling",
    "SteeringVector",
    "TrainConfig",
    "__version__",
    "check_sae",
    "index_text",
    "load_sae",
    "load_vectors",
    "merge_index",
    "save_vectors",
    "train_sae",
]

if TYPE_CHECKING:
    from lens_tui.lens import CaptureResult, LensModel
    from lens_tui.records import Arm, LensError, Request, Sampling, SteeringVector
    from lens_tui.records.training import TrainConfig
    from lens_tui.records.vector_formats import load_vectors, save_vectors
    from lens_tui.sae import JumpReLUSAE, load_sae
    from lens_tui.sae.index import FeatureIndex
    from lens_tui.tasks.index import index_text, merge_index
    from lens_tui.tasks.train import check_sae, train_sae


blas.watch()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
