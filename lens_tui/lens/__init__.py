"""The interpretability library: read and push on the residual stream of MLX models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lens_tui.lazy import lazy

if TYPE_CHECKING:
    from .decode.batch import BatchGeneration as BatchGeneration
    from .decode.compare import Comparison as Comparison
    from .decode.compare import Generation as Generation
    from .hooks.registry import CaptureResult as CaptureResult
    from .hooks.steering import Steering as Steering
    from .measure.dose import FeatureProbe as FeatureProbe
    from .measure.dose import dose_response as dose_response
    from .measure.measures import controlled as controlled
    from .measure.measures import controls as controls
    from .measure.measures import degeneration as degeneration
    from .measure.measures import delta_loss as delta_loss
    from .measure.measures import delta_losses as delta_losses
    from .measure.measures import divergence as divergence
    from .measure.measures import perplexity as perplexity
    from .measure.measures import read_back as read_back
    from .measure.search import find_scale as find_scale
    from .model import LensModel as LensModel
    from .read.attention import attention_patterns as attention_patterns
    from .read.logits import attribute_logits as attribute_logits
    from .read.logits import logit_lens as logit_lens
    from .vectors import Contrast as Contrast
    from .vectors import combine as combine
    from .vectors import contrast as contrast
    from .vectors import from_array as from_array
    from .vectors import from_token as from_token
    from .vectors import mean_difference as mean_difference
    from .vectors import random_unit as random_unit
    from .vectors import residual_norm as residual_norm
    from .vectors import without as without
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            ".decode.batch": "BatchGeneration",
            ".decode.compare": "Comparison Generation",
            ".hooks.registry": "CaptureResult",
            ".hooks.steering": "Steering",
            ".measure.dose": "FeatureProbe dose_response",
            ".measure.measures": (
                "controlled controls degeneration delta_loss delta_losses divergence perplexity read_back"
            ),
            ".measure.search": "find_scale",
            ".model": "LensModel",
            ".read.attention": "attention_patterns",
            ".read.logits": "attribute_logits logit_lens",
            ".vectors": (
                "Contrast combine contrast from_array from_token mean_difference random_unit residual_norm without"
            ),
        },
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
