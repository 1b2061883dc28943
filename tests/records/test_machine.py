"""Memory that is freed goes back to the system, where the allocator can be asked."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from lens_tui.records.machine import give_back_memory


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_lies_freed_below_something_that_stays_is_given_back() -> None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):
        pytest.skip("no glibc")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size, count = 64 << 10, 800  # below the size that the system is asked for by itself
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last keeps the heap from shrinking
        libc.free(block)
    kept = _resident()
    give_back_memory()
    given_back = kept - _resident()
    libc.free(blocks[-1])
    assert given_back > size * count // 2
