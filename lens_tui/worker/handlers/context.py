"""What the jobs of one worker share: the model, its SAEs, the text last encoded."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SAEInfo

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.sae import SAE


@dataclass(slots=True)
class Reading:
    """The text last encoded: its token ids, and its activations by (layer, site), each of shape (tokens, width)."""

    token_ids: tuple[int, ...]
    residuals: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(slots=True)
class Context:
    """Held on the MLX thread alone."""

    model: LensModel | None = None
    saes: dict[str, SAE] = field(default_factory=dict)
    known: dict[str, SAEInfo] = field(default_factory=dict)
    reading: Reading | None = None
    norms: dict[tuple[int, str], float] = field(default_factory=dict)

    def need_model(self) -> LensModel:
        """The model, or a :class:`LensError` that says none is loaded."""
        if self.model is None:
            raise LensError("No model is loaded.", "Load one first.")
        return self.model

    def close(self) -> None:
        """Drop everything and give its memory back."""
        import mlx.core as mx

        model, self.model = self.model, None
        self.saes.clear()
        self.known.clear()
        self.norms.clear()
        self.reading = None
        if model is not None:
            model.close()
            del model
        gc.collect()  # a model and its layers refer to each other
        mx.clear_cache()
