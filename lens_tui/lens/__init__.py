"""The interpretability library: read and push on the residual stream of MLX models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BatchGeneration": ".decode.batch",
    "CaptureResult": ".hooks.capture",
    "Comparison": ".decode.compare",
    "Contrast": ".vectors",
    "FeatureProbe": ".measure.dose",
    "Generation": ".decode.compare",
    "LensModel": ".model",
    "Steering": ".hooks.steering",
    "attention_patterns": ".read.attention",
    "attribute_logits": ".read.attribution",
    "combine": ".vectors",
    "contrast": ".vectors",
    "controlled": ".measure.measures",
    "controls": ".measure.measures",
    "degeneration": ".measure.measures",
    "delta_loss": ".measure.measures",
    "delta_losses": ".measure.measures",
    "divergence": ".measure.measures",
    "dose_response": ".measure.dose",
    "find_scale": ".measure.search",
    "from_array": ".vectors",
    "from_token": ".vectors",
    "logit_lens": ".read.logit_lens",
    "mean_difference": ".vectors",
    "perplexity": ".measure.measures",
    "random_unit": ".vectors",
    "read_back": ".measure.measures",
    "residual_norm": ".vectors",
    "without": ".vectors",
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
    "logit_lens",
    "mean_difference",
    "perplexity",
    "random_unit",
    "read_back",
    "residual_norm",
    "without",
]

if TYPE_CHECKING:
    from .decode.batch import BatchGeneration
    from .decode.compare import Comparison, Generation
    from .hooks.capture import CaptureResult
    from .hooks.steering import Steering
    from .measure.dose import FeatureProbe, dose_response
    from .measure.measures import (
        controlled,
        controls,
        degeneration,
        delta_loss,
        delta_losses,
        divergence,
        perplexity,
        read_back,
    )
    from .measure.search import find_scale
    from .model import LensModel
    from .read.attention import attention_patterns
    from .read.attribution import attribute_logits
    from .read.logit_lens import logit_lens
    from .vectors import (
        Contrast,
        combine,
        contrast,
        from_array,
        from_token,
        mean_difference,
        random_unit,
        residual_norm,
        without,
    )


def _with_few_files() -> None:
    """Import mlx-lm where fewer than 4096 files may be open: it asks for that many on import, and fails if refused."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= 4096:
        return
    ask = resource.setrlimit

    def ask_for_what_there_is(kind: int, limits: tuple[int, int]) -> None:
        ask(kind, (min(limits[0], most), min(limits[1], most)))

    resource.setrlimit = ask_for_what_there_is
    try:
        import_module("mlx_lm.utils")
    finally:
        resource.setrlimit = ask


_with_few_files()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
