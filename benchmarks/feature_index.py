"""The feature index at 262,144 features: a feature's examples and other questions, and its build, against SQLite.

The activations are synthetic (64 features a token, drawn from a skewed
distribution as in a real SAE), so that the index alone is measured and no model
is needed. SQLite holds the same examples, one row each with its context and
values as blobs, keyed (feature, place) WITHOUT ROWID: its fastest layout for
this question. Caches are warm for both; each query asks for another feature.
"""

from __future__ import annotations

import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui import FeatureIndex, IndexSettings, co_active, rank_features
from lens_tui.records.training import ActivationBlock, SourceFacts
from lens_tui.sae.index.build import IndexProgress, Target, build_index

from .machine import Options
from .report import Row, at_most, duration, of_times

PLACE = (0, "resid_post")
L0 = 64
BLOCK = 8192


class Synthetic:
    """Documents of 128 tokens; the "residual" of a token is its number, from which the encoder draws features."""

    def __init__(self, n_tokens: int) -> None:
        self.n_blocks = max(n_tokens // BLOCK, 1)
        self.places = (PLACE,)
        self.facts = SourceFacts("synthetic", "0", self.n_blocks * BLOCK // 128, n_tokens, 128, True, 1, False, 0)

    def d_model(self, place: object) -> int:
        return 1

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        for i in range(start, self.n_blocks if stop is None else stop):
            place = np.arange(BLOCK) + i * BLOCK
            offset = place % 128 - 1
            tokens = (place * 7919 % 50_000).astype(np.int32)
            yield ActivationBlock(
                i, tokens, (place // 128).astype(np.int32), offset.astype(np.int32), offset < 0, {PLACE: place}
            )

    def loss_with(self, *_: Any) -> float:
        raise NotImplementedError


class Encoder:
    """64 distinct features a token: squaring a uniform number makes low ids dense and high ids rare."""

    def __init__(self, width: int) -> None:
        self.width = width

    def top_k(self, residual: Any, k: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(int(residual[0]))
        n = len(residual)
        ids = np.zeros((n, k), np.uint32)
        # One draw from each of 64 strata keeps the ids of a token distinct.
        strata = (np.arange(L0) + rng.random((n, L0), np.float32)) / L0
        ids[:, :L0] = np.minimum(strata**2 * self.width, self.width - 1)
        values = np.zeros((n, k), np.float32)
        values[:, :L0] = np.sort(rng.lognormal(1.0, 1.0, (n, L0)).astype(np.float32), axis=1)[:, ::-1]
        return ids, values


def latency(ask: Callable[[int], Any], features: Any) -> dict[str, float]:
    """p50 and p99 of one call over many features, ms of wall clock and of this thread's own time.

    The second is what holds on a machine that others use at the same time.
    """
    wall, own = [], []
    for feature in features:
        begin, own_begin = time.perf_counter(), time.thread_time()
        ask(int(feature))
        wall.append(time.perf_counter() - begin)
        own.append(time.thread_time() - own_begin)
    named = (("", wall), ("own_", own))
    return {f"{name}p{q}_ms": round(float(np.percentile(t, q)) * 1e3, 4) for name, t in named for q in (50, 99)}


def sqlite_peer(index: FeatureIndex, path: Path) -> sqlite3.Connection:
    """The same examples in SQLite."""
    peer = sqlite3.connect(path)
    peer.execute(
        "CREATE TABLE example (feature INT, place INT, token INT, document INT, offset INT, value REAL, peak INT, "
        "token_ids BLOB, vals BLOB, PRIMARY KEY (feature, place)) WITHOUT ROWID"
    )
    for feature in range(index.width):
        rows = [
            (feature, i, e.token, e.document, e.offset, e.value, e.peak, e.token_ids.tobytes(), e.values.tobytes())
            for i, e in enumerate(index.examples(feature))
        ]
        peer.executemany("INSERT INTO example VALUES (?,?,?,?,?,?,?,?,?)", rows)
    peer.commit()
    return peer


def rows(options: Options) -> Iterator[Row]:
    """The index of a synthetic text, and the same examples in SQLite."""
    width, tokens, queries = (32_768, 40_000, 1000) if options.quick else (262_144, 100_000, 5000)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(width, tokens, queries, Path(folder))
    ours, theirs = found["examples"], found["examples_sqlite"]
    what = f"a feature's examples among {width} features"
    for figure in ("own_p50_ms", "own_p99_ms"):
        name = f"{what}, {figure[4:7]} of CPU time"
        yield of_times(name, ours[figure] / 1e3, theirs[figure] / 1e3, "SQLite")
    yield Row(f"{what}, p99", duration(ours["p99_ms"] / 1e3), "", ours["p99_ms"], at_most(1), "ms")
    for question in ("statistics", "token_by_rank", "co_active"):
        p99 = found[question]["p99_ms"]
        yield Row(f"{question.replace('_', ' ')} among {width} features, p99", duration(p99 / 1e3), "", p99, None, "ms")
    speed = found["build_tokens_per_s_without_model"]
    yield Row("building it, without the model", f"{speed} tokens/s", "", speed, None, "tokens/s")
    yield of_sizes("size on disk", found["index_mb"], found["peer_mb"], "SQLite")


def of_sizes(what: str, ours: float, peer: float, name: str) -> Row:
    """A row of two sizes in MB."""
    return Row(what, f"{ours:.0f} MB", f"{name}: {peer:.0f} MB", ours / peer)


def measure(width: int, n_tokens: int, queries: int, folder: Path) -> dict[str, Any]:
    source = Synthetic(n_tokens)
    target = Target(Encoder(width), PLACE, width, "synthetic")
    stages: dict[str, float] = {}
    last: list[float] = []
    begin, own_begin = time.perf_counter(), time.process_time()

    def watch(now: IndexProgress) -> None:
        if now.stage == "read":
            last.append(now.tokens_per_s)
        elif not stages:
            stages["read_s"] = round(time.perf_counter() - begin, 1)
            stages["read_own_s"] = round(time.process_time() - own_begin, 1)

    path = build_index(
        source,
        [target],
        folder / "index",
        IndexSettings(full=True, max_active=128),
        progress=watch,
    ).indexes[0]
    total = time.perf_counter() - begin
    begin = time.perf_counter()
    index = FeatureIndex(path)
    open_ms = (time.perf_counter() - begin) * 1e3
    features = np.random.default_rng(0).permutation(np.flatnonzero(index.count > 0))[:queries]
    for feature in features:
        index.examples(int(feature))  # warm
    peer = sqlite_peer(index, folder / "peer.sqlite")
    query = "SELECT * FROM example WHERE feature = ? ORDER BY place LIMIT 20"
    ours = latency(index.examples, features)
    theirs = latency(lambda f: peer.execute(query, (f,)).fetchall(), features)
    tokens = np.random.default_rng(1).integers(1, index.n_tokens, 500)
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "width": width,
        "tokens": index.n_tokens,
        "activations": index.manifest["n_active"],
        "build_tokens_per_s_without_model": round(last[-1]),
        **stages,
        "write_s": round(total - stages["read_s"], 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30, 2),
        "index_mb": round(sum(file.stat().st_size for file in path.iterdir()) / 1e6),
        "peer_mb": round((folder / "peer.sqlite").stat().st_size / 1e6),
        "open_ms": round(open_ms, 2),
        "examples": ours,
        "examples_sqlite": theirs,
        "own_p99_ratio_to_sqlite": round(ours["own_p99_ms"] / theirs["own_p99_ms"], 3),
        "statistics": latency(index.statistics, features),
        "token_by_rank": latency(lambda t: rank_features(index, *index.at_token(t), by="rank"), tokens),
        "co_active": latency(lambda f: co_active(index, f), features[:500]),
    }
