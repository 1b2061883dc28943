"""Top-k features of token blocks, against the bare matrix product and ``mx.topk`` on the same arrays.

    python benchmarks/bench_sae.py [--widths 16384 65536 262144] [--dims 1152 2304] [--tokens 256] [--k 64]

Weights are random; thresholds let about 100 latents fire. Prints one JSON line a case: tokens/s, the time a token takes
over that of the bare product with ``mx.topk``, peak memory of MLX above the weights, and the share of the
exact top k that is found. Where MLX itself is slow at products (Linux packages for the CPU), a second peer is the same
product by NumPy, and MLX's own is timed on a few tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx
import numpy as np

from lens_tui import SAE
from lens_tui.records import SAEInfo
from lens_tui.sae.base import build
from lens_tui.sae.files import Definition, Stored, Weights
from lens_tui.sae.matrices import Residence, on_host

BARE = "bare product + mx.topk"
HOST = "bare product by NumPy + mx.topk"
RESIDENCES: tuple[Residence, ...] = ("memory", "disk", "8bit")


def make(d: int, width: int, dtype: str = "float32") -> tuple[Weights, np.ndarray]:
    """Random weights; the decoder is the encoder again, for it is not used here."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((d, width), dtype=np.float32) / np.float32(d**0.5)
    # Of normal pre-activations about 100 in each row are above this.
    threshold = np.full(width, statistics.NormalDist().inv_cdf(1 - 100 / width), np.float32)
    vectors = {"b_enc": Stored("b_enc", np.zeros(width, np.float32)), "threshold": Stored("threshold", threshold)}
    weights = Weights(
        w_enc=Stored("w_enc", w),
        w_dec=Stored("w_dec", w.T),
        b_dec=Stored("b_dec", np.zeros(d, np.float32)),
        vectors=vectors,
    )
    return weights, rng.standard_normal((4096, d)).astype(np.float32)


def sae_of(weights: Weights, residence: Residence) -> SAE:
    info = SAEInfo("bench", "bench", "", "jumprelu", "resid_post", 0, 0, 0, "")
    return build(Definition(activation="jumprelu"), weights, info, residence=residence)


@dataclass
class Run:
    """Something to time: it works on ``tokens`` tokens; ``sae`` tells which features it finds."""

    name: str
    work: Callable[[], object]
    tokens: int
    sae: SAE | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int = 0


def peers(weights: Weights, x: mx.array, k: int) -> list[Run]:
    few = x[:8] if on_host() else x
    w = mx.array(weights.w_enc.array)
    mx.eval(few, w)
    runs = [Run(BARE, lambda: mx.eval(mx.topk(few @ w, k, axis=-1)), len(few))]
    if on_host():
        host, rows = weights.w_enc.array, np.asarray(x)
        runs.append(Run(HOST, lambda: mx.eval(mx.topk(mx.array(rows @ host), k, axis=-1)), len(x)))
    return runs


def ours(weights: Weights, x: mx.array, k: int) -> list[Run]:
    runs = []
    for residence in RESIDENCES:
        sae = sae_of(weights, residence)
        few = x[:8] if residence == "8bit" and on_host() else x
        runs.append(Run(f"top_k, {residence}", partial(sae.top_k, few, k), len(few), sae))
    return runs


def measure(run: Run) -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    run.work()
    run.seconds.append(time.perf_counter() - start)
    run.peak = max(run.peak, mx.get_peak_memory() - before)


def case(d: int, width: int, tokens: int, k: int, rounds: int) -> None:
    weights, residuals = make(d, width)
    x = mx.array(residuals[:tokens])
    runs = [*peers(weights, x, k), *ours(weights, x, k)]
    for run in runs:
        run.work()
    # One of each in turn, and the best of each: what else the machine does then strikes all alike.
    for _ in range(rounds):
        for run in runs:
            measure(run)
    per_token = {run.name: min(run.seconds) / run.tokens for run in runs}
    exact = found_by(runs[-3].sae, x[:8], k)
    for run in runs:
        row: dict[str, object] = {"d_model": d, "width": width, "what": run.name}
        row |= {"tokens_per_s": round(1 / per_token[run.name]), "peak_mb": round(run.peak / 1e6)}
        row |= {f"time over {o}": round(per_token[run.name] / per_token[o], 3) for o in (BARE, HOST) if o in per_token}
        if run.sae is not None:
            pairs = zip(found_by(run.sae, x[:8], k), exact, strict=True)
            row["top_k_shared"] = round(statistics.mean(len(a & b) / len(b) for a, b in pairs), 4)
        print(json.dumps(row), flush=True)


def found_by(sae: SAE | None, x: mx.array, k: int) -> list[set[int]]:
    assert sae is not None
    return [{int(i) for i in row if i >= 0} for row in np.array(sae.top_k(x, k)[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--dims", type=int, nargs="+", default=[1152, 2304])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for d in args.dims:
        for width in args.widths:
            case(d, width, args.tokens, args.k, args.rounds)


if __name__ == "__main__":
    main()
