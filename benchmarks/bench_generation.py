"""Steered generation against plain mlx-lm, and lock step against one after the other, in one run.

    python benchmarks/bench_generation.py [--model demo] [--tokens 128] [--repeats 5] [--arms 4]

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

from lens_tui import Arm, LensModel
from lens_tui.records import Add, SteeringVector

PROMPT = "The old man opened the door and"


def timed(work: Callable[[], int]) -> float:
    """Tokens a second of ``work``, which returns how many it made."""
    start = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - start)


def adds(lens: LensModel, count: int, layer: int, scale: float) -> list[Add]:
    """Random unit directions, one record each."""
    rng = np.random.default_rng(0)
    vectors = [SteeringVector.of(f"random {i}", rng.standard_normal(lens.d_model), layer) for i in range(count)]
    return [Add(id=f"s{i}", layer=layer, vector=vector, scale=scale) for i, vector in enumerate(vectors)]


def contenders(lens: LensModel, tokens: int, n_arms: int) -> dict[str, Callable[[], int]]:
    """What is measured; each returns the number of tokens it made."""
    ids = lens.tokens.prompt(PROMPT).ids
    records = adds(lens, n_arms, lens.n_layers // 2, 8.0)
    arms = [Arm("baseline"), *(Arm(record.id, (record,)) for record in records)]

    def plain() -> int:
        return sum(1 for _ in stream_generate(lens.model, lens.tokenizer, list(ids), max_tokens=tokens))

    def ours() -> int:
        return sum(1 for _ in lens.stream(list(ids), max_tokens=tokens))

    def steered() -> int:
        return sum(1 for _ in lens.stream(list(ids), max_tokens=tokens, interventions=[records[0]]))

    def captured() -> int:
        with lens.capture(range(lens.n_layers)):
            return sum(1 for _ in lens.stream(list(ids), max_tokens=tokens))

    def lock_step() -> int:
        run = lens.compare(list(ids), arms, max_tokens=tokens)
        for _ in run:
            pass
        return sum(len(row) for row in run.token_ids)

    def one_by_one() -> int:
        total = 0
        for arm in arms:
            total += sum(1 for _ in lens.stream(list(ids), max_tokens=tokens, interventions=list(arm.interventions)))
        return total

    return {
        "mlx-lm stream_generate": plain,
        "ours, nothing hooked": ours,
        "ours, one vector": steered,
        "ours, every layer captured": captured,
        f"{len(arms)} arms in lock step": lock_step,
        f"{len(arms)} arms one by one": one_by_one,
    }


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", type=int, default=4, help="steered arms, besides the baseline")
    args = parser.parse_args()
    lens = LensModel(args.model)
    works = contenders(lens, args.tokens, args.arms)
    for work in works.values():
        work()
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.repeats):
        for name, work in works.items():
            speeds[name].append(timed(work))
    print(f"{lens.info.name}, {lens.info.quantization or lens.info.dtype}, {mx.default_device()}, {args.tokens} tokens")
    median = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        print(f"{name:<32}{median[name]:9.1f} tokens/s   ({min(values):.1f} to {max(values):.1f})")
    base, steered, lock, solo = (list(median)[i] for i in (0, 2, 4, 5))
    print(f"steered / plain mlx-lm           {median[steered] / median[base]:9.3f}")
    print(f"every layer captured / nothing   {median[list(median)[3]] / median[list(median)[1]]:9.3f}")
    print(f"lock step / one by one           {median[lock] / median[solo]:9.2f}")


if __name__ == "__main__":
    main()
