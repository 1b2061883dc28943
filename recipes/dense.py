"""A model with its quantised weights written out: the same numbers, by plain matrix products on every back end."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from lens_tui.lens import LensModel
from lens_tui.lens.loading import load_model


def open_dense(name: str) -> LensModel:
    """The model under its own name, in the type that its scales have (float32 for the bundled one)."""
    from mlx_lm.utils import dequantize_model

    loaded: Any = load_model(name)
    model, tokenizer, path = loaded
    model = dequantize_model(model)
    mx.eval(model.parameters())
    return LensModel.from_model(model, tokenizer, name=name, path=path)
