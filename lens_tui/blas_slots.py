"""Give MLX another BLAS when it is loaded already: the addresses in its library's table of functions are changed.

A library calls the functions of others through a table of addresses (the global offset table), one a function, filled
in when it is loaded. What each is for is in its file. Only the entries that are named for the functions wanted
are changed, and only where that memory may be written to. 64-bit Linux; :mod:`lens_tui.blas` proves afterwards that
MLX computes what the library does.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2
_STRINGS, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_SIZE, _CALLS, _CALLS_SIZE = 5, 6, 7, 8, 23, 2
_IS_ADDRESS = {62: (6, 7), 183: (1025, 1026)}  # GLOB_DAT and JUMP_SLOT of x86-64 and of AArch64
Segment = tuple[int, int, int]


def point_at(file_name: str, functions: Mapping[str, int]) -> bool:
    """Let the loaded library of this name call ``functions`` at these addresses; whether every one was found."""
    base, path, writable = _mapped(file_name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        slots = [(name, base + offset) for name, offset in _entries(data) if name in functions]
    if {name for name, _ in slots} != set(functions):
        return False
    if not all(any(start <= slot < stop for start, stop in writable) for _, slot in slots):
        return False
    for name, slot in slots:
        ctypes.c_uint64.from_address(slot).value = functions[name]
    return True


def _mapped(file_name: str) -> tuple[int, Path, list[tuple[int, int]]]:
    """Where the library begins in memory, its file, and what of it may be written to. Raises ``LookupError``."""
    base, path, writable = None, Path(), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 6 or Path(words[5]).name != file_name:
            continue
        start, stop = (int(part, 16) for part in words[0].split("-"))
        if base is None and int(words[2], 16) == 0:
            base, path = start, Path(words[5])
        if "w" in words[1]:
            writable.append((start, stop))
    if base is None:
        raise LookupError(f"{file_name} is not loaded")
    return base, path, writable


def _entries(data: mmap.mmap) -> Iterator[tuple[str, int]]:
    """Each function's name and the place of its address in memory, counted from where the library begins."""
    machine, (program,) = struct.unpack_from("<H", data, 18)[0], struct.unpack_from("<Q", data, 32)
    if data[:6] != b"\x7fELF\x02\x01" or machine not in _IS_ADDRESS:
        return
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, program + at * size) for at in range(count)]
    loads = [(address, offset, length) for kind, _, offset, address, _, length in headers if kind == _LOAD]
    dynamic = next((offset, length) for kind, _, offset, _, _, length in headers if kind == _DYNAMIC)
    facts = dict(struct.iter_unpack("<QQ", data[dynamic[0] : sum(dynamic)]))
    strings, symbols = (_in_file(loads, facts[key]) for key in (_STRINGS, _SYMBOLS))
    for table, length in ((_RELOCATIONS, _RELOCATIONS_SIZE), (_CALLS, _CALLS_SIZE)):
        if table not in facts:
            continue
        start = _in_file(loads, facts[table])
        for place, info, _ in struct.iter_unpack("<QQq", data[start : start + facts[length]]):
            if info & 0xFFFFFFFF in _IS_ADDRESS[machine]:
                name = strings + struct.unpack_from("<I", data, symbols + 24 * (info >> 32))[0]
                yield data[name : data.find(b"\0", name)].decode("ascii", "replace"), place


def _in_file(loads: list[Segment], address: int) -> int:
    return next(address - start + offset for start, offset, length in loads if start <= address < start + length)
