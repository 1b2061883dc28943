"""Drive a real worker from a test: submit a job, wait for its end, look at its events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lens_tui.records import Token
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker

Kind = TypeVar("Kind", bound=ev.Event)
PATIENCE = 120.0


class Driver:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.bell = threading.Semaphore(0)
        self.worker.start(self.bell.release)

    def run(self, job: jobs.Job) -> list[ev.Event]:
        """Every event of a job, to its end."""
        return self.follow(self.worker.submit(job), lambda _: None)

    def follow(self, job_id: int, look: Callable[[ev.Event], None]) -> list[ev.Event]:
        """As :meth:`run` for a job under way; ``look`` sees each event as it comes."""
        events: list[ev.Event] = []
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.bell.acquire(timeout=max(0.0, deadline - time.monotonic())), events
            for event in self.worker.drain():
                if event.job != job_id:
                    continue
                events.append(event)
                look(event)
                if isinstance(event, ev.JobDone | ev.JobFailed):
                    return events

    def done(self, job: jobs.Job) -> list[ev.Event]:
        """As :meth:`run`, for a job that must not fail."""
        events = self.run(job)
        assert isinstance(events[-1], ev.JobDone), events[-1]
        return events

    def failed(self, job: jobs.Job) -> ev.JobFailed:
        """The failure of a job that must fail."""
        end = self.run(job)[-1]
        assert isinstance(end, ev.JobFailed), end
        return end


def of(events: list[ev.Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def tokens_of(events: list[ev.Event]) -> list[Token]:
    return [event.token for event in of(events, ev.TokenEvent)]


def only(events: list[ev.Event], kind: type[Kind]) -> Kind:
    (found,) = of(events, kind)
    return found
