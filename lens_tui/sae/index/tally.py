"""What one pass over a corpus counts, whatever the order of the terms of its sums, and a part of a corpus on disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, disk
from lens_tui.records.read_files import explained, open_regular, read_json, regular_size
from lens_tui.records.sanitise import one_line

from .index_settings import FORMAT, N_BINS, N_OCTAVES, Identity, IndexSettings, bin_of, index_key

_ONE = 1 << 32


class ExactSum:
    """A sum for each of ``n`` features in 96-bit fixed point: whole part and a fraction in units of 2**-32.

    Every term is rounded to 2**-32 once; the additions are of integers, hence
    exact, so that shards added in any order give the same bits. Terms must lie
    within 2**52 of zero.
    """

    def __init__(self, n: int) -> None:
        self.whole: NDArray[np.int64] = np.zeros(n, np.int64)
        self.part: NDArray[np.int64] = np.zeros(n, np.int64)

    def add(self, ids: NDArray[np.int64], starts: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add to feature ``ids[i]`` (distinct) the values from ``starts[i]`` up to the next start."""
        if not len(ids):
            return
        floor = np.floor(values)
        part = np.rint((values - floor) * _ONE).astype(np.int64)
        self.whole[ids] += np.add.reduceat(floor.astype(np.int64), starts)
        self.part[ids] += np.add.reduceat(part, starts)
        self._carry(ids)

    def merge(self, other: ExactSum) -> None:
        """Add another's sums."""
        self.whole += other.whole
        self.part += other.part
        self._carry(np.arange(len(self.whole)))

    @property
    def value(self) -> NDArray[np.float64]:
        """The sums, rounded to float64."""
        return self.whole + self.part / _ONE

    def _carry(self, ids: NDArray[np.int64]) -> None:
        self.whole[ids] += self.part[ids] >> 32
        self.part[ids] &= _ONE - 1


U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

NOBODY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_WORST = np.uint32(0xFFFF_FFFF)

PENDING = 4_000_000
"""Entries that wait in memory before they are sorted in."""


class SmallestKeeper:
    """Keeps the ``k`` entries of smallest ``(rank, address)`` in each of ``n_groups`` groups.

    An entry is a group, a ``rank`` (uint32), an ``address`` (uint64, unique in
    its group) and an ``extra`` (uint32). With ``distinct``, entries of a group
    that share their ``extra`` count as one, of which the best is kept. Both are
    associative: any split of the stream, merged in any order, gives the same
    arrays. Free places hold the address ``NOBODY``.

    Entries wait in a buffer of about ``PENDING`` and are sorted in together.
    """

    def __init__(self, n_groups: int, k: int, *, distinct: bool) -> None:
        self.k = k
        self.distinct = distinct
        self.rank: U32 = np.full((n_groups, k), _WORST, np.uint32)
        self.address: U64 = np.full((n_groups, k), NOBODY, np.uint64)
        self.extra: U32 = np.zeros((n_groups, k), np.uint32)
        self._pending_limit = PENDING
        self._pending: list[tuple[I64, U32, U64, U32]] = []
        self._waiting = 0

    def offer(self, group: I64, rank: U32, address: U64, extra: U32) -> None:
        """Take entries up, all arrays of one length."""
        if self.k == 0:
            return
        good = np.flatnonzero(rank <= self.rank[group, -1])
        if not len(good):
            return
        self._pending.append((group[good], rank[good], address[good], extra[good]))
        self._waiting += len(good)
        if self._waiting >= self._pending_limit:
            self.flush()

    def merge(self, other: SmallestKeeper) -> None:
        """Take up everything another keeper of the same shape holds."""
        other.flush()
        step = max(1, self._pending_limit // max(1, other.k))
        for start in range(0, len(other.rank), step):
            rows, places = np.nonzero(other.address[start : start + step] != NOBODY)
            rows = rows + start
            self.offer(rows, other.rank[rows, places], other.address[rows, places], other.extra[rows, places])
        self.flush()

    def flush(self) -> None:
        """Sort what waits into the arrays."""
        if not self._pending:
            return
        group, rank, address, extra = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        touched = np.unique(group)
        rows, places = np.nonzero(self.address[touched] != NOBODY)
        rows = touched[rows]
        group = np.concatenate([group, rows])
        rank = np.concatenate([rank, self.rank[rows, places]])
        address = np.concatenate([address, self.address[rows, places]])
        extra = np.concatenate([extra, self.extra[rows, places]])
        order = np.lexsort((address, (group.astype(np.uint64) << np.uint64(32)) | rank))
        if self.distinct:
            order = order[_first_of_each(group[order], extra[order])]
        place = _place_in_group(group[order])
        order, place = order[place < self.k], place[place < self.k]
        group = group[order]
        self.rank[touched], self.address[touched], self.extra[touched] = _WORST, NOBODY, 0
        self.rank[group, place] = rank[order]
        self.address[group, place] = address[order]
        self.extra[group, place] = extra[order]


def _first_of_each(group: I64, extra: U32) -> I64:
    """The places, in order, of the first entry of every (group, extra)."""
    pair = (group.astype(np.uint64) << np.uint64(32)) | extra
    _, first = np.unique(pair, return_index=True)
    return np.sort(first)


def _place_in_group(group: I64) -> I64:
    """0, 1, 2 ... within each run of equal values."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    lengths = np.diff(np.append(starts, len(group)))
    return np.arange(len(group)) - np.repeat(starts, lengths)


_TOP = np.uint32(0x7FFF_FFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """The active features of some tokens, token by token, all arrays ``(nnz,)`` but the last two.

    ``row`` is the token's place in its block, ``feature`` and ``value`` what is
    active there (value > 0, strongest first within a token). ``document`` and
    ``offset`` have shape ``(n,)``: the tokens' place in the corpus.
    """

    block: int
    row: NDArray[np.int64]
    feature: NDArray[np.uint32]
    value: NDArray[np.float32]
    document: NDArray[np.uint32]
    offset: NDArray[np.uint32]


def bytes_per_feature(settings: IndexSettings) -> int:
    """What a :class:`Tally` takes in memory for each feature, at least."""
    entry = 4 + 8 + 4  # rank, address and extra of a keeper
    sums = 8 + 2 * 16 + 4  # count, the two exact sums, the maximum
    return sums + 4 * N_BINS + entry * (settings.top_k + N_OCTAVES * settings.sample_per_bin)


class Tally:
    """Count, sums, maximum, histogram, top examples and a sample for each of ``width`` features.

    Everything in it is associative: ``merge`` of the tallies of any split of a
    corpus gives the arrays of one pass, to the bit. Takes
    :func:`bytes_per_feature` of memory a feature.
    """

    def __init__(self, width: int, settings: IndexSettings) -> None:
        self.width = width
        self.settings = settings
        self.count: NDArray[np.int64] = np.zeros(width, np.int64)
        self.sum = ExactSum(width)
        self.sumsq = ExactSum(width)
        self.max: NDArray[np.float32] = np.zeros(width, np.float32)
        self.histogram: NDArray[np.uint32] = np.zeros((width, N_BINS), np.uint32)
        self.top = SmallestKeeper(width, settings.top_k, distinct=True)
        self.sample = SmallestKeeper(width * N_OCTAVES, settings.sample_per_bin, distinct=False)
        self.smallest = np.float32(np.inf)

    def update(self, found: Activations) -> None:
        """Take up the activations of a block."""
        if not len(found.value):
            return
        self.smallest = min(self.smallest, found.value.min())
        feature = found.feature.astype(np.int64)
        bins = bin_of(found.value)
        np.add.at(self.histogram.reshape(-1), feature * N_BINS + bins, np.uint32(1))
        if self.settings.sample_per_bin:
            priority = _hash(self.settings.seed, found)
            address = _address(found.block, found.row)
            self.sample.offer(feature * N_OCTAVES + bins // 2, priority, address, found.value.view(np.uint32))
        self._by_feature(found, feature)

    def _by_feature(self, found: Activations, feature: NDArray[np.int64]) -> None:
        document = found.document[found.row]
        names, local = np.unique(document, return_inverse=True)
        bits = found.value.view(np.uint32)
        group = feature * len(names) + local.reshape(-1)
        if self.width * len(names) < 2**33:
            order = np.argsort((group.astype(np.uint64) << np.uint64(31)) | (_TOP - bits), kind="stable")
        else:
            order = np.lexsort((_TOP - bits, group))
        feature, group = feature[order], group[order]
        value = found.value[order].astype(np.float64)
        starts = _starts(feature)
        ids = feature[starts]
        self.count[ids] += np.diff(np.append(starts, len(feature)))
        self.sum.add(ids, starts, value)
        self.sumsq.add(ids, starts, value * value)
        self.max[ids] = np.maximum(self.max[ids], np.maximum.reduceat(found.value[order], starts))
        best = _starts(group)  # the strongest token of every document
        pick = order[best]
        self.top.offer(feature[best], _TOP - bits[pick], _address(found.block, found.row[pick]), document[pick])

    def merge(self, other: Tally) -> None:
        """Take up the tally of another part of the corpus, made with the same settings."""
        if other.width != self.width or other.settings != self.settings:
            raise LensError("These parts of an index were made for different SAEs or with different settings.")
        self.count += other.count
        self.sum.merge(other.sum)
        self.sumsq.merge(other.sumsq)
        np.maximum(self.max, other.max, out=self.max)
        self.histogram += other.histogram
        self.top.merge(other.top)
        self.sample.merge(other.sample)
        self.smallest = min(self.smallest, other.smallest)

    @property
    def example_peaks(self) -> NDArray[np.float32]:
        """The values of the top examples, ``(width, top_k)``, 0 in free places."""
        bits = _TOP - np.minimum(self.top.rank, _TOP)
        return bits.view(np.float32)

    def arrays(self) -> dict[str, Any]:
        """Everything needed to continue later, as arrays."""
        self.top.flush()
        self.sample.flush()
        return {name: _reach(self, name) for name in _STATE} | {"smallest": np.asarray(self.smallest, np.float32)}

    @classmethod
    def load(cls, path: Path, width: int, settings: IndexSettings) -> Tally:
        """A tally from a file written with ``np.savez(**tally.arrays())``."""
        tally = cls(width, settings)
        try:
            with explained(path), open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
                for name in _STATE:
                    target = _reach(tally, name)
                    if stored[name].shape != target.shape or stored[name].dtype != target.dtype:
                        raise ValueError(name)
                    target[...] = stored[name]
                tally.smallest = np.float32(stored["smallest"])
        except LensError as error:
            name = one_line(path.name, 60)
            raise LensError(f"The state of an index in {name} cannot be read.", "Build it again.") from error
        return tally


_STATE = (
    "count",
    "sum.whole",
    "sum.part",
    "sumsq.whole",
    "sumsq.part",
    "max",
    "histogram",
    "top.rank",
    "top.address",
    "top.extra",
    "sample.rank",
    "sample.address",
    "sample.extra",
)


def _reach(tally: Tally, name: str) -> NDArray[Any]:
    target: Any = tally
    for part in name.split("."):
        target = getattr(target, part)
    return target  # type: ignore[no-any-return]


def _starts(group: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))


def _address(block: int, row: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.uint64(block << 32) | row.astype(np.uint64)


def _hash(seed: int, found: Activations) -> NDArray[np.uint32]:
    """The upper half of splitmix64 over (seed, document, offset, feature): a fixed random order of tokens."""
    with np.errstate(over="ignore"):
        place = (found.document.astype(np.uint64) << np.uint64(32)) | found.offset
        mixed = _splitmix(_splitmix(place + np.uint64(seed) * np.uint64(0xD1342543DE82EF95))[found.row] ^ found.feature)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


COLUMNS: dict[str, Any] = {
    "tokens": np.uint32,
    "documents": np.uint32,
    "offsets": np.int32,
    "flags": np.uint8,  # 1: special, 2: first token of a sequence
    "active": np.uint16,  # active features of the token
    "features": np.uint32,
    "values": np.float32,
}
"""What is appended: the first five one entry a token, the last two one an activation."""

SPECIAL, START = 1, 2
_MAX_STATE = 256 << 20
"""Bytes of ``state.json``, which has a row for every block of the corpus."""


@dataclass(frozen=True, slots=True)
class PartState:
    """How far a part is. ``stop`` is the block it ends before, ``total`` the blocks of the whole corpus."""

    first: int
    next: int
    stop: int
    total: int
    n_tokens: int = 0
    n_counted: int = 0
    n_active: int = 0
    n_overflowed: int = 0
    tally: str = ""

    @property
    def done(self) -> bool:
        """Whether every block of the part has been read."""
        return self.next == self.stop


class IndexPart:
    """A part being built. Use as a context manager: it holds a lock and open files."""

    def __init__(self, folder: Path, identity: Identity, settings: IndexSettings, span: tuple[int, int, int]) -> None:
        """``span`` is the first block, the block to end before, and the blocks of the whole corpus."""
        self.folder = folder
        self.identity = identity
        self.settings = settings
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(folder / "lock")
        self._blocks: list[tuple[int, int, int]] = []
        self._torn = False
        if (folder / "state.json").exists():
            self.state, self.tally = self._resume(span)
        else:
            self.state = PartState(span[0], span[0], span[1], span[2])
            self.tally = Tally(identity.width, settings)
        self._files: dict[str, IO[bytes]] = {name: _open_at(folder / name, self._length(name)) for name in COLUMNS}
        if not (folder / "state.json").exists():
            self.checkpoint()

    def __enter__(self) -> IndexPart:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._lock.close()

    def add(self, found: Activations, columns: dict[str, NDArray[Any]], counted: int, overflowed: int) -> None:
        """Take up a block: its activations and the per-token ``columns`` (without ``active``)."""
        self._torn = True  # an interrupt from here on leaves a block half taken up
        n_tokens = len(columns["tokens"])
        active = np.bincount(found.row, minlength=n_tokens)
        columns = columns | {"active": active, "features": found.feature, "values": found.value}
        with writing(self.folder):
            for name, kind in COLUMNS.items():
                self._files[name].write(np.ascontiguousarray(columns[name], kind).tobytes())
        self.tally.update(found)
        self._blocks.append((found.block, n_tokens, len(found.value)))
        state = self.state
        self.state = replace(
            state,
            next=found.block + 1,
            n_tokens=state.n_tokens + n_tokens,
            n_counted=state.n_counted + counted,
            n_active=state.n_active + len(found.value),
            n_overflowed=state.n_overflowed + overflowed,
        )
        self._torn = False

    def checkpoint(self) -> None:
        """Make everything so far survive a kill. Does nothing if a block was interrupted half way."""
        if self._torn:
            return
        with writing(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        old = self.state.tally
        self.state = replace(self.state, tally=f"tally-{self.state.next}.npz")
        disk.write_with(self.folder / self.state.tally, lambda file: np.savez(file, **self.tally.arrays()))
        facts = {
            "format": FORMAT,
            "key": index_key(self.identity, self.settings),
            "identity": asdict(self.identity),
            "settings": asdict(self.settings),
            "state": asdict(self.state),
            "blocks": self._blocks,
        }
        disk.write_json(self.folder / "state.json", facts)
        if old and old != self.state.tally:
            (self.folder / old).unlink(missing_ok=True)

    def _resume(self, span: tuple[int, int, int]) -> tuple[PartState, Tally]:
        stored = StoredPart.open(self.folder)
        same = stored.key == index_key(self.identity, self.settings)
        if not same or (stored.state.first, stored.state.stop, stored.state.total) != span:
            raise LensError(
                f"The folder {self.folder.name} holds a part of another index.",
                "Give another place, or remove it.",
            )
        self._blocks = [tuple(row) for row in stored.blocks.tolist()]
        return stored.state, stored.tally()

    def _length(self, name: str) -> int:
        n = self.state.n_active if name in ("features", "values") else self.state.n_tokens
        return n * int(np.dtype(COLUMNS[name]).itemsize)


@dataclass(frozen=True, slots=True, eq=False)
class StoredPart:
    """A part on disk, to be read. ``blocks`` has rows (number, tokens, activations)."""

    folder: Path
    key: str
    identity: Identity
    settings: IndexSettings
    state: PartState
    blocks: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> StoredPart:
        """Read ``state.json``; raises :class:`LensError` if the folder is not a part of an index."""
        name = one_line(folder.name, 60)
        try:
            facts = read_json(folder / "state.json", _MAX_STATE)
            if facts["format"] != FORMAT:
                raise LensError(f"{name} was made by another version of this program.", "Build it again.")
            blocks = np.asarray(facts["blocks"], np.int64).reshape(-1, 3)
            state = PartState(**facts["state"])
            numbers = [value for value in asdict(state).values() if not isinstance(value, str)]
            if not all(type(value) is int and value >= 0 for value in numbers) or (blocks < 0).any():
                raise ValueError("state")
            identity, settings = Identity(**facts["identity"]), IndexSettings(**facts["settings"])
            return cls(folder, str(facts["key"]), identity, settings, state, blocks)
        except (LensError, ValueError, KeyError, TypeError, OverflowError) as error:
            if isinstance(error, LensError) and "version" in error.message:
                raise
            raise LensError(f"{name} is not a part of an index.", "Give a folder that `index` left.") from error

    def tally(self) -> Tally:
        """The statistics at the last checkpoint."""
        return Tally.load(self.folder / self.state.tally, self.identity.width, self.settings)

    def column(self, name: str) -> NDArray[Any]:
        """One of the appended files, memory-mapped, as long as it was at the last checkpoint."""
        n = self.state.n_active if name in ("features", "values") else self.state.n_tokens
        if n == 0:
            return np.zeros(0, COLUMNS[name])
        try:
            regular_size(self.folder / name)
            return np.memmap(self.folder / name, COLUMNS[name], "r", shape=(n,))
        except (LensError, OSError, ValueError) as error:
            message = f"The file {name} of {one_line(self.folder.name, 60)} is missing or cut."
            raise LensError(message, "Build it again.") from error

    def spans(self, limit: int) -> Iterator[tuple[slice, slice]]:
        """Whole blocks in order, grouped to about ``limit`` activations: (tokens, activations) of this part."""
        token = active = from_token = from_active = 0
        for _, n_tokens, n_active in self.blocks.tolist():
            if active > from_active and active + n_active - from_active > limit:
                yield slice(from_token, token), slice(from_active, active)
                from_token, from_active = token, active
            token, active = token + n_tokens, active + n_active
        if token > from_token:
            yield slice(from_token, token), slice(from_active, active)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one sentence what the disk refused."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise LensError(
            f"The index could not be written in {folder}: {reason}.",
            "Check free space and permissions; then run it again.",
        ) from error


def _open_at(path: Path, length: int) -> IO[bytes]:
    file = path.open("ab")
    if file.tell() < length:
        file.close()
        raise LensError(
            f"The file {path.name} of {path.parent.name} is cut short.", "Remove the folder and build it again."
        )
    file.truncate(length)
    return file


def _take_lock(path: Path) -> IO[bytes]:
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise LensError(
            f"Another process is building in {path.parent.name}.", "Wait for it, or give another place."
        ) from error
    return file
