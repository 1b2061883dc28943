"""Texts of unequal length in batches: little is padded, and no forward is made for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

OVERHEAD = {"cpu": 4, "gpu": 256}
"""What a forward costs however few its tokens, in tokens. A GPU reads all weights for one token as for hundreds; a CPU
takes its time for each token."""


def pack(
    lengths: Sequence[int], rows: Sequence[int], *, most_rows: int, most_tokens: int, overhead: int | None = None
) -> list[list[int]]:
    """Places in batches, each of similar lengths, so that all the forwards together cost least.

    Place ``i`` stands for ``rows[i]`` rows of ``lengths[i]`` tokens. A batch costs ``overhead`` and all its rows at
    the length of its longest one; it has at most ``most_rows`` rows and ``most_tokens`` tokens, padding included,
    unless a single place has more. The best cut of the places in order of length is found by dynamic programming.
    """
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    fixed = OVERHEAD["gpu" if mx.default_device().type == mx.gpu else "cpu"] if overhead is None else overhead
    best, cut = [0], [0]
    for stop in range(1, len(order) + 1):
        longest, count = lengths[order[stop - 1]], 0
        found: tuple[int, int] | None = None
        for start in range(stop - 1, -1, -1):
            count += rows[order[start]]
            if start < stop - 1 and (count > most_rows or count * longest > most_tokens):
                break
            cost = best[start] + fixed + count * longest
            if found is None or cost <= found[0]:
                found = cost, start
        assert found is not None
        best.append(found[0])
        cut.append(found[1])
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        batches.append(order[cut[stop] : stop])
        stop = cut[stop]
    return batches[::-1]
