"""What reading, measuring and generating need of a model. :class:`~lens_tui.lens.model.LensModel` is one.

The functions of this package take a ``Core`` and never import the class itself,
which stands above all of them.
"""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

from lens_tui.records import ModelInfo

from .hooks.registry import Registry
from .tokens import Tokens


class Core(Protocol):
    """A loaded model: its hooks, its tokens and the facts about it."""

    tokens: Tokens
    info: ModelInfo

    @property
    def registry(self) -> Registry:
        """What is hooked, and how."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""

    def batch(self, tokens: Any) -> mx.array:
        """Token ids as an array (batch, tokens), each one inside the vocabulary."""

    def sites(self, layer: int) -> tuple[str, ...]:
        """The sites that a layer has."""
