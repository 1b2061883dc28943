"""Steered generation against plain mlx-lm, and lock step against one after the other, in one run.

    python benchmarks/bench_generation.py [--model demo] [--tokens 128] [--repeats 5] [--arms 4]
    python benchmarks/bench_generation.py --shape gemma3-1b      # random bf16 weights in the shape of a real model

Each repeat runs every contender in turn (A B C A B C ...), so that a machine whose speed drifts
is fair to all; the figures are medians of tokens a second and ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step

from lens_tui import Arm, LensModel
from lens_tui.records import Add, SteeringVector
from shapes import SHAPES, random_model

PROMPT = "The old man opened the door and"


def timed(work: Callable[[], int]) -> float:
    """Tokens a second of ``work``, which returns how many it made; it finds no memory that others left behind."""
    mx.clear_cache()
    start = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - start)


def adds(lens: LensModel, count: int, layer: int, scale: float) -> list[Add]:
    """Random unit directions, one record each."""
    rng = np.random.default_rng(0)
    vectors = [SteeringVector.of(f"random {i}", rng.standard_normal(lens.d_model), layer) for i in range(count)]
    return [Add(id=f"s{i}", layer=layer, vector=vector, scale=scale) for i, vector in enumerate(vectors)]


def contenders(lens: LensModel, ids: list[int], tokens: int, n_arms: int) -> dict[str, Callable[[], int]]:
    """What is measured; each returns the number of tokens it made."""
    records = adds(lens, n_arms, lens.n_layers // 2, 8.0)
    arms = [Arm("baseline"), *(Arm(record.id, (record,)) for record in records)]

    def plain() -> int:
        if lens.tokenizer is None:
            return sum(1 for _ in generate_step(mx.array(ids), lens.model, max_tokens=tokens))
        return sum(1 for _ in stream_generate(lens.model, lens.tokenizer, ids, max_tokens=tokens))

    def ours() -> int:
        return sum(1 for _ in lens.stream(ids, max_tokens=tokens))

    def steered() -> int:
        return sum(1 for _ in lens.stream(ids, max_tokens=tokens, interventions=[records[0]]))

    def captured() -> int:
        with lens.capture(range(lens.n_layers)):
            return sum(1 for _ in lens.stream(ids, max_tokens=tokens))

    def lock_step(kl: bool = False) -> int:
        run = lens.compare(ids, arms, max_tokens=tokens, kl=kl)
        for _ in run:
            pass
        return sum(len(row) for row in run.token_ids)

    def one_by_one() -> int:
        return sum(
            sum(1 for _ in lens.stream(ids, max_tokens=tokens, interventions=list(arm.interventions))) for arm in arms
        )

    return {
        "mlx-lm": plain,
        "ours, nothing hooked": ours,
        "ours, one vector": steered,
        "ours, every layer captured": captured,
        f"{len(arms)} arms in lock step": lock_step,
        f"{len(arms)} arms in lock step, with KL": lambda: lock_step(kl=True),
        f"{len(arms)} arms one by one": one_by_one,
    }


def forwards(lens: LensModel, repeats: int) -> tuple[float, float]:
    """Median seconds of a forward of 512 tokens: plain mlx-lm, and with every layer captured."""
    ids = mx.array(np.random.default_rng(1).integers(1, lens.info.vocab_size, (1, 512)))
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats + 1):
        for capture in times:
            start = time.perf_counter()
            if capture:
                with lens.capture(range(lens.n_layers)) as captured:
                    mx.eval(lens.forward(ids), [captured[layer] for layer in range(lens.n_layers)])
            else:
                mx.eval(lens.model(ids))
            if turn:
                times[capture].append(time.perf_counter() - start)
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in this shape instead of a model")
    parser.add_argument("--no-forward", action="store_true", help="leave out the forwards of 512 tokens")
    parser.add_argument("--arms", type=int, default=4, help="steered arms, besides the baseline")
    args = parser.parse_args()
    lens = random_model(args.shape) if args.shape else LensModel(args.model)
    ids = list(lens.tokens.prompt(PROMPT).ids) if lens.tokenizer is not None else list(range(1, 65))
    works = contenders(lens, ids, args.tokens, args.arms)
    for work in works.values():
        timed(work)
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.repeats):
        for name, work in works.items():
            speeds[name].append(timed(work))
    print(f"{lens.info.name}, {lens.info.quantization or lens.info.dtype}, {mx.default_device()}, {args.tokens} tokens")
    median = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        print(f"{name:<36}{median[name]:9.1f} tokens/s   ({min(values):.1f} to {max(values):.1f})")
    plain, ours, steered, captured, lock, with_kl, solo = median.values()
    print(f"steered / plain mlx-lm              {steered / plain:9.3f}")
    print(f"every layer captured / not, decode  {captured / ours:9.3f}")
    print(f"lock step / one by one              {lock / solo:9.2f}")
    print(f"lock step, with KL / without        {with_kl / lock:9.2f}")
    if not args.no_forward:
        before, after = forwards(lens, args.repeats)
        print(f"forward of 512, all layers captured / plain  {after / before:.3f}   ({before * 1e3:.0f} ms plain)")


if __name__ == "__main__":
    main()
