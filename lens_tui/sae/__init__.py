"""Sparse autoencoders: architectures, file formats, reading features.

The names below are imported when they are first used, so that reading a feature index needs no MLX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "GatedSAE": "load",
    "GroupMaxSAE": "load",
    "JumpReLUSAE": "load",
    "Reconstruction": "base",
    "SAE": "load",
    "StandardSAE": "load",
    "TopKSAE": "load",
    "TrainConfig": "training",
    "check_fit": "fit",
    "check_fit_with": "fit",
    "load_sae": "load",
    "sae_info": "load",
    "splice": "splicing",
    "spliced": "splicing",
    "train": "training",
}

if TYPE_CHECKING:
    from .base import Reconstruction
    from .fit import check_fit, check_fit_with
    from .load import SAE, GatedSAE, GroupMaxSAE, JumpReLUSAE, StandardSAE, TopKSAE, load_sae, sae_info
    from .splicing import splice, spliced
    from .training import TrainConfig, train

__all__ = [
    "SAE",
    "GatedSAE",
    "GroupMaxSAE",
    "JumpReLUSAE",
    "Reconstruction",
    "StandardSAE",
    "TopKSAE",
    "TrainConfig",
    "check_fit",
    "check_fit_with",
    "load_sae",
    "sae_info",
    "splice",
    "spliced",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
