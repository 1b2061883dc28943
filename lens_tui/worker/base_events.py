"""The events that the frame of the app reads: of any job, of models and SAEs.

All events are told of in :mod:`lens_tui.worker.events`, which has these too. They have a file of their own
because the app imports them before its first frame, and making a dataclass takes half a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lens_tui.records import ModelInfo, SAEInfo, SteeringVector, TokenWeight
    from lens_tui.records.fit import FitReport


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a job."""

    job: int


@dataclass(frozen=True, slots=True)
class JobStarted(Event):
    """The worker took the job up."""

    title: str


@dataclass(frozen=True, slots=True)
class JobDone(Event):
    """The last event of every job that did not fail. ``stopped``: the user stopped it."""

    stopped: bool = False


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """The last event of a job that failed: one sentence, what to do, and the traceback for the log."""

    message: str
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """How far a stage is. ``total`` 0 means unknown; ``unit`` is ``bytes``, ``tokens``, ``layers`` or ``""``."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something the user should know that does not end the job: one sentence, and what to do."""

    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ModelLoaded(Event):
    """A model is ready. ``saes`` are SAEs known to fit it (not yet loaded)."""

    info: ModelInfo
    saes: tuple[SAEInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelUnloaded(Event):
    """The model and its SAEs are gone and their memory is free."""


@dataclass(frozen=True, slots=True)
class SAELoaded(Event):
    """An SAE is ready to encode. Its ``info.id`` is what later jobs name it by."""

    info: SAEInfo


@dataclass(frozen=True, slots=True)
class SAEChecked(Event):
    """Whether the SAE of that id fits the model, measured on one short text."""

    sae: str
    report: FitReport


@dataclass(frozen=True, slots=True)
class Speed(Event):
    """Generated tokens a second, all arms together, and how many steps are done."""

    tokens_per_s: float
    steps: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class VectorMade(Event):
    """A steering vector was made. ``residual_norm`` is the median ``||h||`` at its site, for scale hints."""

    vector: SteeringVector
    residual_norm: float | None = None
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
