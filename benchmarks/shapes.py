"""Models in the shape of real ones with random bf16 weights: speed does not depend on what they learnt."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from lens_tui import LensModel

SHAPES = {
    "gemma3-1b": {
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "intermediate_size": 6912,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "gemma3-27b": {
        "hidden_size": 5376,
        "num_hidden_layers": 62,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
    },
}


VOCABULARY = 262_144


def nbytes_of(shape: str) -> int:
    """Bytes of the weights in bf16, near enough to say whether they fit."""
    one = SHAPES[shape]
    d, heads, keys = one["hidden_size"], one["num_attention_heads"], one["num_key_value_heads"]
    block = d * (2 * heads + 2 * keys) * one["head_dim"] + 3 * d * one["intermediate_size"]
    return 2 * (one["num_hidden_layers"] * block + VOCABULARY * d)


def random_network(shape: str) -> Any:
    """An mlx-lm model of a shape, evaluated."""
    from mlx.utils import tree_map
    from mlx_lm.models import gemma3_text

    args = gemma3_text.ModelArgs.from_dict({"model_type": "gemma3_text", "vocab_size": VOCABULARY, **SHAPES[shape]})
    model = gemma3_text.Model(args)
    model.update(tree_map(_random, model.parameters()))
    return model


def _random(weight: mx.array) -> mx.array:
    """Made at once: the float32 it comes from would else be there for all weights together."""
    made = (mx.random.normal(weight.shape) * 0.02).astype(mx.bfloat16)
    mx.eval(made)
    mx.clear_cache()
    return made


def random_model(shape: str) -> LensModel:
    """The same under this library, without a tokenizer: prompts are token ids."""
    return LensModel.from_model(random_network(shape), name=shape)
