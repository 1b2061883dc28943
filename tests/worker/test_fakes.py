"""The fake keeps the protocol's promises, so that a screen tested with it is tested."""

from __future__ import annotations

from lens_tui.records import Add, Arm, LensError, Sampling
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import WorkerLike
from tests.fakes import FakeWorker, unit_vector

ARMS = (Arm("baseline"), Arm("dog", (Add(id="a", layer=4, vector=unit_vector("dog"), scale=8.0),)))


def test_it_is_a_worker() -> None:
    worker: WorkerLike = FakeWorker()
    worker.start(lambda: None)
    assert worker.drain() == []


def test_all_at_once_and_in_pieces_give_the_same() -> None:
    whole, pieces = FakeWorker(), FakeWorker(per_drain=3)
    wakes: list[int] = []
    pieces.start(lambda: wakes.append(1))
    for worker in (whole, pieces):
        worker.submit(jobs.Compare("Once upon a time, there was", ARMS, Sampling(max_tokens=6)))
    gathered: list[ev.Event] = []
    while wakes:
        wakes.pop()
        gathered += pieces.drain()
    assert gathered == whole.drain()
    assert isinstance(gathered[0], ev.JobStarted)
    assert gathered[-1] == ev.JobDone(1)
    assert sum(isinstance(event, ev.TokenEvent) for event in gathered) == 12
    assert pieces.idle


def test_held_stopped_and_dialled() -> None:
    worker = FakeWorker(hold=True)
    number = worker.submit(jobs.Compare("x", ARMS))
    waiting = worker.submit(jobs.RandomVector("r", 2))
    assert worker.drain() == []
    worker.release(4)
    assert len(worker.drain()) == 4
    worker.dial(number, 1, ())
    worker.release(5)
    assert ev.Dialed(number, 1, 1, ()) in worker.drain()
    worker.stop()
    ends = [event for event in worker.drain() if isinstance(event, ev.JobDone | ev.ArmDone)]
    assert [getattr(end, "reason", "done") for end in ends] == ["stopped", "stopped", "done", "done"]
    assert ends[-1] == ev.JobDone(waiting, stopped=True)


def test_failures_end_a_job() -> None:
    worker = FakeWorker(failures={jobs.Encode: LensError("No SAE.", "Load one.")})
    worker.submit(jobs.Encode("s", "text"))
    worker.submit(jobs.LoadModel("missing/model"))
    failed = [event for event in worker.drain() if isinstance(event, ev.JobFailed)]
    assert failed[0] == ev.JobFailed(1, "No SAE.", "Load one.")
    assert "missing/model" in failed[1].message
