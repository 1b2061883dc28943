"""What widgets and screens may ask of the app, so that they need not know the app itself; and whose a job is.

Events of a job that was replaced or stopped are dropped by the :class:`JobBook`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

from textual import events
from textual.app import App
from textual.dom import DOMNode
from textual.message import Message
from textual.screen import Screen
from textual.theme import Theme
from textual.widget import Widget

from lens_tui.records import LensError, paths
from lens_tui.records.info import Dequantize
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.worker.events import Event, JobDone, JobFailed, JobStarted, Progress, Speed, Stopping, VectorMade
from lens_tui.worker.jobs import Job
from lens_tui.worker.thread import WorkerLike

from .bench_text import on_bench
from .format import duration, size
from .session import SessionStore

if TYPE_CHECKING:
    from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry


Handler = Callable[[Event], object]
"""Gets every event of its job. Returning True for a ``JobFailed`` says that the screen has shown it."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A job that still counts: its id, its slot and who gets its events."""

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
        """Who gets an event; ``None`` if its job no longer counts. A job's last event closes it."""
        owned = self._jobs.get(event.job)
        if owned is not None and isinstance(event, JobDone | JobFailed):
            del self._jobs[event.job]
        return owned

    @property
    def busy(self) -> bool:
        """Whether any job is still going."""
        return bool(self._jobs)


QUIET = "words"
"""The slot of work that nobody asked for: the status row says nothing of it, unless it fails."""

IDLE, BUSY, FAILED = "idle", "busy", "failed"
LOADING, WAITING = "The model is still loading.", "waits for what runs …"

TITLES = {
    "LoadModel": "loading",
    "UnloadModel": "unloading",
    "LoadSAE": "loading the SAE",
    "Compare": "comparing",
    "ComparePrompts": "comparing over the set",
    "Encode": "reading features",
    "FindFeatures": "looking for features",
    "ReadFeature": "reading a feature",
    "SetLabel": "keeping the label",
    "ReadWritten": "reading what was written",
    "ReadPrompt": "reading the prompt",
    "ContrastTexts": "contrasting",
    "ExportFeatures": "writing the list",
    "ReadNeighbours": "looking for neighbours",
    "ReadLens": "reading the layers",
    "ReadParts": "taking the logit apart",
    "ReadPattern": "reading attention",
    "Patch": "patching",
    "MakeGraph": "making the graph",
    "PruneGraph": "pruning",
    "ReadGraph": "reading the graph",
    "WriteGraph": "writing the graph",
    "KeepGraph": "keeping the graph",
    "CheckNode": "checking",
    "VectorFromPatch": "making the vector",
    "VectorFromNode": "making the vector",
    "VectorFromFeature": "making the vector",
    "VectorFromPrompts": "making the vector",
    "TrainProbes": "fitting probes",
    "VectorFromFile": "reading the vector",
    "VectorFromToken": "making the vector",
    "VectorFromVectors": "making the vector",
    "VectorGiven": "making the vector",
    "BareVectors": "making the vectors",
    "RandomVector": "making the vector",
    "MeasureDose": "measuring the dose",
    "FindScale": "searching a scale",
    "IndexText": "indexing",
    "TrainSAE": "training",
}
"""What a job is called while it runs, by the name of its record."""


@dataclass(frozen=True, slots=True)
class Activity:
    """The state of the work.

    ``since`` is when the stage began and ``base`` what was done by then, so that
    speed and time left speak of this stage alone. ``note`` is what an idle app
    has to say: what was done last, or the error. ``stopping``: the user's stop was received.
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
            fresh = activity.unit != "tokens" or activity.stage  # the prompt's stage is over
            start = replace(activity, stage="", since=now, base=steps) if fresh else activity
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
        return f"{many(activity.done, 'token')} each · {activity.tokens_per_s:.0f} tok/s"
    return f"{activity.title}: done{f' in {spent}' if spent else ''}" if activity.title else ""


class RunWanted(Message):
    """The comparison is to run: to the Generate screen."""


class Catalog(Protocol):
    """Lists and checks; each call may take a while and is made off the screen's thread."""

    def models(self) -> Sequence[ModelEntry]:
        """Models that can be loaded."""

    def saes(self, model: str) -> Sequence[SAEEntry]:
        """SAEs available for a model, by its id: those on this disk, then those at the hub that are known."""

    def remove(self, entry: ModelEntry | SAEEntry) -> int:
        """Take it off this disk; the bytes that are free by it. Raises ``LensError``."""

    def check(self, typed: str) -> ModelEntry:
        """What was typed, as a model; raises ``LensError`` if it is none."""

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        """What it would need."""


class Opens(Protocol):
    """What loads models and SAEs, and how far it is."""

    model: str
    wanted_sae: str
    arming: bool
    going: bool
    failure: JobFailed | None
    stages: list[str]

    def load(self, model: str, sae: str = "") -> None:
        """Load a model, and then an SAE if one is named."""

    def load_sae(self, path: str) -> None:
        """Load an SAE beside the model."""

    def unload(self) -> None:
        """Free the model and its SAEs."""


class Choices(Protocol):
    """The themes that can be chosen. ``auto`` is one of them, and follows the terminal."""

    following: bool

    @property
    def names(self) -> list[str]:
        """What can be chosen."""

    @property
    def chosen(self) -> str:
        """What is chosen now."""

    def theme_of(self, name: str) -> str:
        """The theme that a choice shows now."""

    def show(self, name: str) -> None:
        """Show a choice without keeping it."""


def focus_now(widget: Widget) -> None:
    """Give a widget the focus at once. Textual's ``focus()`` does it behind the keys that have come already."""
    widget.screen.set_focus(widget)


_LOST = 0.5


class Followed(Message):
    """Goes the way of a key or a paste behind it: when it is at the app, that one has been where it could be used."""

    def __init__(self, event: events.Key | events.Paste) -> None:
        self.event = event
        super().__init__()


class LensHost(App[None]):
    """The app as its screens, panes and widgets see it: what they may read, and what :class:`LensApp` does for them."""

    worker: WorkerLike
    store: SessionStore
    opening: Opens
    catalog: Catalog
    book: JobBook
    activity: Any
    tour_step: Any
    tint: Any
    themes: dict[str, Theme]
    looks: Choices
    history: Path | None
    dequantize: Dequantize
    clock: Callable[[], float]
    wall: Callable[[], float]

    def __init__(self) -> None:
        self._sent_to: WeakKeyDictionary[events.Key, Widget | Screen[Any]] = WeakKeyDictionary()
        self._out: events.Key | events.Paste | None = None
        self._waiting: deque[events.Key | events.Paste] = deque()
        super().__init__()

    async def on_event(self, event: events.Event) -> None:
        """What is typed and pasted goes out one after the other: a key is for what the key before it led to.

        A terminal gives what was typed fast, or came over a slow line, in one read.
        """
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
        elif self._out is None:
            await self._send_out(event)
        elif not (isinstance(event, events.Key) and await self._check_bindings(event.key, priority=True)):
            self._waiting.append(event)
            self._give_up_on(self._out)

    async def _send_out(self, event: events.Key | events.Paste) -> None:
        """Hand a key or a paste to who has the focus now; the next one goes when it has come to its end."""
        target = self.focused or self.screen
        self._out = event
        if isinstance(event, events.Key):  # by the time that it comes back unused, another widget may have the focus
            self._sent_to[event] = target
        await super().on_event(event)
        self._follow(event, target)
        if self._waiting:
            self._give_up_on(event)

    def _follow(self, event: events.Key | events.Paste, target: Widget | Screen[Any]) -> None:
        self._out = event
        if not target.post_message(Followed(event)):
            self.call_later(self._next, event)

    def on_followed(self, message: Followed) -> None:
        """A key or a paste was used, or nobody had use for it. What it asked to be done is done first."""
        self.call_later(self._next, message.event)

    def _next(self, before: events.Key | events.Paste) -> None:
        """Send out what waits for the end of ``before``."""
        if self._out is before:
            self._out = self._waiting.popleft() if self._waiting else None
            if self._out is not None:
                self.call_next(self._send_out, self._out)

    def _give_up_on(self, event: events.Key | events.Paste) -> None:
        """In a while, if nothing was heard of it: the widget it was for may have gone with it."""
        asyncio.get_running_loop().call_later(_LOST, self._next, event)

    async def _on_key(self, event: events.Key) -> None:
        """A key that came before the screen or field that the key before it opened is for that, and no command."""
        sent, now = self._sent_to.pop(event, None), self.focused or self.screen
        if sent is None or sent is now:
            self.call_later(self._next, event)
            return  # Textual's own handler looks for a binding
        event.prevent_default()
        again = events.Key(event.key, event.character)
        if not await self._check_bindings(again.key, priority=True):
            self._sent_to[again] = now
            now._forward_event(again)
            self._follow(again, now)

    def no_model(self) -> str:
        """Why nothing can be asked of a model."""
        return LOADING if self.opening.going else "Load a model first."

    def without_model(self) -> str:
        """What stands in an empty pane while there is no model."""
        return LOADING if self.store.session.loading else f"No model: {self.key_text('app.load')} goes to Load."

    def forget(self, slot: str) -> None:
        """Stop the job in a slot and drop what it still sends."""

    def submit(self, job: Job, slot: str, handler: Handler) -> int:
        """Ask the worker for something; ``handler`` gets its events. A slot holds one job: a new one stops the old."""
        raise NotImplementedError

    def key_text(self, key_id: str) -> str:
        """The key of an action as it is shown."""
        raise NotImplementedError

    def say(self, message: str) -> None:
        """A short remark, for something that happened out of sight."""

    def copy(self, text: str, what: str) -> None:
        """Copy ``text`` through the terminal (OSC 52, over ssh too) and, where one is there, the system's own tool.

        ``what`` says in the remark what it was. A terminal does not say whether it took it: where no tool did, the text
        is written to a file as well.
        """
        self.copy_to_clipboard(text)
        self.run_worker(lambda: self._hand_over(text, what), thread=True, exit_on_error=False, group="clip")

    def _hand_over(self, text: str, what: str) -> None:
        length = many(len(text), "character")
        said, seconds = f"Copied {what} ({length}).", 3.0
        if not _handed_over(text):
            said, seconds = f"Sent {what} ({length}) to the terminal's clipboard; {_written(text)}.", 6.0
        self.call_from_thread(self.notify, said, markup=False, timeout=seconds)

    def tell(self, text: str) -> None:
        """Something to know that a remark would pass too quickly."""

    def put_on_bench(
        self, made: VectorMade, what: str, *, scale: float | None = None, mode: str = "add", scaled: bool = False
    ) -> None:
        """Put a vector on the bench that another screen asked for, and say where it is.

        Args:
            made: The vector, with what was said of it.
            what: What it is, as that screen calls it.
            scale: As of :meth:`SessionStore.add_steer`.
            mode: How it acts.
            scaled: Whether its scale is said: where the screen chose it.
        """
        row = self.store.add_made(made, scale=scale, mode=mode)
        self.say(on_bench(what, row, self.store.session.steers, self.key_text("app.generate"), scaled=scaled))

    def remark(self, text: str) -> None:
        """What the status line says."""

    def show_error(self, message: str, hint: str = "", detail: str = "") -> None:
        """An error with its next step."""

    def keep_theme(self, name: str) -> None:
        """Use a theme from now on."""

    def after_first_frame(self, callback: Callable[[], object]) -> None:
        """Call it once the first frame is up."""

    def armed(self) -> None:
        """A model's weights and the bench it opens with are there: a run that was asked for begins."""

    def opened(self, ready: bool, remark: str = "") -> None:
        """A model and all it opens with are there, or could not be loaded; ``remark`` says so, unless a run spoke."""

    def action_show(self, mode: str) -> None:
        """Go to a screen; on it already, say so."""

    def go_to(self, mode: str) -> None:
        """Show a screen, or stay on it."""

    def action_run(self) -> None:
        """Run the comparison."""


def host(node: DOMNode) -> LensHost:
    """The running app, as what it is to its screens."""
    return cast("LensHost", node.app)


_TOOLS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))


def _handed_over(text: str) -> bool:
    """Hand the text to the first tool there is; true if it took it."""
    for command in _TOOLS:
        if shutil.which(command[0]):
            try:
                # Not captured: what holds a selection stays behind, with the pipes it was given.
                done = subprocess.run(
                    command,
                    input=text.encode(),
                    timeout=2,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return True
    return False


def _written(text: str) -> str:
    """Write what was copied to its file; says where it is, or why it is not there."""
    from lens_tui.records.disk import write_text

    place = paths.copied_file()
    try:
        write_text(place, text)
    except LensError as error:
        return f"no file holds it ({error.message.rstrip('.')})"
    return f"it is in {one_line(str(place))} too"
