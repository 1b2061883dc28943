"""The one way to time: contenders take turns, so that a machine whose speed drifts is fair to all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Clock = Callable[[], float]
Contender = Callable[[], float]
"""Does its work once and returns the seconds that it took."""


def timed(
    work: Callable[[], object],
    *,
    clock: Clock = time.perf_counter,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> Contender:
    """``work`` as a contender; ``before`` is not in its time, ``after`` (a GPU's end, say) is."""

    def once() -> float:
        if before is not None:
            before()
        start = clock()
        work()
        if after is not None:
            after()
        return clock() - start

    return once


def take_turns(contenders: Mapping[str, Contender], repeats: int, *, unmeasured: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender, ``repeats`` of them, after turns that are not counted.

    Every second turn goes backwards: nobody always works in what the same other left behind.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(unmeasured + repeats):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            found = contenders[name]()
            if turn >= unmeasured:
                seconds[name].append(found)
    return seconds


def medians(contenders: Mapping[str, Contender], repeats: int, *, unmeasured: int = 1) -> dict[str, float]:
    """The median seconds of each contender."""
    found = take_turns(contenders, repeats, unmeasured=unmeasured)
    return {name: median(values) for name, values in found.items()}


def paired(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """The median ratio of ours to the peer's within a turn: a host that is slow for some turns is slow for both."""
    return median(one / other for one, other in zip(seconds[ours], seconds[peer], strict=True))
