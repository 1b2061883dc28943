"""The working folder of one SAE's pass over (a shard of) a corpus: what is on disk while an index is built.

``tokens`` and activations are appended to plain files, statistics live in
memory and are saved now and then. A checkpoint is the file ``state.json``: it
names the saved statistics and says how long the plain files were, so that
whatever was written after it is cut off when the pass is taken up again.
"""

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
from lens_tui.records.read_files import read_json, regular_size
from lens_tui.records.sanitise import one_line

from .settings import FORMAT, Identity, IndexSettings, index_key
from .tally import Activations, Tally

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


class Part:
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

    def __enter__(self) -> Part:
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
