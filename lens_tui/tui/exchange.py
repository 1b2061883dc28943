"""Jobs from the screens to the worker, events from the worker to the screen that asked.

Events are drained thirty times a second while there are any, and nothing is done when there are none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.app import App
from textual.message import Message

from lens_tui.tui.activity import BUSY, IDLE, Activity, advance
from lens_tui.tui.jobs import Handler, JobBook
from lens_tui.tui.session import SessionStore, absorb
from lens_tui.worker.base_events import Event, JobFailed, Notice

if TYPE_CHECKING:
    from textual.reactive import reactive

    from lens_tui.worker.jobs import Job
    from lens_tui.worker.protocol import WorkerLike

    _Base = App[None]
else:
    _Base = object

FRAME = 1 / 30


class WorkerWake(Message):
    """The worker has events waiting."""


class FrameDue(Message):
    """A frame has passed since the last drain, and events wait."""


class Exchange(_Base):
    """What the app mixes in: needs its ``store``, ``clock`` and ``activity``."""

    if TYPE_CHECKING:
        store: SessionStore
        clock: Callable[[], float]
        activity: reactive[Activity]

        def show_error(self, message: str, hint: str = "", detail: str = "") -> None:
            """Show an error."""

    def begin_exchange(self, worker: WorkerLike) -> None:
        """Have an empty book and this worker."""
        self.worker = worker
        self.book = JobBook()
        self._last_drain = 0.0
        self._remark = ""

    def submit(self, job: Job, slot: str, handler: Handler) -> int:
        """Ask the worker for a job. ``handler`` gets its events until it ends or ``slot`` is taken by another.

        The job that was in the slot is stopped. Returns the job's id.
        """
        number = self.worker.submit(job)
        replaced = self.book.open(number, slot, handler)
        if replaced is not None:
            self.worker.stop(replaced)
        return number

    def forget(self, slot: str) -> None:
        """Stop the job in a slot and drop what it still sends."""
        old = self.book.drop(slot)
        if old is not None:
            self.worker.stop(old)
            if not self.book.busy:
                self.activity = Activity()

    def wake(self) -> None:
        """Events wait; called from any thread."""
        self.post_message(WorkerWake())

    def on_worker_wake(self) -> None:
        """Drain now, or when a frame has passed since the last drain."""
        wait = self._last_drain + FRAME - time.monotonic()
        if wait > 0:
            # Not set_timer: Textual drops a one-shot timer that is due before its task first runs.
            asyncio.get_running_loop().call_later(wait, self.post_message, FrameDue())
        else:
            self.drain()

    def on_frame_due(self) -> None:
        """A frame has passed."""
        self.drain()

    def drain(self) -> None:
        """Take every waiting event to whom it concerns, then repaint once."""
        self._last_drain = time.monotonic()
        activity = self.activity
        with self.batch_update():
            for event in self.worker.drain():
                try:
                    activity = self._deliver(event, activity)
                except Exception as error:  # the events behind it have their own screens
                    self._handle_exception(error)
            if self._remark and activity.state == IDLE:
                activity, self._remark = replace(activity, note=self._remark), ""
            self.activity = activity

    def remark(self, text: str) -> None:
        """What the status row says once the work at hand is done."""
        self._remark = text

    def tell(self, text: str) -> None:
        """Say something that should not be missed: for some seconds over the screen, then in the status row."""
        self.notify(text, markup=False, timeout=12)
        if self.activity.state == IDLE:
            self.activity = replace(self.activity, note=text)
        else:
            self.remark(text)

    def _deliver(self, event: Event, activity: Activity) -> Activity:
        owned = self.book.take(event)
        if owned is None:
            return Activity() if activity.state == BUSY and not self.book.busy else activity
        absorb(self.store, event)
        shown = owned.handler(event)
        if isinstance(event, Notice):
            said = " ".join(part for part in (event.message, event.hint) if part)
            self.notify(said, markup=False, timeout=12)
            self.remark(said)
        if isinstance(event, JobFailed) and shown is not True:
            self.show_error(event.message, event.hint, event.detail)
        return advance(activity, event, self.clock())

    @property
    def busy(self) -> bool:
        """Whether the worker has anything to do for us."""
        return self.book.busy
