"""What holding every layer's output costs: this library, and a bare proxy that only appends to a list, in one run.

    python benchmarks/bench_capture.py [--model demo | --shape gemma3-1b] [--lengths 32 512 2048] [--tokens 64]

The bare proxy is the limit: a subclass of the block's class whose call keeps the output, put on once and never taken
off. Forwards and everything that they hold are evaluated together; a decoding is mlx-lm's ``generate_step`` with the
newest outputs evaluated beside each token. Every repeat runs all contenders in turn; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from lens_tui import LensModel
from shapes import SHAPES, random_model


@contextmanager
def bare_proxy(blocks: Any) -> Iterator[list[mx.array]]:
    """Every block's output in a list, by a subclass of the block's own class."""
    held: list[mx.array] = []
    original = type(blocks[0])

    class Proxy(original):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = original.__call__(self, *args, **kwargs)
            held.append(output[0] if isinstance(output, tuple) else output)
            return output

    for block in blocks:
        block.__class__ = Proxy
    try:
        yield held
    finally:
        for block in blocks:
            block.__class__ = original


def forwards(lens: LensModel, length: int) -> dict[str, Callable[[], None]]:
    """One forward of ``length`` tokens each."""
    ids = mx.array(np.random.default_rng(1).integers(1, lens.info.vocab_size, (1, length)))
    layers = range(lens.n_layers)

    def plain() -> None:
        mx.eval(lens.model(ids))

    def bare() -> None:
        with bare_proxy(lens.model.layers) as held:
            mx.eval(lens.model(ids), held)

    def ours() -> None:
        with lens.capture(layers) as captured:
            mx.eval(lens.forward(ids), [captured[layer] for layer in layers])

    return {"plain": plain, "bare proxy": bare, "this library": ours}


def decodings(lens: LensModel, tokens: int) -> dict[str, Callable[[], None]]:
    """``tokens`` tokens each."""
    ids = list(range(1, 65))

    def plain() -> None:
        for _ in generate_step(mx.array(ids), lens.model, max_tokens=tokens):
            pass

    def bare() -> None:
        steps: list[list[mx.array]] = []
        with bare_proxy(lens.model.layers) as held:
            for _ in generate_step(mx.array(ids), lens.model, max_tokens=tokens):
                steps.append(held[: lens.n_layers])
                del held[: lens.n_layers]
                mx.async_eval(steps[-1])

    def ours() -> None:
        with lens.capture(range(lens.n_layers)) as captured:
            for _ in lens.stream(ids, max_tokens=tokens):
                pass
            mx.eval([captured[layer] for layer in range(lens.n_layers)])

    return {"plain": plain, "bare proxy": bare, "this library": ours}


def measured(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns, after two turns that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            mx.synchronize()
            start = time.perf_counter()
            work()
            mx.synchronize()
            if turn > 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 512, 2048])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    lens = random_model(args.shape) if args.shape else LensModel(args.model)
    print(f"{lens.info.name}, {lens.n_layers} layers, {mx.default_device()}")
    for length in args.lengths:
        found = measured(forwards(lens, length), args.repeats)
        row = "   ".join(f"{name} {value / found['plain']:.3f}" for name, value in found.items() if name != "plain")
        print(f"forward of {length:>5} tokens: plain {found['plain'] * 1e3:8.1f} ms; times of plain: {row}", flush=True)
    found = measured(decodings(lens, args.tokens), max(args.repeats // 2, 2))
    row = "   ".join(f"{name} {found['plain'] / value:.3f}" for name, value in found.items() if name != "plain")
    print(f"decoding {args.tokens} tokens: plain {args.tokens / found['plain']:7.1f} tokens/s; shares of plain: {row}")


if __name__ == "__main__":
    main()
