"""What each job does. Imported on the MLX thread only; each handler's own imports happen when it first runs.

A handler is ``handler(control, job, context)`` and gives events. A new job is a
record in ``jobs.py``, a function here, and one line in ``TABLE``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from .. import jobs
from ..events import Event
from ..jobs import ReadNeighbours
from ..protocol import Control
from .context import Context

__all__ = ["TABLE", "Context", "Handlers"]

Handler = Callable[[Control, Any, Context], Iterable[Event]]

TABLE: dict[type[jobs.Job], str] = {
    jobs.LoadModel: "load_jobs:load_model",
    jobs.UnloadModel: "load_jobs:unload_model",
    jobs.LoadSAE: "load_jobs:load_sae",
    jobs.Compare: "compare_jobs:compare",
    jobs.Encode: "feature_jobs:encode",
    jobs.ReadFeature: "feature_jobs:read_feature",
    ReadNeighbours: "feature_jobs:read_neighbours",
    jobs.ReadLens: "feature_jobs:read_lens",
    jobs.SetLabel: "feature_jobs:set_label",
    jobs.FindFeatures: "feature_jobs:find_features",
    jobs.VectorFromFeature: "feature_jobs:from_feature",
    jobs.VectorFromPrompts: "vector_jobs:from_prompts",
    jobs.VectorFromFile: "vector_jobs:from_file",
    jobs.VectorFromToken: "vector_jobs:from_token",
    jobs.VectorFromVectors: "vector_jobs:from_vectors",
    jobs.VectorGiven: "vector_jobs:given",
    jobs.RandomVector: "vector_jobs:random_vector",
    jobs.MeasureDose: "vector_jobs:measure_dose",
    jobs.FindScale: "vector_jobs:find_scale",
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
