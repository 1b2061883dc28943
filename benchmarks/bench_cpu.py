"""What OpenBLAS and float32 weights are worth on a Linux CPU: the same work with both and with neither, in one run.

    python benchmarks/bench_cpu.py [--repeats 3] [--before FOLDER]

Two processes take turns, one with both and one as MLX comes (or, with ``--before``, with the package as it is in that
checkout). Figures are CPU seconds of the process, the least of the repeats, so that other work on the machine counts
little; the last row is the most memory each process held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "The old man opened the door and"
HERE = Path(__file__).parents[1]
BOUNDS = {
    "prefill of 86 tokens": 15.0,
    "one steered stream of 32 tokens": 1.5,
    "8 arms x 24 tokens in lock step": 5.0,
    "index": 4.0,
    "train-sae": 4.0,
}
ONE_BY_ONE = "8 arms x 24 tokens one by one"


def opened(mode: str) -> Any:
    """The bundled model: as it is held now, or as before."""
    if mode == "before":
        try:
            from lens_tui import blas
        except ImportError:  # a checkout of before there was any
            pass
        else:
            blas._state = blas.Blas(False, "not in this process")
    from lens_tui import LensModel

    try:
        return LensModel("demo", dequantize="never" if mode == "before" else "auto")
    except TypeError:
        return LensModel("demo")


def text_of(folder: Path) -> Path:
    """A corpus of some 8,000 tokens: the texts that losses are measured on."""
    from lens_tui.lens.measure.effects import LOSS_TEXTS

    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in LOSS_TEXTS))
    return file


def tasks(lens: Any, folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured."""
    import mlx.core as mx
    import numpy as np

    from lens_tui import Arm, TrainConfig, demo, index_text, load_sae, train_sae
    from lens_tui.records import Add, SteeringVector

    rng = np.random.default_rng(0)
    ids = [int(token) for token in rng.integers(1, 8000, 86)]
    vectors = [SteeringVector.of(f"v{i}", rng.standard_normal(lens.d_model), 4) for i in range(8)]
    records = [Add(id=f"s{i}", layer=4, vector=vector, scale=8.0) for i, vector in enumerate(vectors)]
    arms = [Arm(record.id, (record,)) for record in records]
    corpus, sae = text_of(folder), load_sae(str(demo.sae_paths()[demo.default_sae()]))
    made = iter(range(1000))
    sizes = {"tokens": 2048, "batch": 512, "pool_tokens": 2048, "evaluation_tokens": 256, "calibration_tokens": 512}
    config = TrainConfig(width=1024, k=16, **sizes)
    return {
        "prefill of 86 tokens": lambda: mx.eval(lens.forward(ids)),
        "one steered stream of 32 tokens": lambda: list(lens.stream(PROMPT, max_tokens=32, interventions=[records[0]])),
        "8 arms x 24 tokens in lock step": lambda: list(lens.compare(PROMPT, arms, max_tokens=24)),
        ONE_BY_ONE: lambda: [list(lens.compare(PROMPT, [arm], max_tokens=24)) for arm in arms],
        "index": lambda: index_text(lens, [sae], corpus, folder / str(next(made)), conventions=(), max_tokens=4096),
        "train-sae": lambda: train_sae(lens, corpus, folder / str(next(made)), config, layer=4, held_out=8),
    }


def serve(mode: str) -> None:
    """A process of one mode: for each name read, does that once and writes what it cost."""
    with tempfile.TemporaryDirectory() as name:
        lens = opened(mode)
        known = tasks(lens, Path(name))
        print(json.dumps(getattr(lens.info, "weights", "")), flush=True)
        for line in sys.stdin:
            start = time.process_time()
            known[line.strip()]()
            print(json.dumps(time.process_time() - start), flush=True)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), flush=True)


class Mode:
    """The process of one mode."""

    def __init__(self, mode: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--serve", mode]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self.says = self._read()

    def run(self, task: str) -> float:
        """CPU seconds of the task."""
        assert self._process.stdin is not None
        self._process.stdin.write(task + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def end(self) -> float:
        """Ends it; the most memory it held, in MB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, default=HERE)
    parser.add_argument("--serve", choices=("before", "now"))
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    modes = {"before": Mode("before", asked.before.resolve()), "now": Mode("now", HERE)}
    print(f"weights now: {modes['now'].says or 'as in the files'}\n")
    print("| CPU seconds | before | now | ratio | bound |\n|---|--:|--:|--:|--:|")
    found: dict[str, dict[str, float]] = {}
    for task in (*BOUNDS, ONE_BY_ONE):
        times: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(asked.repeats):
            for name, mode in modes.items():
                times[name].append(mode.run(task))
        found[task] = {name: min(seconds) for name, seconds in times.items()}
        before, now = found[task]["before"], found[task]["now"]
        bound = f">= {BOUNDS[task]:g}" if task in BOUNDS else ""
        print(f"| {task} | {before:.2f} | {now:.2f} | {before / now:.1f} | {bound} |", flush=True)
    alone, together = found[ONE_BY_ONE], found["8 arms x 24 tokens in lock step"]
    before, now = (alone[name] / together[name] for name in modes)
    print(f"| one by one / lock step | {before:.2f} | {now:.2f} | | >= 4 |")
    memory = {name: mode.end() for name, mode in modes.items()}
    print(f"| peak memory, MB | {memory['before']:.0f} | {memory['now']:.0f} | | |")


if __name__ == "__main__":
    main()
