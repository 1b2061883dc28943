"""The model's shape and first weights: mlx-lm's Qwen 3 at a small size.

Qwen 3 is a plain pre-norm decoder (RMSNorm, rotary positions, SwiGLU) with normalised
queries and keys, which keep attention logits bounded at the high learning rates that
Muon takes. mlx-lm loads the result with no code of ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3

from recipes.tokenizer import END_OF_TEXT


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model. Heads are 64 wide unless ``head_dim`` says otherwise."""

    d_model: int = 384
    layers: int = 8
    d_ff: int = 1280
    heads: int = 6
    head_dim: int = 64
    vocabulary: int = 8192
    context: int = 1024

    def config(self) -> dict[str, Any]:
        """The ``config.json`` that mlx-lm reads."""
        return {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": self.d_model,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.d_ff,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "max_position_embeddings": self.context,
            "rope_theta": 10000.0,
            "bos_token_id": END_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
        }


class TrainingBlock(qwen3.TransformerBlock):
    """A Qwen 3 block with dropout on what attention and MLP write, active in training mode only."""

    def __init__(self, args: qwen3.ModelArgs, dropout: float) -> None:
        super().__init__(args)
        self._keep = 1.0 - dropout

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(batch, seq, d_model) -> the same shape."""
        h = x + self._drop(self.self_attn(self.input_layernorm(x), mask, cache))
        return h + self._drop(self.mlp(self.post_attention_layernorm(h)))

    def _drop(self, x: mx.array) -> mx.array:
        if not self.training or self._keep == 1.0:
            return x
        return mx.where(mx.random.bernoulli(self._keep, x.shape), x * (1.0 / self._keep), 0.0).astype(x.dtype)


def build(shape: Shape, dropout: float = 0.0) -> qwen3.Model:
    """The model with its parameters in float32, not yet initialised."""
    arguments: Any = qwen3.ModelArgs
    args: qwen3.ModelArgs = arguments.from_dict(shape.config())
    model = qwen3.Model(args)
    if dropout:
        model.model.layers = [TrainingBlock(args, dropout) for _ in range(shape.layers)]
    return model


def initialise(model: qwen3.Model, shape: Shape, seed: int) -> None:
    """Normal weights of standard deviation 0.02, smaller by sqrt(2 layers) where a matrix writes to the residual."""
    keys = iter(mx.random.split(mx.random.key(seed), 16 * shape.layers + 16))
    weights = []
    flat: Any = tree_flatten(model.parameters())
    for name, weight in flat:
        if weight.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.02 / (math.sqrt(2 * shape.layers) if writes else 1.0)
            weight = mx.random.normal(weight.shape, key=next(keys)) * scale
        weights.append((name, weight))
    model.load_weights(weights)
    mx.eval(model.parameters())


def cast(parameters: Any, dtype: mx.Dtype) -> Any:
    """A parameter tree in another type."""
    return tree_map(lambda weight: weight.astype(dtype), parameters)


def parameter_count(model: Any) -> int:
    """Number of parameters; tied matrices count once."""
    flat: Any = tree_flatten(model.parameters())
    return sum(weight.size for _, weight in flat)
