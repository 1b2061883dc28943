"""mlx-lens 0.1.2 and this library on models in the shape of real ones, in one run.

    pip install mlx-lens==0.1.2
    python benchmarks/bench_peer_shapes.py --shape gemma3-1b [--tokens 48] [--repeats 3]

Both work on the same random bf16 weights. Measured: greedy generation, plain and under one vector (mlx-lens with the
float32 vector its README makes, and with one cast by hand), and what a search for a scale is made of, the
loss of three texts at twelve scales: one by one as in mlx-lens' example, and here as one call of ``delta_losses``.
A random model has no scale that adds 0.3 nat, so that the search itself cannot be run on one (bench_peer.py runs it).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx_lens  # type: ignore[import-not-found]
import numpy as np
from mlx_lm.generate import generate_step

from lens_tui import LensModel, SteeringVector, delta_losses
from lens_tui.records import Add
from shapes import SHAPES, random_network

SCALES = [2.0**i for i in range(12)]
LENGTHS = (24, 40, 31)


def libraries(shape: str) -> tuple[LensModel, Any]:
    """Both libraries around one model; each takes down what it put up after every work."""
    network = random_network(shape)
    with patch.object(mlx_lens.model, "_mlx_load", lambda _path: (network, SimpleNamespace())):
        theirs = mlx_lens.LensModel(shape)
    return LensModel.from_model(network, name=shape), theirs


def generations(ours: LensModel, theirs: Any, tokens: int) -> dict[str, Callable[[], None]]:
    """Each makes ``tokens`` tokens."""
    ids, layer = list(range(1, 65)), ours.n_layers // 2
    drawn = mx.random.normal((ours.d_model,), key=mx.random.key(0))
    vector = drawn / mx.linalg.norm(drawn)
    cast = vector.astype(mx.bfloat16)
    mx.eval(vector, cast)
    record = Add(id="one", layer=layer, vector=SteeringVector.of("one", vector, layer), scale=8.0)

    def plain() -> None:
        for _ in generate_step(mx.array(ids), theirs.model, max_tokens=tokens):
            pass

    def there(given: mx.array) -> Callable[[], None]:
        def work() -> None:
            with theirs.steer(layer, given, 8.0):
                plain()

        return work

    def here() -> None:
        for _ in ours.stream(ids, max_tokens=tokens, interventions=[record]):
            pass

    return {
        "plain mlx-lm": plain,
        "mlx-lens, float32 vector": there(vector),
        "mlx-lens, vector cast by hand": there(cast),
        "here, float32 vector": here,
    }


def losses(ours: LensModel, theirs: Any) -> dict[str, Callable[[], None]]:
    """Each finds the losses of three texts at twelve scales and without steering."""
    rng, layer = np.random.default_rng(2), ours.n_layers // 2
    texts = [rng.integers(1, ours.info.vocab_size, length).tolist() for length in LENGTHS]
    direction = SteeringVector.of("one", rng.standard_normal(ours.d_model), layer)
    vector = mx.array(direction.direction).astype(mx.bfloat16)

    def there() -> None:
        for text in texts:
            theirs.loss(text)
        for scale in SCALES:
            with theirs.steer(layer, vector, scale):
                for text in texts:
                    theirs.loss(text)

    def here() -> None:
        records = [Add(id="one", layer=layer, vector=direction, scale=scale) for scale in SCALES]
        delta_losses(ours, [(record,) for record in records], texts=texts)

    return {"mlx-lens, one loss a text and scale": there, "here, delta_losses": here}


def medians(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each work, in turns, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            mx.clear_cache()
            start = time.perf_counter()
            work()
            mx.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="gemma3-1b")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    ours, theirs = libraries(args.shape)
    print(f"{args.shape}, bfloat16, {mx.default_device()}, {args.tokens} tokens")
    found = medians(generations(ours, theirs, args.tokens), args.repeats)
    for name, seconds in found.items():
        share = found["plain mlx-lm"] / seconds
        print(f"  {name:<38}{args.tokens / seconds:9.1f} tokens/s   {share:.3f} of plain")
    for name, seconds in medians(losses(ours, theirs), args.repeats).items():
        print(f"  {name:<38}{seconds:9.3f} s")


if __name__ == "__main__":
    main()
