"""Whether memory stays: two hundred runs in one process, and twenty models loaded one after the other.

    python benchmarks/bench_memory.py [--runs 200] [--loads 20]

On the bundled model, by the app's worker. Each run is a comparison of four arms with their companions under another
prompt and another dial, kept in a history; the first 40 fill what is bounded (kept prefixes), and growth is what the
rest add to the process's resident memory and to what MLX holds. The peer of the loads is the same model loaded once:
MLX's peak over all of them against its peak over that one.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
from pathlib import Path

import numpy as np

from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.worker import jobs
from lens_tui.worker.events import JobDone, JobFailed
from lens_tui.worker.thread import Worker

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
    """Megabytes: the process's resident memory, and what MLX holds."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
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


def main() -> None:
    """Run, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--loads", type=int, default=20)
    asked = parser.parse_args()
    import mlx.core as mx

    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENS_TUI_HOME"] = folder
        made = Jobs(Path(folder))
        made.do(jobs.LoadModel("demo"))
        for number in range(FILLING):
            run(made, number)
        before = held()
        for number in range(FILLING, FILLING + asked.runs):
            run(made, number)
        after = held()
        for name, old, new in zip(("resident", "MLX"), before, after, strict=True):
            print(f"{name:<9} {old:7.1f} MB, after {asked.runs} runs {new:7.1f} MB: {100 * (new / old - 1):+.2f} %")
        made.do(jobs.UnloadModel())
        base = held()[1]
        peaks = []
        for loads in (1, asked.loads):
            made.do(jobs.UnloadModel())
            mx.reset_peak_memory()
            for _ in range(loads):
                made.do(jobs.LoadModel("demo"))
            peaks.append(mx.get_peak_memory() / 1e6 - base)
        print(f"peak of {asked.loads} loads {peaks[1]:.1f} MB, of one {peaks[0]:.1f} MB: {peaks[1] / peaks[0]:.3f}")
        made.close()


if __name__ == "__main__":
    main()
