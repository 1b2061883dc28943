"""All activations by feature, strongest first, sorted out of core: two passes over the disk, bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, disk

from .index_settings import (
    DEFINITIONS,
    FORMAT,
    N_OCTAVES,
    TEXT,
    IndexSettings,
    kind_for,
    narrow,
    nobody,
    read_manifest,
    types_of,
)
from .tables import TokenTable
from .tally import NOBODY, SPECIAL, START, StoredPart, Tally, writing

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
    tokens, values = (
        _new_array(work / "feature_tokens.npy", number, total),
        _new_array(work / "feature_values.npy", kind, total),
    )
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


def _new_array(path: Path, kind: Any, n: int) -> NDArray[Any]:
    if n == 0:
        np.save(path, np.zeros(0, kind))
        return np.zeros(0, kind)
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(n,))


_QUERIES = 2_000_000


def write_windows(work: Path, settings: IndexSettings, kind: Any, chunk: int) -> None:
    """Write ``example_windows.npy``, ``(width, top_k, window)``: the feature at the tokens around each example.

    The peak is at place ``before``; places beyond the example's own sequence, and tokens where the feature is
    silent or that are not counted, hold 0.
    """
    tokens = np.load(work / "example_tokens.npy", mmap_mode="r")
    width, k = tokens.shape
    path = work / "example_windows.npy"
    windows = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(width, k, settings.window))
    starts = np.load(work / "sequence_starts.npy")
    rows = _Rows(work)
    flat = tokens.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[: np.searchsorted(flat[order], nobody(flat.dtype))]
    view = windows.reshape(width * k, settings.window)
    for low, high in _chunks(rows.ends, starts, chunk):
        a, b = np.searchsorted(flat[order], (low, high))
        keys, values = rows.sorted_pairs(low, high)
        step = max(1, _QUERIES // settings.window)
        for start in range(a, b, step):
            some = order[start : min(start + step, b)]
            view[some] = _around(some // k, flat[some].astype(np.int64), starts, high, keys, values, settings)
    windows.flush()


class _Rows:
    """The activations by token of an index being written."""

    def __init__(self, work: Path) -> None:
        self.ends = np.load(work / "row_ends.npy", mmap_mode="r")
        self.features = np.load(work / "row_features.npy", mmap_mode="r")
        self.values = np.load(work / "row_values.npy", mmap_mode="r")

    def sorted_pairs(self, low: int, high: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
        """Of tokens low..high: sorted ``feature << 32 | token`` and the values in that order."""
        first = int(self.ends[low - 1]) if low else 0
        ends = self.ends[low:high].astype(np.int64)
        counts = np.diff(np.concatenate([[first], ends]))
        token = np.repeat(np.arange(low, high, dtype=np.uint64), counts)
        last = int(ends[-1]) if len(ends) else first
        keys = (self.features[first:last].astype(np.uint64) << np.uint64(32)) | token
        order = np.argsort(keys)
        return keys[order], self.values[first:last][order]


def _chunks(ends: NDArray[Any], starts: NDArray[Any], chunk: int) -> list[tuple[int, int]]:
    """Runs of whole sequences with about ``chunk`` activations each, as (first token, end token)."""
    n = len(ends)
    if n == 0:
        return []
    before = np.concatenate([[0], ends[starts[1:].astype(np.int64) - 1].astype(np.int64)])
    first_of = np.flatnonzero(np.diff(before // chunk, prepend=-1))
    edges = [int(starts[i]) for i in first_of] + [n]
    return list(pairwise(edges))


def _around(
    feature: NDArray[np.int64],
    peak: NDArray[np.int64],
    starts: NDArray[Any],
    high: int,
    keys: NDArray[np.uint64],
    values: NDArray[Any],
    settings: IndexSettings,
) -> NDArray[Any]:
    """Windows ``(n, window)`` of features around tokens, from the sorted pairs of one chunk."""
    sequence = np.searchsorted(starts, peak, side="right") - 1
    begin = starts[sequence].astype(np.int64)
    end = np.where(sequence + 1 < len(starts), starts[np.minimum(sequence + 1, len(starts) - 1)], high).astype(np.int64)
    at = peak[:, None] + np.arange(-settings.before, settings.after + 1)
    inside = (at >= begin[:, None]) & (at < end[:, None])
    wanted = (feature.astype(np.uint64)[:, None] << np.uint64(32)) | np.where(inside, at, 0).astype(np.uint64)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = inside & (keys[place] == wanted)
    return np.where(found, values[place], values.dtype.type(0))


CHUNK = 8_000_000
"""Activations held in memory at a time."""

MAX_TOKENS = 0xFFFF_FFFF


def finish(
    folders: Sequence[Path],
    out: Path,
    tables: Sequence[TokenTable],
    *,
    named_by_key: bool = False,
    remove: bool = False,
) -> Path:
    """Write the index of some parts that together are a whole pass; it appears at ``out`` all at once.

    With ``named_by_key`` it is ``out/<key>``. Raises :class:`LensError` for parts that do not fit together.
    """
    parts = _in_order([StoredPart.open(folder) for folder in folders])
    target = out / parts[0].key if named_by_key else out
    if target.exists():
        raise LensError(f"There is an index at {target.name} already.", "It is the same one: use it.")
    for table in tables:
        if len(table.promoted_ids) != parts[0].identity.width:
            raise LensError(
                f"The token table has {len(table.promoted_ids)} rows for {parts[0].identity.width} features."
            )
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(parts, work, tables)
            os.replace(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    if remove:
        for folder in folders:
            shutil.rmtree(folder)
    return target


def remove_leftovers(out: Path) -> None:
    """Delete what a process killed in :func:`finish` left beside ``out``. Only for who knows that none is running."""
    for folder in out.parent.glob(f".{out.name}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def share_text(indexes: Sequence[Path]) -> Path:
    """Keep the text of indexes over the same one once, in a folder ``text-<hash>`` beside them; returns that folder.

    Each index then needs that folder wherever it goes. Nothing may have them open. Raises :class:`LensError` for
    indexes that do not lie beside each other, or over different texts.
    """
    manifests = {Path(folder): read_manifest(Path(folder)) for folder in indexes}
    homes = {folder.resolve().parent for folder in manifests}
    sums = {tuple(str(facts["files"].get(f"{name}.npy")) for name in TEXT) for facts in manifests.values()}
    if len(homes) != 1 or len(sums) != 1:
        raise LensError("These indexes do not share a text.", "Give indexes over the same text, side by side.")
    digest = hashlib.sha256(" ".join(sums.pop()).encode()).hexdigest()
    home = homes.pop() / f"text-{digest[:16]}"
    with writing(home):
        home.mkdir(exist_ok=True)
        for folder, manifest in manifests.items():
            own = {name: folder / f"{name}.npy" for name in TEXT if "text" not in manifest}
            for name, file in own.items():
                if not (home / f"{name}.npy").exists():
                    shutil.copyfile(file, home / f".{name}")
                    os.replace(home / f".{name}", home / f"{name}.npy")
            disk.write_text(folder / "manifest.json", json.dumps({**manifest, "text": home.name}, indent=1))
            for file in own.values():
                file.unlink()
    return home


def _in_order(parts: list[StoredPart]) -> list[StoredPart]:
    parts = sorted(parts, key=lambda part: (part.state.first, part.state.stop))
    expected = 0
    for part in parts:
        if part.key != parts[0].key:
            raise LensError(f"{part.folder.name} belongs to another index than {parts[0].folder.name}.")
        if not part.state.done:
            raise LensError(f"{part.folder.name} is not finished.", "Run its `index --shard` again: it continues.")
        if part.state.first != expected or part.state.total != parts[0].state.total:
            raise LensError(f"Blocks from {expected} on are missing or duplicated.", "Give every shard once.")
        expected = part.state.stop
    if expected != parts[-1].state.total:
        raise LensError(f"Blocks from {expected} on are missing.", "Give every shard once.")
    return parts


def _write(parts: Sequence[StoredPart], work: Path, tables: Sequence[TokenTable]) -> None:
    settings, width = parts[0].settings, parts[0].identity.width
    n_tokens = sum(part.state.n_tokens for part in parts)
    if n_tokens >= MAX_TOKENS:
        raise LensError(f"The corpus has {n_tokens} tokens; an index holds fewer than {MAX_TOKENS}.")
    tally = parts[0].tally()
    for part in parts[1:]:
        tally.merge(part.tally())
    kind = _value_kind(tally)
    _write_tokens(parts, work, n_tokens)
    _write_rows(parts, work, n_tokens, kind)
    octaves = _write_statistics(tally, work, np.concatenate([part.blocks for part in parts]), n_tokens)
    del tally
    write_windows(work, settings, kind, CHUNK)
    if settings.full:
        write_by_feature(work, width, kind, CHUNK)
    else:
        for name in ("row_ends", "row_features", "row_values"):
            (work / f"{name}.npy").unlink()
    for table in tables:
        table.save(work / "tokens_of" / table.convention)
    _write_manifest(parts, work, {"n_tokens": n_tokens, "octaves": octaves, "values": np.dtype(kind).name}, tables)


def _value_kind(tally: Tally) -> Any:
    """float16 where it holds every value to its usual precision, else float32."""
    largest = float(tally.max.max(initial=0.0))
    return np.float16 if largest < 65_504 and tally.smallest >= 2.0**-14 else np.float32


def _write_tokens(parts: Sequence[StoredPart], work: Path, n_tokens: int) -> None:
    largest = max(int(part.column("tokens").max(initial=0)) for part in parts)
    tokens, special = _new(work, "tokens", kind_for(largest), n_tokens), _new(work, "special", np.bool_, n_tokens)
    starts: list[NDArray[Any]] = []
    documents, offsets = [], []
    at = 0
    for part in parts:
        n = part.state.n_tokens
        flags = part.column("flags")
        tokens[at : at + n] = part.column("tokens")
        special[at : at + n] = flags & SPECIAL != 0
        first = np.flatnonzero(flags & START)
        last = np.append(first[1:], n)[: len(first)] - 1
        starts.append(first + at)
        documents.append(part.column("documents")[last])
        offsets.append(part.column("offsets")[last].astype(np.int64) - (last - first))
        at += n
    np.save(work / "sequence_starts.npy", narrow(np.concatenate(starts)))
    np.save(work / "sequence_documents.npy", narrow(np.concatenate(documents)))
    np.save(work / "sequence_offsets.npy", np.concatenate(offsets).astype(np.int64))


def _write_rows(parts: Sequence[StoredPart], work: Path, n_tokens: int, kind: Any) -> None:
    """The activations by token: those of token t are ``[row_ends[t - 1], row_ends[t])``."""
    n_active = sum(part.state.n_active for part in parts)
    ends = _new(work, "row_ends", kind_for(n_active), n_tokens)
    feature = kind_for(parts[0].identity.width - 1)
    features, values = _new(work, "row_features", feature, n_active), _new(work, "row_values", kind, n_active)
    at = done = 0
    for part in parts:
        for tokens, active in part.spans(CHUNK):
            counts = part.column("active")[tokens].astype(np.uint64)
            ends[at : at + len(counts)] = np.uint64(done) + np.cumsum(counts, dtype=np.uint64)
            n = active.stop - active.start
            features[done : done + n] = part.column("features")[active]
            values[done : done + n] = part.column("values")[active]
            at, done = at + len(counts), done + n


def _write_statistics(tally: Tally, work: Path, blocks: NDArray[np.int64], n_tokens: int) -> tuple[int, int]:
    """Write them; the octaves of activation that histogram and sample hold: those in which anything was active."""
    first, end = octaves = _octaves(tally.histogram)
    np.save(work / "count.npy", narrow(tally.count))
    np.save(work / "sum.npy", tally.sum.value)
    np.save(work / "sumsq.npy", tally.sumsq.value)
    np.save(work / "max.npy", tally.max)
    np.save(work / "histogram.npy", narrow(tally.histogram[:, 2 * first : 2 * end]))
    np.save(work / "example_peaks.npy", tally.example_peaks)
    np.save(work / "example_tokens.npy", _token_of(tally.top.address, blocks, n_tokens))
    shape = (tally.width, N_OCTAVES, tally.settings.sample_per_bin)
    sampled = tally.sample.address.reshape(shape)[:, first:end]
    np.save(work / "sample_tokens.npy", _token_of(sampled, blocks, n_tokens))
    np.save(work / "sample_values.npy", tally.sample.extra.view(np.float32).reshape(shape)[:, first:end])
    return octaves


def _octaves(histogram: NDArray[np.uint32]) -> tuple[int, int]:
    used = np.flatnonzero(histogram.any(0)) // 2
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)


def _token_of(address: NDArray[np.uint64], blocks: NDArray[np.int64], n_tokens: int) -> NDArray[Any]:
    """Token numbers of addresses (block, row); all bits set where the place is free."""
    begin = np.cumsum(blocks[:, 1]) - blocks[:, 1] if len(blocks) else np.zeros(1, np.int64)
    free = address == NOBODY
    block = np.where(free, 0, address >> np.uint64(32)).astype(np.int64)
    token = begin[block] + (address & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    kind = kind_for(n_tokens)
    return np.where(free, nobody(kind), token).astype(kind)


def _write_manifest(
    parts: Sequence[StoredPart], work: Path, facts: dict[str, Any], tables: Sequence[TokenTable]
) -> None:
    settings = parts[0].settings
    n_counted = sum(part.state.n_counted for part in parts)
    overflowed = sum(part.state.n_overflowed for part in parts)
    manifest = {
        "format": FORMAT,
        "key": parts[0].key,
        "identity": asdict(parts[0].identity),
        "settings": asdict(settings),
        "definitions": DEFINITIONS,
        **facts,
        "n_counted": n_counted,
        "n_active": sum(part.state.n_active for part in parts),
        "n_overflowed": overflowed,
        "notes": _notes(
            settings.include_special, facts["n_tokens"] - n_counted, overflowed, n_counted, settings.max_active
        ),
        "conventions": [table.convention for table in tables],
        "files": {path.relative_to(work).as_posix(): checksum(path) for path in sorted(work.rglob("*.npy"))},
        "types": types_of(work),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with (work / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _notes(included: bool, left_out: int, overflowed: int, counted: int, limit: int) -> list[str]:
    notes = ["BOS and other special tokens are counted."]
    if not included:
        notes = [f"{left_out} BOS and other special tokens are left out of every number."]
    if overflowed:
        share = 100 * overflowed / max(counted, 1)
        notes.append(
            f"{overflowed} of {counted} tokens ({share:.2g} %) had more than {limit} active features; only the "
            f"strongest {limit} were read there."
        )
    return notes


def _new(work: Path, name: str, kind: Any, n: int) -> NDArray[Any]:
    path = work / f"{name}.npy"
    if n == 0:  # an empty file cannot be mapped
        np.save(path, np.zeros(0, kind))
        return np.zeros(0, kind)
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(n,))


def checksum(path: Path) -> str:
    """The BLAKE2b sum of a file, as a manifest lists it."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
