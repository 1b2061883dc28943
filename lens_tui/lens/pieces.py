"""How many tokens go through the model at once where a stop should not have to be waited for."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui import blas

from .architecture.taps import named
from .hooks.registry import Registry

MOST = 2048
"""Tokens of a prompt in one piece, at most: mlx-lm's own number."""
FEWEST = 16
SPEED = {"cpu": 2e9, "openblas": 2e10, "metal": 2e12, "gpu": 2e13}
"""Floating-point operations in a piece: well under a second's on a small machine of each kind."""


def piece_of(registry: Registry, n_rows: int, before: int = 0) -> int:
    """Tokens a row of one piece of a prompt, so that a stop between two pieces does not have to be waited for.

    By the model's size and the kind of device alone, never by a clock: the same prompt is cut in the same places each
    time, and rounds the same.

    Args:
        registry: Of the model.
        n_rows: Rows of the piece.
        before: Tokens of each row that the attention of the piece looks back at.
    """
    attention = 4 * registry.decoder.n_layers * registry.decoder.d_model * before
    most = SPEED[_kind(registry)] / max(1, (2 * work_of(registry) + attention) * n_rows)
    return min(MOST, max(FEWEST, 1 << int(most).bit_length() - 1)) if most >= 1 else FEWEST


def _kind(registry: Registry) -> str:
    if mx.default_device().type != mx.DeviceType.cpu:
        return "metal" if mx.metal.is_available() else "gpu"
    weights = [module["weight"] for _, module in named(registry.decoder.layers[0]) if "weight" in module]
    plain = all(weight.dtype == mx.float32 for weight in weights)
    return "openblas" if plain and blas.state().fast else "cpu"


def work_of(registry: Registry) -> int:
    """About how many weights of the blocks a token is multiplied with; of a mixture those of eight experts."""
    if registry.weights_per_token is None:
        blocks = registry.decoder.layers
        registry.weights_per_token = sum(_weights(module) for block in blocks for _, module in named(block))
    return registry.weights_per_token


def _weights(module: Module) -> int:
    weight = module.get("weight")
    if not isinstance(weight, mx.array):
        return 0
    packed = 32 // int(module.bits) if "scales" in module and weight.dtype == mx.uint32 else 1
    experts = weight.shape[0] if weight.ndim == 3 else 1
    return weight.size * packed * min(experts, 8) // experts
