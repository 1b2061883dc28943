"""Top-k features of token blocks, against the bare matrix product and ``mx.topk`` on the same arrays.

    python benchmarks/bench_sae.py [--widths 16384 65536 262144] [--dims 1152 2304] [--tokens 512] [--k 64]

Weights are random; thresholds let about 100 latents fire. Prints one JSON line a case: tokens/s, the time a token takes
over that of the bare product with ``mx.topk`` (medians), peak memory of MLX above the weights, and the share of the exact
top k that is found. Where MLX itself is slow at products (Linux packages for the CPU), a second peer is the same
product by NumPy, and MLX's own is timed on a few tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import numpy as np
from lens_tui.records import SAEInfo
from lens_tui.sae import SAE
from lens_tui.sae.definition import Definition, Weights
from lens_tui.sae.encoder import Residence
from lens_tui.sae.host import on_host
from lens_tui.sae.kinds import build
from lens_tui.sae.tensors import Stored

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


def timed(run: Callable[[], object], repeats: int) -> tuple[float, int]:
    """Median seconds and peak bytes above what was held before."""
    run()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), max(0, mx.get_peak_memory() - before)


def peers(weights: Weights, x: mx.array, k: int, repeats: int) -> Iterator[tuple[str, float, int]]:
    """Name, seconds a token, and peak bytes of the bare product with ``mx.topk``."""
    few = x[:8] if on_host() else x
    w = mx.array(weights.w_enc.array)
    mx.eval(few, w)
    seconds, peak = timed(lambda: mx.eval(mx.topk(few @ w, k, axis=-1)), repeats)
    yield "bare product + mx.topk", seconds / len(few), peak
    if on_host():
        del w
        host = weights.w_enc.array
        seconds, peak = timed(lambda: mx.eval(mx.topk(mx.array(np.asarray(x) @ host), k, axis=-1)), repeats)
        yield "bare product by NumPy + mx.topk", seconds / len(x), peak


def case(d: int, width: int, tokens: int, k: int, repeats: int) -> None:
    weights, residuals = make(d, width)
    x = mx.array(residuals[:tokens])
    mx.eval(x)
    base: dict[str, float] = {}
    for name, seconds, peak in peers(weights, x, k, repeats):
        base[name] = seconds
        report(d, width, name, seconds, base, peak)
    exact: list[set[int]] = []
    for residence in RESIDENCES:
        sae = sae_of(weights, residence)
        few = x[:8] if residence == "8bit" and on_host() else x
        seconds, peak = timed(partial(sae.top_k, few, k), repeats)
        found = [{int(i) for i in row if i >= 0} for row in np.array(sae.top_k(few, k)[0])]
        exact = exact or found
        shared = statistics.mean(len(a & b) / len(b) for a, b in zip(found, exact, strict=False))
        report(d, width, f"top_k, {residence}", seconds / len(few), base, peak, shared)
        del sae


def report(
    d: int, width: int, what: str, seconds: float, base: dict[str, float], peak: int, shared: float | None = None
) -> None:
    row = {"d_model": d, "width": width, "what": what, "tokens_per_s": round(1 / seconds), "peak_mb": round(peak / 1e6)}
    row |= {f"time over: {name}": round(seconds / other, 3) for name, other in base.items() if name != what}
    print(json.dumps(row if shared is None else {**row, "top_k_shared": round(shared, 4)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--dims", type=int, nargs="+", default=[1152, 2304])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for d in args.dims:
        for width in args.widths:
            case(d, width, args.tokens, args.k, args.repeats)


if __name__ == "__main__":
    main()
