"""Which job belongs to whom: events of a job that was replaced or stopped are dropped here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lens_tui.worker.events import Event, JobDone, JobFailed, JobStarted, Progress, Speed, Stopping

from .format import duration, size

Handler = Callable[[Event], object]
"""Gets every event of its job. Returning True for a ``JobFailed`` says that the screen has shown it."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A job that still counts: its id, its slot and who hears of it."""

    id: int
    slot: str
    handler: Handler


class JobBook:
    """The jobs that count, at most one in each slot. Pure: it calls nothing but handlers."""

    def __init__(self) -> None:
        self._jobs: dict[int, Owned] = {}

    def open(self, job_id: int, slot: str, handler: Handler) -> int | None:
        """Enter a job; returns the id of the job it replaces in its slot, if one is still there."""
        old = self.in_slot(slot)
        if old is not None:
            del self._jobs[old]
        self._jobs[job_id] = Owned(job_id, slot, handler)
        return old

    def drop(self, slot: str) -> int | None:
        """Forget the job in a slot, so that its events are dropped; returns its id."""
        old = self.in_slot(slot)
        if old is not None:
            del self._jobs[old]
        return old

    def in_slot(self, slot: str) -> int | None:
        """The id of the job in a slot, if there is one."""
        return next((job.id for job in self._jobs.values() if job.slot == slot), None)

    def take(self, event: Event) -> Owned | None:
        """Who hears of an event; ``None`` if its job no longer counts. A job's last event closes it."""
        owned = self._jobs.get(event.job)
        if owned is not None and isinstance(event, JobDone | JobFailed):
            del self._jobs[event.job]
        return owned

    @property
    def busy(self) -> bool:
        """Whether any job is still going."""
        return bool(self._jobs)


IDLE, BUSY, FAILED = "idle", "busy", "failed"

TITLES = {
    "LoadModel": "loading",
    "UnloadModel": "unloading",
    "LoadSAE": "loading the SAE",
    "Compare": "comparing",
    "Encode": "reading features",
    "ReadFeature": "reading a feature",
    "ReadNeighbours": "looking for neighbours",
    "ReadLens": "reading the layers",
    "VectorFromFeature": "making the vector",
    "VectorFromPrompts": "making the vector",
    "VectorFromFile": "reading the vector",
    "VectorFromToken": "making the vector",
    "VectorFromVectors": "making the vector",
    "VectorGiven": "making the vector",
    "RandomVector": "making the vector",
    "MeasureDose": "measuring the dose",
    "FindScale": "searching a scale",
}
"""What a job is called while it runs, by the name of its record."""


@dataclass(frozen=True, slots=True)
class Activity:
    """The state of the work.

    ``since`` is when the stage began and ``base`` what was done by then, so that
    speed and time left speak of this stage alone. ``note`` is what an idle app
    has to say: what was done last, or the error. ``stopping``: the user's stop was heard.
    """

    state: str = IDLE
    job: int = 0
    title: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    since: float = 0.0
    now: float = 0.0
    base: int = 0
    tokens_per_s: float | None = None
    note: str = ""
    stopping: bool = False

    @property
    def fraction(self) -> float | None:
        """How much is done, 0 to 1, ``None`` when nobody knows."""
        return self.done / self.total if self.total > 0 else None

    @property
    def rate(self) -> float | None:
        """Units a second over this stage, ``None`` in its first half second."""
        span = self.now - self.since
        return (self.done - self.base) / span if span >= 0.5 and self.done > self.base else None

    def facts(self) -> str:
        """Amounts, speed and time left, as much of it as is known: ``412 / 731 MB · 38 MB/s · 8 s left``."""
        parts = [self._amount()] if self.total else []
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.0f} tok/s")
        elif self.rate and self.unit == "bytes":
            parts.append(f"{size(self.rate)}/s")
        elif self.rate and self.unit == "tokens":
            parts.append(f"{self.rate:.0f} tok/s")
        if self.rate and self.total > self.done:
            parts.append(f"{duration((self.total - self.done) / self.rate)} left")
        return " · ".join(parts)

    def _amount(self) -> str:
        if self.unit == "bytes":
            return f"{size(self.done)} of {size(self.total)}"
        short = {"tokens": " tok"}.get(self.unit, f" {self.unit}" if self.unit else "")
        return f"{self.done}/{self.total}{short}"


def advance(activity: Activity, event: Event, now: float) -> Activity:
    """The activity after an event of a job that still counts."""
    match event:
        case JobStarted(job, title):
            return Activity(BUSY, job, TITLES.get(title, title), since=now, now=now)
        case Progress(job, stage, done, total, unit):
            if activity.job != job or activity.stage != stage or activity.state != BUSY:
                title = activity.title if activity.job == job else stage
                stopping = activity.stopping and activity.job == job
                return Activity(BUSY, job, title, stage, done, total, unit, now, now, done, stopping=stopping)
            return replace(activity, done=done, total=total, unit=unit, now=now)
        case Speed(job, rate, steps, most):
            fresh = activity.unit != "tokens"
            start = replace(activity, since=now, base=steps) if fresh else activity
            return replace(
                start, state=BUSY, job=job, done=steps, total=most, unit="tokens", tokens_per_s=rate, now=now
            )
        case Stopping(job) if activity.state == BUSY and activity.job == job:
            return replace(activity, stopping=True)
        case JobFailed(job, message, hint):
            return Activity(FAILED, job, note=f"{message} {hint}".strip())
        case JobDone(job, stopped) if job == activity.job or activity.state != BUSY:
            return Activity(IDLE, job, note=_closing(activity, stopped, now) if job == activity.job else activity.note)
    return activity


def _closing(activity: Activity, stopped: bool, now: float) -> str:
    spent = duration(now - activity.since) if now - activity.since >= 0.5 else ""
    if stopped:
        return f"{activity.title or 'job'}: stopped"
    if activity.unit == "tokens" and activity.tokens_per_s:
        return f"{activity.done} tokens each · {activity.tokens_per_s:.0f} tok/s"
    return f"{activity.title}: done{f' in {spent}' if spent else ''}" if activity.title else ""
