"""What each job does, and what the jobs of one worker share: the model, its SAEs, the text last encoded.

Imported on the MLX thread only; a handler's file, and MLX with it, when one of its jobs first runs.

A handler is ``handler(control, job, context)`` and gives events. A new job is a
record in ``jobs.py``, a function here, and one line in ``TABLE``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.run_store import RunStore
from lens_tui.records.store import Store

from .. import jobs
from ..events import Event
from ..jobs import ReadNeighbours
from ..thread import Control

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.info import Dequantize
    from lens_tui.sae.load_sae import SAE
    from lens_tui.tasks.models import ModelEntry

__all__ = ["TABLE", "Context", "Handlers", "ModelOrigin", "Reading"]


@dataclass(slots=True)
class Reading:
    """The text last encoded: its token ids, and its activations by (layer, site), each of shape (tokens, width)."""

    token_ids: tuple[int, ...]
    residuals: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Where the loaded model was read from and how its weights are held, to read it once more."""

    entry: ModelEntry
    folder: Path
    dequantize: Dequantize


@dataclass(slots=True)
class WrittenActivations:
    """What a run wrote as its site had it: the job, layer and site, and (tokens, width) for each arm."""

    job: int
    place: tuple[int, str]
    arms: dict[int, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Context:
    """Held on the MLX thread alone."""

    model: LensModel | None = None
    origin: ModelOrigin | None = None
    saes: dict[str, SAE] = field(default_factory=dict)
    known: dict[str, SAEInfo] = field(default_factory=dict)
    reading: Reading | None = None
    written: WrittenActivations | None = None
    norms: dict[tuple[int, str], float] = field(default_factory=dict)
    graph: Any = None
    graph_kept: int = 0
    transcoders: tuple[str, Any] | None = None
    history: Path | None = None
    littered: bool = False
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
        if self._runs is None:
            opened = Store(self.history, patience)
            try:
                self._runs = RunStore(opened)
            except LensError:
                opened.close()
                raise
        self._runs.store.wait(patience)
        return self._runs

    def forget(self) -> None:
        """Drop everything; memory comes back when Python and MLX see fit."""
        gc.unfreeze()  # what a load took out of the collections
        self.model = self.origin = None
        self.graph = self.transcoders = None
        self.saes.clear()
        self.known.clear()
        self.norms.clear()
        self.reading = self.written = None
        if self._runs is not None:
            self._runs.store.close()
            self._runs = None

    def free(self) -> None:
        """Drop the model, its SAEs and what was read with them, and give their memory back now."""
        self.set_aside()
        self.forget()

    def set_aside(self) -> ModelOrigin | None:
        """Give the model's memory back now, and say where it can be read again; what is known of it stays."""
        import mlx.core as mx

        model, origin = self.model, self.origin
        self.model = self.origin = None
        self.graph = self.transcoders = None
        if model is not None:
            model.close()
            del model
            gc.unfreeze()
            gc.collect()
        mx.clear_cache()
        return origin


Handler = Callable[[Control, Any, Context], Iterable[Event]]

TABLE: dict[type[jobs.Job], str] = {
    jobs.LoadModel: "load_jobs:load_model",
    jobs.UnloadModel: "load_jobs:unload_model",
    jobs.LoadSAE: "opening_jobs:load_sae",
    jobs.Compare: "compare_jobs:compare",
    jobs.ComparePrompts: "compare_jobs:compare_set",
    jobs.Encode: "reading_jobs:encode",
    jobs.ReadFeature: "reading_jobs:read_feature",
    ReadNeighbours: "reading_jobs:read_neighbours",
    jobs.ReadLens: "reading_jobs:read_lens",
    jobs.ReadParts: "reading_jobs:read_parts",
    jobs.ReadPattern: "reading_jobs:read_pattern",
    jobs.Patch: "cause_jobs:patch",
    jobs.VectorFromPatch: "cause_jobs:from_patch",
    jobs.MakeGraph: "cause_jobs:make_graph",
    jobs.KeepGraph: "cause_jobs:change",
    jobs.PruneGraph: "cause_jobs:prune",
    jobs.ReadGraph: "cause_jobs:read",
    jobs.WriteGraph: "cause_jobs:write",
    jobs.CheckNode: "cause_jobs:check",
    jobs.VectorFromNode: "cause_jobs:vector",
    jobs.SetLabel: "reading_jobs:set_label",
    jobs.ReadWritten: "reading_jobs:read_written",
    jobs.ReadPrompt: "compare_jobs:read_prompt",
    jobs.ContrastTexts: "reading_jobs:contrast",
    jobs.ExportFeatures: "reading_jobs:export",
    jobs.FindFeatures: "reading_jobs:find_features",
    jobs.VectorFromFeature: "reading_jobs:from_feature",
    jobs.VectorFromPrompts: "vector_jobs:from_prompts",
    jobs.TrainProbes: "vector_jobs:train_probes",
    jobs.VectorFromFile: "vector_jobs:from_file",
    jobs.VectorFromToken: "vector_jobs:from_token",
    jobs.VectorFromVectors: "vector_jobs:from_vectors",
    jobs.VectorGiven: "vector_jobs:given",
    jobs.BareVectors: "opening_jobs:bare",
    jobs.RandomVector: "vector_jobs:random_vector",
    jobs.MeasureDose: "vector_jobs:measure_dose",
    jobs.FindScale: "vector_jobs:find_scale",
    jobs.IndexText: "long_jobs:index_text",
    jobs.TrainSAE: "long_jobs:train",
}


class Handlers:
    """The worker's :class:`~lens_tui.worker.thread.Runner`: finds the handler of a job and keeps what jobs share."""

    def __init__(self, context: Context | None = None) -> None:
        self.context = context or Context()

    def __call__(self, control: Control) -> Iterator[Event]:
        """The events of ``control.job``."""
        return iter(self._handler(type(control.job))(control, control.job, self.context))

    def close(self) -> None:
        """Let go of the model and the SAEs. The process is about to end: nothing is collected or given back."""
        self.context.forget()

    def _handler(self, kind: type[jobs.Job]) -> Handler:
        module, _, name = TABLE[kind].partition(":")
        handler: Handler = getattr(import_module(f".{module}", __name__), name)
        return handler
