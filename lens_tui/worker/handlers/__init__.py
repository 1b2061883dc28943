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
    jobs.LoadModel: "load:load_model",
    jobs.UnloadModel: "load:unload_model",
    jobs.LoadSAE: "load:load_sae",
    jobs.Compare: "compare:compare",
    jobs.Encode: "features:encode",
    jobs.ReadFeature: "features:read_feature",
    ReadNeighbours: "features:read_neighbours",
    jobs.ReadLens: "features:read_lens",
    jobs.SetLabel: "features:set_label",
    jobs.FindFeatures: "features:find_features",
    jobs.VectorFromFeature: "features:from_feature",
    jobs.VectorFromPrompts: "vectors:from_prompts",
    jobs.VectorFromFile: "vectors:from_file",
    jobs.VectorFromToken: "vectors:from_token",
    jobs.VectorFromVectors: "vectors:from_vectors",
    jobs.VectorGiven: "vectors:given",
    jobs.RandomVector: "vectors:random_vector",
    jobs.MeasureDose: "vectors:measure_dose",
    jobs.FindScale: "vectors:find_scale",
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
