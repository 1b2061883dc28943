"""The thread's promises, with runners that need no MLX."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from lens_tui.records import Add, LensError
from lens_tui.records.errors import warn
from lens_tui.worker import events as ev
from lens_tui.worker.jobs import Job
from lens_tui.worker.thread import Control, Mailbox, Stopped, Worker, WorkerLike
from tests.fakes import unit_vector

PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Say(Job):
    """Yield ``n`` speeds, waiting for ``gate`` before each after the first."""

    n: int = 3
    error: BaseException | None = None
    gate: threading.Semaphore | None = None
    last_words: bool = False


class Speaker:
    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.closed_on: int | None = None

    def __call__(self, control: Control) -> Iterator[ev.Event]:
        job = control.job
        assert isinstance(job, Say)
        self.threads.add(threading.get_ident())
        try:
            for step in range(job.n):
                if job.gate is not None and step:
                    assert job.gate.acquire(timeout=PATIENCE)
                if job.gives_way:
                    control.check()
                for arm, interventions in control.take_dials().items():
                    yield ev.Dialed(control.id, arm, step, interventions)
                yield ev.Speed(control.id, 1.0, step, job.n)
        except Stopped:
            if job.last_words:
                yield ev.ArmDone(control.id, 0, "stopped", step)
            raise
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        self.closed_on = threading.get_ident()


class Reader:
    """A worker with a reader that drains at each wake, and counts the wakes."""

    def __init__(self) -> None:
        self.speaker = Speaker()
        self.worker = Worker(lambda: self.speaker)
        self.bell = threading.Semaphore(0)
        self.wakes = 0
        self.events: list[ev.Event] = []
        self.worker.start(self._wake)

    def _wake(self) -> None:
        self.wakes += 1
        self.bell.release()

    def until(self, enough: Callable[[list[ev.Event]], bool]) -> list[ev.Event]:
        deadline = time.monotonic() + PATIENCE
        while not enough(self.events):
            assert self.bell.acquire(timeout=max(0.0, deadline - time.monotonic())), self.events
            self.events += self.worker.drain()
        return self.events

    def end_of(self, job_id: int) -> list[ev.Event]:
        def ended(events: list[ev.Event]) -> bool:
            return any(event.job == job_id and isinstance(event, ev.JobDone | ev.JobFailed) for event in events)

        return [event for event in self.until(ended) if event.job == job_id]

    def seen(self, kind: type[ev.Event], job_id: int, n: int = 1) -> None:
        self.until(lambda events: sum(isinstance(e, kind) and e.job == job_id for e in events) >= n)


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    assert made.worker.close(PATIENCE)


def test_it_is_a_worker(reader: Reader) -> None:
    worker: WorkerLike = reader.worker
    assert worker.drain() == []


def test_jobs_run_in_order_on_one_thread_that_is_not_ours(reader: Reader) -> None:
    first, second = reader.worker.submit(Say()), reader.worker.submit(Say(1))
    assert second > first
    assert [type(event).__name__ for event in reader.end_of(second)] == ["JobStarted", "Speed", "JobDone"]
    assert [event.job for event in reader.events] == sorted(event.job for event in reader.events)
    assert len(reader.speaker.threads) == 1
    assert threading.get_ident() not in reader.speaker.threads


class Urgent(Say):
    overtakes: ClassVar[bool] = True


class Placed(Say):
    place: ClassVar[bool] = True


class Patient(Say):
    gives_way: ClassVar[bool] = True


def test_a_run_goes_before_what_waits_but_not_before_another_model(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    submit = reader.worker.submit
    first = submit(Say(2, gate=gate))
    reader.seen(ev.Speed, first)
    waiting = submit(Patient(1)), submit(Say(1)), submit(Urgent(1)), submit(Placed(1)), submit(Urgent(1))
    one, other, run, model, late = waiting
    gate.release()
    for job in waiting:
        reader.end_of(job)
    ends = [event.job for event in reader.events if isinstance(event, ev.JobDone)]
    assert ends == [first, run, one, other, model, late]


def test_stopping_all_ends_the_run_and_the_job_that_it_paused(reader: Reader) -> None:
    gate, inside = threading.Semaphore(0), threading.Semaphore(0)
    job = reader.worker.submit(Patient(1000, gate=gate))
    reader.seen(ev.Speed, job)
    run = reader.worker.submit(Urgent(1000, gate=inside))
    gate.release()
    reader.seen(ev.Speed, run)
    reader.worker.stop()
    gate.release(1000)
    inside.release(1000)
    assert reader.end_of(job)[-1] == ev.JobDone(job, stopped=True)
    assert reader.end_of(run)[-1] == ev.JobDone(run, stopped=True)
    assert {event.job for event in reader.events if isinstance(event, ev.Stopping)} == {job, run}
    ends = [event.job for event in reader.events if isinstance(event, ev.JobDone)]
    assert ends == [run, job]


def test_stop_takes_at_most_one_more_event(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    job = reader.worker.submit(Say(1000, gate=gate, last_words=True))
    reader.seen(ev.Speed, job)
    reader.worker.stop(job)  # the handler is inside a step now, as an evaluation would be
    gate.release(1000)
    events = reader.end_of(job)
    assert sum(isinstance(event, ev.Speed) for event in events) <= 2
    assert isinstance(events[-2], ev.ArmDone)
    assert events[-1] == ev.JobDone(job, stopped=True)


def test_a_stop_is_answered_while_the_step_goes_on(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    job = reader.worker.submit(Say(1000, gate=gate))
    reader.seen(ev.Speed, job)
    for _ in range(3):
        reader.worker.stop(job)
    heard = reader.until(lambda events: any(isinstance(event, ev.Stopping) for event in events))
    assert not any(isinstance(event, ev.JobDone) for event in heard)  # the handler is held inside its step
    gate.release(1000)
    events = reader.end_of(job)
    assert events[-1] == ev.JobDone(job, stopped=True)
    assert events.count(ev.Stopping(job)) <= 1
    reader.worker.stop(job)
    assert reader.worker.drain() == []  # nothing comes after a job's last event


def test_what_the_library_warns_of_reaches_the_reader_once() -> None:
    def runner(control: Control) -> Iterator[ev.Event]:
        for _ in range(2):
            warn("The vector is of another layer.")
        yield ev.Speed(control.id, 1.0, 0, 1)

    runner.close = lambda: None  # type: ignore[attr-defined]
    worker, bell = Worker(lambda: runner), threading.Semaphore(0)  # type: ignore[arg-type, return-value]
    worker.start(bell.release)
    jobs = [worker.submit(Say()), worker.submit(Say())]
    events: list[ev.Event] = []
    while ev.JobDone(jobs[1]) not in events:
        assert bell.acquire(timeout=PATIENCE)
        events += worker.drain()
    assert [event for event in events if isinstance(event, ev.Notice)] == [
        ev.Notice(jobs[0], "The vector is of another layer.")
    ]
    assert worker.close(PATIENCE)


def test_a_waiting_job_is_stopped_before_it_begins(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    running, waiting = reader.worker.submit(Say(2, gate=gate)), reader.worker.submit(Say())
    reader.seen(ev.Speed, running)
    reader.worker.stop(waiting)
    gate.release(5)
    assert reader.end_of(waiting) == [ev.JobDone(waiting, stopped=True)]
    assert reader.end_of(running)[-1] == ev.JobDone(running, stopped=False)


def test_stop_of_all_and_of_what_is_gone(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    ids = [reader.worker.submit(Say(9, gate=gate)) for _ in range(3)]
    reader.seen(ev.Speed, ids[0])
    reader.worker.stop()
    reader.worker.stop(12345)
    gate.release(100)
    assert [reader.end_of(job)[-1] for job in ids] == [ev.JobDone(job, stopped=True) for job in ids]
    again = reader.worker.submit(Say())
    assert reader.end_of(again)[-1] == ev.JobDone(again)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (LensError("Layer 9 does not exist.", "Use 0 to 7."), "Layer 9 does not exist.", "Use 0 to 7."),
        (LensError("Bad \x1b[31m\u202ename."), "Bad ␛[31m⟨U+202E⟩name.", ""),
        (RuntimeError("[metal::malloc] Unable to allocate 9 bytes"), "There is not enough memory for this.", "smaller"),
        (MemoryError(), "There is not enough memory for this.", "smaller"),
        (KeyError("x"), "Something failed inside: KeyError: 'x'", "log"),
        (SystemExit(3), "Something failed inside: SystemExit: 3", "log"),
        (PermissionError(13, "Permission denied", "/x"), "The system refused: Permission denied (/x).", "Check"),
        (ImportError("no libmlx", name="mlx.core"), "MLX could not be imported: no libmlx.", "mlx[cpu]"),
    ],
)
def test_an_error_ends_the_job_and_not_the_thread(
    reader: Reader, error: BaseException, message: str, hint: str
) -> None:
    failed = reader.end_of(reader.worker.submit(Say(1, error)))[-1]
    assert isinstance(failed, ev.JobFailed)
    assert failed.message == message
    assert hint in failed.hint
    assert type(error).__name__ in failed.detail
    assert "\x1b" not in failed.detail
    after = reader.worker.submit(Say())
    assert reader.end_of(after)[-1] == ev.JobDone(after)


def test_a_dial_reaches_the_running_job_and_the_last_wins(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    job = reader.worker.submit(Say(3, gate=gate))
    reader.seen(ev.Speed, job)
    old, new = (Add(id="a", layer=0, vector=unit_vector("x"), scale=scale) for scale in (1.0, 2.0))
    for interventions in ((), (old,), (new,)):
        reader.worker.dial(job, 1, interventions)
    reader.worker.dial(job + 7, 1, ())
    gate.release(5)
    dialled = [event for event in reader.end_of(job) if isinstance(event, ev.Dialed)]
    assert [(event.arm, event.interventions) for event in dialled] == [(1, (new,))]


def test_one_wake_for_each_drain_and_none_when_idle(reader: Reader) -> None:
    gate = threading.Semaphore(0)
    job = reader.worker.submit(Say(50, gate=gate))
    assert reader.bell.acquire(timeout=PATIENCE)
    gate.release(50)
    while reader.worker._open:
        time.sleep(0.001)
    assert reader.wakes == 1  # nobody has drained
    events = reader.worker.drain()
    assert events[-1] == ev.JobDone(job)
    assert sum(isinstance(event, ev.Speed) for event in events) == 50
    assert reader.wakes == 1
    assert reader.worker.drain() == []


def test_no_event_is_lost_between_many_writers_and_a_reader() -> None:
    box, bell = Mailbox(), threading.Semaphore(0)
    got: list[ev.Event] = []
    box.connect(bell.release)

    def write(number: int) -> None:
        for step in range(2000):
            box.put(ev.Speed(number, 0.0, step, 0))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    while len(got) < 6000:
        assert bell.acquire(timeout=PATIENCE), "events wait and nobody rang"
        got += box.drain()
    for writer in writers:
        writer.join()
    for number in range(3):
        steps = [event.steps for event in got if isinstance(event, ev.Speed) and event.job == number]
        assert steps == list(range(2000))


def test_a_broken_bell_does_not_end_the_thread() -> None:
    def broken() -> None:
        raise RuntimeError("the app is gone")

    worker = Worker(Speaker)
    worker.start(broken)
    worker.submit(Say(2))
    events: list[ev.Event] = []
    deadline = time.monotonic() + PATIENCE
    while not any(isinstance(event, ev.JobDone) for event in events) and time.monotonic() < deadline:
        events += worker.drain()
        time.sleep(0.001)
    assert events[-1] == ev.JobDone(1)
    assert worker.close(PATIENCE)


def test_events_from_before_a_reader_came_ring_when_it_comes() -> None:
    box, rung = Mailbox(), []
    box.put(ev.JobDone(1))
    box.connect(lambda: rung.append(1))
    box.put(ev.JobDone(2))
    assert rung == [1]
    assert len(box.drain()) == 2


def test_close_frees_on_the_thread_and_is_final() -> None:
    reader = Reader()
    job = reader.worker.submit(Say())
    reader.end_of(job)
    assert reader.worker.close(PATIENCE)
    assert reader.worker.close(PATIENCE)
    assert {reader.speaker.closed_on} == reader.speaker.threads
    late = reader.worker.submit(Say())
    assert reader.worker.drain() == [ev.JobDone(late, stopped=True)]


def test_close_does_not_wait_for_a_step_that_does_not_end() -> None:
    reader, gate = Reader(), threading.Semaphore(0)
    reader.seen(ev.Speed, reader.worker.submit(Say(2, gate=gate)))
    assert reader.worker.close(0.01) is False
    gate.release(5)
    assert reader.worker.close(PATIENCE)


def test_close_before_start() -> None:
    assert Worker(Speaker).close()
