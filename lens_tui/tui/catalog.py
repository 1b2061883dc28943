"""What could be loaded, as the Load screen sees it; by default what is on this machine's disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lens_tui.records.info import Dequantize
    from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry


class Catalog(Protocol):
    """Lists and checks; each call may take a while and is made off the screen's thread."""

    def models(self) -> Sequence[ModelEntry]:
        """Models at hand."""

    def saes(self, model: str) -> Sequence[SAEEntry]:
        """SAEs at hand for a model, by its id."""

    def check(self, typed: str) -> ModelEntry:
        """What was typed, as a model; raises ``LensError`` if it is none."""

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        """What it would need."""


class DiskCatalog:
    """The bundled demo, the Hugging Face cache and recent folders; ``dequantize`` is how models will be loaded."""

    def __init__(self, dequantize: Dequantize = "auto") -> None:
        self._dequantize = dequantize

    def models(self) -> Sequence[ModelEntry]:
        """Models on this disk, and in the folders that the settings name."""
        from lens_tui.tasks.models import list_models

        from .preferences import preferences

        return list_models(folders=preferences().folders)

    def saes(self, model: str) -> Sequence[SAEEntry]:
        """SAEs on this disk that are meant for the model."""
        from lens_tui.tasks.models import list_saes

        return list_saes(model)

    def check(self, typed: str) -> ModelEntry:
        """A folder, a hub id or ``demo``."""
        from lens_tui.tasks.models import check_model

        return check_model(typed)

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        """A comparison of four arms over a thousand tokens with four layers captured."""
        from lens_tui.tasks.models import estimate_memory

        return estimate_memory(entry, tokens=1024, arms=4, captured_layers=4, dequantize=self._dequantize)
