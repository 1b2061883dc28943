"""All activations by feature, strongest first, sorted out of core: two passes over the disk, bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import kind_for, narrow

_ENTRY = np.dtype([("feature", np.uint32), ("token", np.uint32), ("value", np.float32)])


def write_by_feature(work: Path, width: int, kind: Any, chunk: int) -> None:
    """Write ``feature_ends``, ``feature_tokens``, ``feature_values``: those of feature f lie up to ``feature_ends[f]``.

    Within a feature values fall; equal values are in token order. Activations are first dealt into buckets
    of whole features with at most ``chunk`` entries (a single feature may have more: one for each token at most),
    then each bucket is sorted in memory.
    """
    count = np.load(work / "count.npy")
    ends = np.cumsum(count, dtype=np.int64)
    np.save(work / "feature_ends.npy", narrow(ends))
    total = int(ends[-1]) if width else 0
    number = kind_for(len(np.load(work / "tokens.npy", mmap_mode="r")))
    tokens, values = _new(work / "feature_tokens.npy", number, total), _new(work / "feature_values.npy", kind, total)
    if total == 0:
        return
    bucket_of = _buckets(count, chunk)
    paths = [work / f"bucket-{i}" for i in range(int(bucket_of[-1]) + 1)]
    _deal(work, bucket_of, paths, chunk)
    at = 0
    for path in paths:
        entries = np.fromfile(path, _ENTRY)
        path.unlink()
        falling = np.uint32(0x7FFF_FFFF) - entries["value"].view(np.uint32)  # of positive floats the bits are in order
        # Buckets were filled in token order, so that a stable sort leaves equal values in it.
        order = np.argsort((entries["feature"].astype(np.uint64) << np.uint64(32)) | falling, kind="stable")
        tokens[at : at + len(order)] = entries["token"][order]
        values[at : at + len(order)] = entries["value"][order]
        at += len(order)


def _buckets(count: NDArray[Any], chunk: int) -> NDArray[np.int64]:
    """The bucket of every feature: runs of features with at most ``chunk`` entries together, if more than one."""
    bucket = np.zeros(len(count), np.int64)
    number = filled = 0
    for feature, n in enumerate(count.tolist()):
        if filled and filled + n > chunk:
            number, filled = number + 1, 0
        bucket[feature] = number
        filled += n
    return bucket


def _deal(work: Path, bucket_of: NDArray[np.int64], paths: list[Path], chunk: int) -> None:
    row_ends = np.load(work / "row_ends.npy", mmap_mode="r")
    features = np.load(work / "row_features.npy", mmap_mode="r")
    values = np.load(work / "row_values.npy", mmap_mode="r")
    for start in range(0, len(features), chunk):
        stop = min(start + chunk, len(features))
        entries = np.empty(stop - start, _ENTRY)
        entries["feature"] = features[start:stop]
        entries["token"] = np.searchsorted(row_ends, np.arange(start, stop, dtype=row_ends.dtype), side="right")
        entries["value"] = values[start:stop]
        bucket = bucket_of[entries["feature"]]
        order = np.argsort(bucket, kind="stable")
        edges = np.searchsorted(bucket[order], np.arange(len(paths) + 1))
        for i, path in enumerate(paths):
            if edges[i] < edges[i + 1]:
                with path.open("ab") as file:
                    file.write(entries[order[edges[i] : edges[i + 1]]].tobytes())


def _new(path: Path, kind: Any, n: int) -> NDArray[Any]:
    if n == 0:
        np.save(path, np.zeros(0, kind))
        return np.zeros(0, kind)
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(n,))
