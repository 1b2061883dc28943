"""Steered generation and a scale search, here and in mlx-lens 0.1.2, in one run.

    pip install mlx-lens==0.1.2
    python benchmarks/bench_peer.py [--model demo] [--tokens 64] [--repeats 3]

The model is measured as it is and in bfloat16 (dequantised), where mlx-lens makes everything behind a float32 vector
float32; a vector cast by hand is measured too. Each repeat runs every contender in turn; figures are medians.
The scale search is this library's ``find_scale`` against the bisection of mlx-lens' own example, from 0 to 512 and to
2 %, one loss a text and scale; both search for +0.3 nat on the same three texts; what
they found is told as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx_lens  # type: ignore[import-not-found]
from mlx_lm.utils import dequantize_model, load

from lens_tui import LensModel, SteeringVector, demo, find_scale
from lens_tui.lens.vectors import SAMPLE_TEXTS
from lens_tui.records import Add

PROMPT = "The old man opened the door and"
TARGET = 0.3
LIMIT = 512.0
KINDS = ["as-it-is", "bfloat16"]


def libraries(path: str, bfloat16: bool) -> tuple[LensModel, Any]:
    """Both libraries' models over the same weights, each with its own layers."""
    loaded = []
    for _ in range(2):
        model, tokenizer = load(path)[:2]
        if bfloat16:
            model = dequantize_model(model)
            model.set_dtype(mx.bfloat16)
        mx.eval(model.parameters())
        loaded.append((model, tokenizer))
    with patch.object(mlx_lens.model, "_mlx_load", lambda _path: loaded[1]):
        return LensModel.from_model(*loaded[0], name=path), mlx_lens.LensModel(path)


def direction(lens: LensModel) -> mx.array:
    drawn = mx.random.normal((lens.d_model,), key=mx.random.key(0))
    return drawn / mx.linalg.norm(drawn)


def generations(ours: LensModel, theirs: Any, tokens: int) -> dict[str, Callable[[], int]]:
    """Each makes ``tokens`` tokens (greedily, no end) and returns how many."""
    vector, layer = direction(ours), ours.n_layers // 2
    cast = vector.astype(ours.forward([1, 2]).dtype)

    def no_end(lens: Any) -> None:
        lens.tokenizer.eos_token_ids = set()

    no_end(ours)
    no_end(theirs)

    def here() -> int:
        with ours.steer(layer, vector, 8.0):
            ours.generate(PROMPT, max_tokens=tokens, raw=True)
        return tokens

    def there(given: mx.array | None) -> Callable[[], int]:
        def work() -> int:
            if given is None:
                theirs.generate(PROMPT, max_tokens=tokens)
            else:
                with theirs.steer(layer, given, 8.0):
                    theirs.generate(PROMPT, max_tokens=tokens)
            return tokens

        return work

    return {
        "mlx-lens, unsteered": there(None),
        "mlx-lens, float32 vector": there(vector),
        "mlx-lens, vector cast by hand": there(cast),
        "here, float32 vector": here,
    }


def searches(ours: LensModel, theirs: Any) -> dict[str, Callable[[], tuple[float, float]]]:
    """Each returns a scale and the loss it adds, both by its own library's account."""
    vector, layer = direction(ours), ours.n_layers // 2
    texts = [list(ours.tokens.encode(text)) for text in SAMPLE_TEXTS[:3]]
    record = Add(id="search", layer=layer, vector=SteeringVector.of("random", vector, layer), scale=1.0)

    def here() -> tuple[float, float]:
        found = find_scale(ours, record, target=TARGET, texts=texts, start=1.0, limit=LIMIT, hold_out=False)
        return found.scale, found.value

    def there() -> tuple[float, float]:
        def mean() -> float:
            return sum(theirs.loss(text) for text in texts) / len(texts)

        def added(scale: float) -> float:
            with theirs.steer(layer, vector, scale):
                return mean() - base

        base, low, high = mean(), 0.0, LIMIT
        for _ in range(15):
            middle = (low + high) / 2
            low, high = (middle, high) if added(middle) < TARGET else (low, middle)
            if high - low < 0.02 * high:
                break
        return (low + high) / 2, added((low + high) / 2)

    return {"mlx-lens, its example's bisection": there, "here, find_scale": here}


def medians(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, in turns, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report_generation(ours: LensModel, theirs: Any, tokens: int, repeats: int) -> None:
    for name, seconds in medians(generations(ours, theirs, tokens), repeats).items():
        rates = [tokens / each for each in seconds]
        print(f"  {name:<34}{statistics.median(rates):9.1f} tokens/s   ({min(rates):.1f} to {max(rates):.1f})")


def report_search(ours: LensModel, theirs: Any, repeats: int) -> None:
    found: dict[str, tuple[float, float]] = {}

    def noted(name: str, work: Callable[[], tuple[float, float]]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    works = {name: noted(name, work) for name, work in searches(ours, theirs).items()}
    for name, seconds in medians(works, repeats).items():
        scale, value = found[name]
        print(f"  {name:<34}{statistics.median(seconds):9.2f} s   scale {scale:.2f} adds {value:.3f} nat")


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["generation", "search"], help="by default both")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    path = str(demo.model_path()) if args.model == "demo" else args.model
    for kind in args.kinds:
        ours, theirs = libraries(path, kind == "bfloat16")
        print(f"{args.model}, {kind}, {mx.default_device()}, {args.tokens} tokens")
        if args.only != "search":
            report_generation(ours, theirs, args.tokens, args.repeats)
        if args.only != "generation":
            report_search(ours, theirs, args.repeats)


if __name__ == "__main__":
    main()
