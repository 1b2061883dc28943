"""Whether memory stays: two hundred runs in one process, and twenty models loaded one after the other.

On the bundled model, by the app's worker. Each run is a comparison of four arms with their companions under another
prompt and another dial, kept in a history; the first 40 fill what is bounded (kept prefixes), and growth is what the
rest add to the process's resident memory and to what MLX holds. The peer of the loads is the same model loaded once:
MLX's peak over all of them against its peak over that one.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.records.machine import give_back_memory
from lens_tui.worker import jobs
from lens_tui.worker.events import JobDone, JobFailed
from lens_tui.worker.thread import Worker

from .machine import Options
from .report import Row, at_most

FILLING = 40
WORDS = "the old man opened the door and saw that the sea had come up to the house in the night "


class Jobs:
    """A worker with a history, as the app has it, whose jobs are waited for."""

    def __init__(self, folder: Path) -> None:
        self._bell = threading.Semaphore(0)
        self._worker = Worker(history=folder / "runs.db")
        self._worker.start(self._bell.release)

    def do(self, job: jobs.Job) -> None:
        """A job, to its end; raises ``RuntimeError`` if it fails."""
        number = self._worker.submit(job)
        while True:
            self._bell.acquire()
            for event in self._worker.drain():
                if event.job == number and isinstance(event, JobFailed):
                    raise RuntimeError(event.message)
                if event.job == number and isinstance(event, JobDone):
                    return

    def close(self) -> None:
        """End it."""
        self._worker.close(60)


def held() -> tuple[float, float]:
    """Megabytes: the process's resident memory without what its allocator keeps for later, and what MLX holds."""
    gc.collect()
    mx.clear_cache()
    give_back_memory()  # what the cache held, which is no run's
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # no Linux
        resident = float("nan")
    return resident, mx.get_active_memory() / 1e6


def run(made: Jobs, number: int) -> None:
    """A comparison unlike all others."""
    rng = np.random.default_rng(number)
    vectors = [SteeringVector.of(f"v{arm}", rng.standard_normal(384), 4) for arm in range(3)]
    arms = tuple(
        Arm(f"{at}", (Add(id=f"s{at}", layer=4, vector=vector, scale=8.0),)) for at, vector in enumerate(vectors)
    )
    made.do(jobs.Compare(f"{number}: {WORDS * 3}", arms, Sampling(max_tokens=12, seed=number)))


def rows(options: Options) -> Iterator[Row]:
    """Run, and load; without a word about the runs that only fill."""
    with tempfile.TemporaryDirectory() as folder:
        made = Jobs(Path(folder))
        try:
            made.do(jobs.LoadModel("demo"))
            yield from of_runs(made, 40 if options.quick else 200)
            yield from of_loads(made, 4 if options.quick else 20)
        finally:
            made.close()


def of_runs(made: Jobs, runs: int) -> Iterator[Row]:
    """What the process holds after many runs, against what it held after the first."""
    for number in range(FILLING):
        run(made, number)
    before = held()
    for number in range(FILLING, FILLING + runs):
        run(made, number)
    for name, old, new in zip(("resident memory", "what MLX holds"), before, held(), strict=True):
        peer = f"after {FILLING} runs: {old:.1f} MB"
        yield Row(f"{name} after {runs} more runs", f"{new:.1f} MB", peer, new / old, at_most(1.02))


def of_loads(made: Jobs, loads: int) -> Iterator[Row]:
    """The peak of many loads, against that of one."""
    made.do(jobs.UnloadModel())
    base, peaks = held()[1], []
    for count in (1, loads):
        made.do(jobs.UnloadModel())
        mx.reset_peak_memory()
        for _ in range(count):
            made.do(jobs.LoadModel("demo"))
        peaks.append(mx.get_peak_memory() / 1e6 - base)
    peer = f"of one: {peaks[0]:.1f} MB"
    yield Row(f"peak of {loads} loads", f"{peaks[1]:.1f} MB", peer, peaks[1] / peaks[0], at_most(1.1))
