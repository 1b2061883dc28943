"""What is known of a loaded model or SAE, as plain data a screen can show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model: who it is and its shape. Sizes are bytes."""

    name: str
    path: str
    architecture: str
    n_layers: int
    d_model: int
    vocab_size: int
    n_parameters: int
    dtype: str
    quantization: str
    nbytes: int
    has_chat_template: bool
    bos_token_id: int | None
    device: str


@dataclass(frozen=True, slots=True)
class SAEInfo:
    """A loaded SAE: what it reads and how wide it is.

    ``l0`` and ``fvu`` are what its maker declares, ``None`` where nothing is said.
    """

    id: str
    name: str
    path: str
    architecture: str
    site: str
    layer: int
    d_model: int
    width: int
    model_name: str
    l0: float | None = None
    fvu: float | None = None
