"""The statistics of every feature of one SAE, kept while a corpus streams by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.read_files import explained, open_regular
from lens_tui.records.sanitise import one_line

from .exact import ExactSum
from .keeper import Keeper
from .settings import N_BINS, N_OCTAVES, IndexSettings, bin_of

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


class Tally:
    """Count, sums, maximum, histogram, top examples and a sample for each of ``width`` features.

    Everything in it is associative: ``merge`` of the tallies of any split of a
    corpus gives the arrays of one pass, to the bit. Takes about
    ``200 + 16 * top_k + 320 * sample_per_bin`` bytes a feature.
    """

    def __init__(self, width: int, settings: IndexSettings) -> None:
        self.width = width
        self.settings = settings
        self.count: NDArray[np.int64] = np.zeros(width, np.int64)
        self.sum = ExactSum(width)
        self.sumsq = ExactSum(width)
        self.max: NDArray[np.float32] = np.zeros(width, np.float32)
        self.histogram: NDArray[np.uint32] = np.zeros((width, N_BINS), np.uint32)
        self.top = Keeper(width, settings.top_k, distinct=True)
        self.sample = Keeper(width * N_OCTAVES, settings.sample_per_bin, distinct=False)
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
        """Everything needed to go on later, as arrays."""
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
            raise LensError(f"The state of an index in {name} cannot be read.", "Build it anew.") from error
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
