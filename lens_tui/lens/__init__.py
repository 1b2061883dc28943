"""The interpretability library: read and push on the residual stream of MLX models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BatchGeneration": ".batch",
    "CaptureResult": ".capture",
    "Comparison": ".compare",
    "Contrast": ".vectors_contrast",
    "FeatureProbe": ".dose",
    "Generation": ".compare",
    "LensModel": ".model",
    "Steering": ".handle",
    "attention_patterns": ".attention",
    "attribute_logits": ".attribution",
    "combine": ".vectors_arithmetic",
    "contrast": ".vectors_contrast",
    "controlled": ".measures",
    "controls": ".measures",
    "degeneration": ".measures_text",
    "delta_loss": ".measures",
    "delta_losses": ".measures",
    "divergence": ".measures",
    "dose_response": ".dose",
    "find_scale": ".search",
    "from_array": ".vectors",
    "from_token": ".vectors",
    "load_for": ".vectors",
    "logit_lens": ".layer_logits",
    "mean_difference": ".vectors",
    "perplexity": ".measures",
    "random_unit": ".vectors",
    "read_back": ".measures",
    "residual_norm": ".vectors",
    "without": ".vectors_arithmetic",
}

__all__ = [
    "BatchGeneration",
    "CaptureResult",
    "Comparison",
    "Contrast",
    "FeatureProbe",
    "Generation",
    "LensModel",
    "Steering",
    "attention_patterns",
    "attribute_logits",
    "combine",
    "contrast",
    "controlled",
    "controls",
    "degeneration",
    "delta_loss",
    "delta_losses",
    "divergence",
    "dose_response",
    "find_scale",
    "from_array",
    "from_token",
    "load_for",
    "logit_lens",
    "mean_difference",
    "perplexity",
    "random_unit",
    "read_back",
    "residual_norm",
    "without",
]

if TYPE_CHECKING:
    from .attention import attention_patterns
    from .attribution import attribute_logits
    from .batch import BatchGeneration
    from .capture import CaptureResult
    from .compare import Comparison, Generation
    from .dose import FeatureProbe, dose_response
    from .handle import Steering
    from .layer_logits import logit_lens
    from .measures import controlled, controls, delta_loss, delta_losses, divergence, perplexity, read_back
    from .measures_text import degeneration
    from .model import LensModel
    from .search import find_scale
    from .vectors import from_array, from_token, load_for, mean_difference, random_unit, residual_norm
    from .vectors_arithmetic import combine, without
    from .vectors_contrast import Contrast, contrast


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
