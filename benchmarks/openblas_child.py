"""A process that does the work of ``openblas``: with OpenBLAS and float32 weights, or ``before``: as MLX comes.

Nothing that loads MLX is imported before it is said which.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .serving import serve

PROMPT = "The old man opened the door and"
ONE_BY_ONE = "8 arms x 24 tokens one by one"


def opened(mode: str) -> Any:
    """The bundled model: as it is held now, or as before."""
    from lens_tui import LensModel, blas

    if mode == "before":
        blas._state = blas.Blas(False, "not in this process")
    return LensModel("demo", dequantize="never" if mode == "before" else "auto")


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


if __name__ == "__main__":
    lens = opened(sys.argv[1])
    with tempfile.TemporaryDirectory() as made:
        serve(tasks(lens, Path(made)), getattr(lens.info, "weights", ""), time.process_time)
