"""Tokens a second of a model that several processes share, plain, steered and captured: one process of them.

``python -m benchmarks.shared_models SHAPE [tensor | pipeline]`` is started once in each process (``mlx.launch``, or
with the variables of MLX's back end set); rank 0 prints a line of JSON. Weights are random.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from lens_tui import LensModel
from lens_tui.lens.architecture.weights import evaluate
from lens_tui.records import Add, SteeringVector

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "70B-4bit": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
                 "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
PROMPT = [(7 * at + 3) % 500 for at in range(64)]
TOKENS, WARM = 80, 16


def build(shape: str) -> Any:
    """A Llama of this shape; its weights, the same in every process, are not computed yet."""
    llama: Any = import_module("mlx_lm.models.llama")
    mx.random.seed(0)
    facts = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 5e5}
    model = llama.Model(llama.ModelArgs.from_dict({**facts, **SHAPES[shape]}))
    model.set_dtype(mx.bfloat16)
    if shape.endswith("4bit"):
        quantize: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
        quantize(model, group_size=64, bits=4)
    model.eval()
    return model


def rate(lens: LensModel, steered: bool, captured: bool) -> tuple[float, list[int], float]:
    """Tokens a second behind the first ones, the tokens, and the mean size of what was captured."""
    middle = lens.n_layers // 2
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=lens.d_model), middle)
    records = [Add(id="a", layer=middle, vector=vector, scale=4.0)] if steered else []
    layers = [0, middle, lens.n_layers - 1]
    begun, ids = 0.0, list[int]()
    with lens.capture(layers) if captured else nullcontext() as found:
        for token in lens.stream(PROMPT, interventions=records, max_tokens=TOKENS, temp=0.0):
            if not hasattr(token, "token_id"):
                continue
            ids.append(token.token_id)
            if len(ids) == WARM:
                begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    size = float(mx.abs(found[middle].astype(mx.float32)).mean()) if found is not None else 0.0
    return (len(ids) - WARM) / seconds, ids[:8], size


def main() -> None:
    """Measure one shape."""
    shape, mode = sys.argv[1], (sys.argv[2:] or [None])[0]
    begun = time.perf_counter()
    lens = LensModel.from_model(build(shape), shard=mode)
    for _ in evaluate(lens.model):
        pass
    row: dict[str, Any] = {"shape": shape, "shard": mode, "loaded_s": round(time.perf_counter() - begun, 1)}
    row["bytes"] = mx.get_active_memory()
    for name, steered, captured in (("plain", False, False), ("steered", True, False), ("captured", True, True)):
        speeds = [rate(lens, steered, captured) for _ in range(3)]
        row[name] = round(sorted(each[0] for each in speeds)[1], 1)
        row[f"{name}_ids"] = speeds[0][1]
        row[f"{name}_size"] = speeds[0][2]
    shared = lens.registry.decoder.shared
    if shared is None or shared.rank == 0:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
