"""The machine: how much memory MLX may use, how much can be had now, and which process of several this is.

Where a launcher such as ``mlx.launch`` started several for one command, one of them, rank 0, speaks: the others compute
the same and write neither to the terminal nor to files.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

SMALL = 1 << 30
"""Bytes for which nobody asks how much memory is free."""
_GROUP = Path("/sys/fs/cgroup")


@cache
def machine_memory() -> int:
    """Bytes MLX may use here: the machine's memory or the container's limit; on macOS three quarters of it.

    Metal lets a process wire about three quarters of unified memory.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "darwin":
        return total * 3 // 4
    try:
        return min(total, int((_GROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return total


def free_memory() -> int:
    """Bytes that can be had here without another having to give any, within the container's and the process's limit.

    Files that the kernel keeps in memory for no one count as free: it drops them when asked.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        found = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()
        total = min(total, int(found[0]) * 1024)
    except (OSError, ValueError, IndexError):
        pass  # no Linux
    try:
        most, taken = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        total = min(total, most - taken + _droppable())
    except (OSError, ValueError):
        pass  # no limit
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            taken = 0  # no Linux
        total = min(total, most - taken)
    return max(total, 0)


def _droppable() -> int:
    """Bytes of files that a container's kernel holds for it, and counts as taken."""
    try:
        words = (_GROUP / "memory.stat").read_text().split()
        return sum(int(count) for name, count in pairwise(words) if name == "inactive_file")
    except (OSError, ValueError):
        return 0


def give_back_memory() -> None:
    """Hand the system what the allocator keeps of freed memory. It can be asked of glibc alone, and takes some ms.

    A run frees many small things between those that stay, and what it leaves is not given back by itself.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a system that has no such handle
        return None
    return found


_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launched() -> bool:
    """Whether a launcher started this process as one of a group."""
    return any(os.environ.get(name, "").isdigit() for name in _RANKS)


def launched_rank() -> int:
    """This process's number, counted from 0; 0 where nobody numbered it."""
    return next((int(said) for name in _RANKS if (said := os.environ.get(name, "")).isdigit()), 0)
