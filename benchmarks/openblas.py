"""What OpenBLAS and float32 weights are worth on a Linux CPU: the same work with both and with neither.

Two processes take turns, one with both and one as MLX comes. Figures are CPU seconds of the process, the least of the
turns, so that other work on the machine counts little.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from .machine import Options
from .openblas_child import ONE_BY_ONE
from .report import Row, absent, at_least, duration
from .serving import Served
from .turns import take_turns

BOUNDS = {
    "prefill of 86 tokens": 15.0,
    "one steered stream of 32 tokens": 1.5,
    "8 arms x 24 tokens in lock step": 5.0,
    "index": 4.0,
    "train-sae": 4.0,
}


def rows(options: Options) -> Iterator[Row]:
    """Each work with and without."""
    if sys.platform != "linux":
        yield absent("products on a CPU", "macOS has Accelerate, and nothing is changed there")
        return
    least: dict[str, dict[str, float]] = {}
    with Served(sys.executable, MODULE, "before") as before, Served(sys.executable, MODULE, "now") as now:
        for task in (*BOUNDS, ONE_BY_ONE):
            contenders = {"before": before.contender(task), "now": now.contender(task)}
            long = task in ("index", "train-sae")  # a minute each as MLX comes
            turns = take_turns(contenders, 1 if long else options.repeats(3), unmeasured=0)
            least[task] = {name: min(seconds) for name, seconds in turns.items()}
            found, bound = least[task], BOUNDS.get(task)
            times = duration(found["now"]), f"as MLX comes: {duration(found['before'])}"
            speed_up = found["before"] / found["now"]
            yield Row(f"{task}, times as fast", *times, speed_up, None if bound is None else at_least(bound))
    alone, together = least[ONE_BY_ONE]["now"], least["8 arms x 24 tokens in lock step"]["now"]
    yield Row("8 arms one by one / in lock step", duration(together), duration(alone), alone / together, at_least(4))


MODULE = "benchmarks.openblas_child"
