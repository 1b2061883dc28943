"""What the jobs of one worker share: the model, its SAEs, the text last encoded."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SAEInfo

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.records.runs import RunStore
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
    history: Path | None = None
    _runs: RunStore | None = None

    def need_model(self) -> LensModel:
        """The model, or a :class:`LensError` that says none is loaded."""
        if self.model is None:
            raise LensError("No model is loaded.", "Load one first.")
        return self.model

    def runs(self, patience: float) -> RunStore:
        """The history, opened when first asked for; waits ``patience`` seconds for another process, now and after.

        Raises :class:`LensError`.
        """
        from lens_tui.records.runs import RunStore
        from lens_tui.records.store import Store

        if self._runs is None:
            store = Store(self.history, patience)
            try:
                self._runs = RunStore(store)
            except LensError:
                store.close()
                raise
        self._runs.store.wait(patience)
        return self._runs

    def forget(self) -> None:
        """Drop everything; memory comes back when Python and MLX see fit."""
        self.model = None
        self.saes.clear()
        self.known.clear()
        self.norms.clear()
        self.reading = None
        if self._runs is not None:
            self._runs.store.close()
            self._runs = None

    def free(self) -> None:
        """Drop the model, its SAEs and what was read with them, and give their memory back now."""
        import mlx.core as mx

        model = self.model
        self.forget()
        if model is not None:
            model.close()
            del model
        gc.collect()  # a model and its layers refer to each other
        mx.clear_cache()
