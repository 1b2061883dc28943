"""What the processes that share one model agree on: who they are, what went wrong, seeds, and how much memory there is.

They run the same program and must take the same decisions, for each waits for the others wherever a layer is shared.
So what differs from one machine to the next is exchanged once, and taken from there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args
from zlib import crc32

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, machine
from lens_tui.records.sanitise import one_line

ShardMode = Literal["tensor", "pipeline"]
_TEXT = 600
_MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Shared:
    """How a model is shared: by ``tensor`` (a slice of every layer each) or ``pipeline`` (some layers each).

    ``rank`` is this process's number among ``size``; ``group`` is MLX's.
    """

    mode: ShardMode
    rank: int
    size: int
    group: Any

    def gathered(self, part: mx.array) -> mx.array:
        """A tensor (batch, tokens, width) of which each process has some of the columns, whole in all of them."""
        parts: Any = mx.distributed.all_gather(part[None], group=self.group)
        return mx.concatenate(list(parts), axis=-1)

    def part(self, whole: mx.array) -> mx.array:
        """This process's columns of a tensor (batch, tokens, width)."""
        return mx.split(whole, self.size, axis=-1)[self.rank]

    def refuse(self, what: str) -> LensError:
        """The error that says that ``what`` needs the whole model in one process."""
        return LensError(
            f"{what} cannot be had of a model that {self.size} processes share ({self.mode}).",
            "Load it whole, without shard.",
        )


@dataclass
class _Agreed:
    """What this process's group has agreed on; nothing as long as no model is shared."""

    group: Any = None
    memory: int | None = None


_agreed = _Agreed()


def check_shard(shard: str | None) -> ShardMode | None:
    """``shard`` if it is one of the words, or ``None``; raises :class:`LensError` if not."""
    known: dict[str, ShardMode] = {word: word for word in get_args(ShardMode)}
    if shard is not None and shard not in known:
        raise LensError(f"shard cannot be {one_line(str(shard), 40)!r}.", "Use 'tensor', 'pipeline' or None.")
    return known[shard] if shard is not None else None


def join(mode: ShardMode) -> Shared:
    """Join the group of processes that a launcher started. Raises :class:`LensError` where this is the only one."""
    # A single process of an MPI that is merely installed is a group too, and would come before NCCL's.
    backend: Any = "nccl" if os.environ.get("NCCL_HOST_IP") else "any"
    group: Any = mx.distributed.init(backend=backend)
    if group.size() < 2:
        raise LensError(
            "A model can be shared by several processes only, and this is the only one.",
            "Start them with mlx.launch, as `mlx.launch -n 2 --backend ring mlx-lens-tui ...`.",
        )
    _agreed.group = group
    return Shared(mode, group.rank(), group.size(), group)


@contextmanager
def shared_loading(shard: str | None) -> Iterator[Shared | None]:
    """Load a model inside, each process its part; what fails in one of them fails in all, with its sentence.

    Nothing inside may be shared work. Gives how the model is shared, ``None`` where ``shard`` is.
    """
    mode = check_shard(shard)
    if mode is None:
        yield None
        return
    shared = join(mode)
    failed: Exception | None = None
    try:
        yield shared
    except Exception as error:
        failed = error
    message = "" if failed is None else str(failed) or type(failed).__name__
    heard = _exchange(shared, one_line(message, _TEXT))
    found = failed
    for rank, said in enumerate(heard):
        if said and found is None:
            found = LensError(f"Process {rank} of {shared.size} failed: {said}")
    if found is not None:
        if isinstance(found, LensError):
            found.reported_elsewhere = shared.rank > 0
        raise found
    _agree_on_memory(shared)


def _exchange(shared: Shared, text: str) -> list[str]:
    raw = text.encode()[: 4 * _TEXT]
    found = numbers_of_all(shared, np.frombuffer(raw.ljust(4 * _TEXT, b"\0"), np.uint8).astype(np.int32))
    return [row.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore") for row in found]


def numbers_of_all(shared: Shared, own: Any) -> Any:
    """A row of whole numbers of each process, (processes, numbers): by a sum, which every back end of MLX has.

    ``own`` are this process's, below 2^31, as many in each.
    """
    table = np.zeros((shared.size, len(own)), np.int32)
    table[shared.rank] = own
    return np.array(mx.distributed.all_sum(mx.array(table), group=shared.group))


def bytes_of_first(shared: Shared, own: bytes, length: int) -> bytes:
    """``length`` bytes that rank 0 gives as ``own``, in every process."""
    words = np.zeros(-(-length // 4), np.int32)
    if shared.rank == 0:
        words = np.frombuffer(own.ljust(4 * len(words), b"\0"), np.int32)
    found = np.array(mx.distributed.all_sum(mx.array(words), group=shared.group))
    return found.astype(np.int32).tobytes()[:length]


def _agree_on_memory(shared: Shared) -> None:
    """From now on the memory that is free is the least that any process has now; those of one machine divide it."""
    host = crc32(socket.gethostname().encode()) & 0x7FFFFFFF
    found = numbers_of_all(shared, [host, memory_now() // _MIB])
    cpu = mx.default_device().type == mx.DeviceType.cpu
    beside = [int((found[:, 0] == name).sum()) if cpu else 1 for name in found[:, 0]]
    _agreed.memory = min(int(free) * _MIB // count for free, count in zip(found[:, 1], beside, strict=True))


def memory_now() -> int:
    """Bytes that MLX can have on its device now: on a GPU up to its own limit, else what is free on the machine."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return machine.free_memory() + mx.get_cache_memory()
    return max(0, mx.get_memory_limit() - mx.get_active_memory())


def agreed_memory() -> int | None:
    """What the processes agreed to take for free memory; ``None`` where no model is shared."""
    return _agreed.memory


def agreed_seed(own: int) -> int:
    """The seed of rank 0 in every process that shares a model (below 2^31); elsewhere ``own``."""
    if _agreed.group is None:
        return own
    mine = own & 0x7FFFFFFF if _agreed.group.rank() == 0 else 0
    return int(mx.distributed.all_sum(mx.array(mine, dtype=mx.int32), group=_agreed.group))
