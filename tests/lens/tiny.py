"""Tiny random models of mlx-lm's own classes, small enough for any test."""

from __future__ import annotations

import inspect
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui import demo
from lens_tui.records import Add, SteeringVector

VOCAB = 97
IDS = (1, 17, 5, 80, 33, 2, 64, 9)


_signature = cache(inspect.signature)


def built(module: ModuleType, values: dict[str, Any]) -> Any:
    """A model of one of mlx-lm's modules, whose ``from_dict`` asks for one signature again for each value."""
    with patch("mlx_lm.models.base.inspect", SimpleNamespace(signature=_signature)):
        return module.Model(module.ModelArgs.from_dict(values))


def _model(name: str, **arguments: Any) -> Any:
    return built(import_module(f"mlx_lm.models.{name}"), {"model_type": name, **arguments})


def settle(model: Any, seed: int, scale: float = 0.15) -> Any:
    """Give every parameter seeded values: weights normal, norms near one."""
    from mlx.utils import tree_flatten, tree_unflatten

    parameters: Any = tree_flatten(model.parameters())
    named = [(name, value) for name, value in parameters if mx.issubdtype(value.dtype, mx.floating)]
    noises = _noises(tuple(tuple(value.shape) for _, value in named), seed)
    mx.random.seed(seed + 1000)  # what a test draws next is the same whether these were kept or made, and not these
    flat = []
    for (name, value), noise in zip(named, noises, strict=True):
        flat.append((name, noise * scale if value.ndim > 1 else value + 0.1 * noise))
    model.update(tree_unflatten(flat))
    mx.eval(model.parameters())
    model.eval()
    return model


@lru_cache(maxsize=64)
def _noises(shapes: tuple[tuple[int, ...], ...], seed: int) -> list[mx.array]:
    """Normal noise of these shapes, kept: the same small models are made over and over."""
    mx.random.seed(seed)
    noises = [mx.random.normal(shape) for shape in shapes]
    mx.eval(noises)
    return noises


def llama(
    *, heads: int = 4, layers: int = 4, dtype: mx.Dtype = mx.float32, bits: int = 0, vocab: int = VOCAB, seed: int = 0
) -> Any:
    """4 layers, d_model 64, 4 heads over 2, untied head."""
    model = _model(
        "llama",
        hidden_size=64,
        num_hidden_layers=layers,
        intermediate_size=128,
        num_attention_heads=heads,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    return finished(settle(model, seed), dtype, bits)


def gemma3(*, layers: int = 4, dtype: mx.Dtype = mx.float32, bits: int = 0, seed: int = 1, vocab: int = VOCAB) -> Any:
    """4 layers alternating a window of 4 with full attention, d_model 64, post-norms, tied head."""
    model = _model(
        "gemma3_text",
        hidden_size=64,
        num_hidden_layers=layers,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        vocab_size=vocab,
        sliding_window=4,
        sliding_window_pattern=2,
    )
    model.sanitize({})  # ties the head
    return finished(settle(model, seed), dtype, bits)


def finished(model: Any, dtype: mx.Dtype, bits: int) -> Any:
    """The model in another dtype, quantised if asked for."""
    if dtype != mx.float32 or bits:
        model.set_dtype(mx.bfloat16 if bits and dtype == mx.float32 else dtype)
    if bits:
        quantize: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
        quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def gemma4() -> Any:
    """Gemma 4 (text): blocks that return tuples."""
    model = _model(
        "gemma4_text",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=64,
        num_attention_heads=4,
        head_dim=16,
        global_head_dim=16,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=16,
        sliding_window=8,
        sliding_window_pattern=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    return settle(model, 3)


def rwkv7() -> Any:
    """RWKV 7: blocks that return tuples, a cache that counts no tokens."""
    model = _model(
        "rwkv7",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        norm_eps=1e-5,
        head_dim=32,
        num_hidden_layers=3,
        a_low_rank_dim=16,
        v_low_rank_dim=16,
        gate_low_rank_dim=16,
        decay_low_rank_dim=16,
    )
    return settle(model, 4)


def lfm2() -> Any:
    """LFM 2: convolution blocks whose cache counts no tokens, before an attention block whose cache does."""
    model = _model(
        "lfm2",
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        norm_eps=1e-5,
        conv_bias=False,
        conv_L_cache=3,
        block_dim=64,
        block_ff_dim=128,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        full_attn_idxs=[2],
    )
    return settle(model, 6)


def qwen3_moe() -> Any:
    """Qwen 3 with a mixture of experts, tied head."""
    model = _model(
        "qwen3_moe",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=32,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        norm_topk_prob=True,
    )
    return settle(model, 7)


def looped() -> Any:
    """A model that takes its blocks apart: it calls their parts, in two passes, and never a block."""
    model = _model(
        "iquestloopcoder",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        loop_num=2,
        loop_window_size=8,
    )
    return settle(model, 5)


@cache
def tokenizer() -> Any:
    """The bundled model's tokenizer, in mlx-lm's wrapper. Its vocabulary is 8192."""
    from mlx_lm.tokenizer_utils import load

    return load(demo.model_path())


def parameter_ids(model: Module) -> dict[str, int]:
    """Which array object stands at each parameter path."""
    from mlx.utils import tree_flatten

    whole: Any = model
    flat: Any = tree_flatten(whole.parameters())
    return {name: id(value) for name, value in flat}


def unit(seed: int = 2, width: int = 64) -> NDArray[np.float64]:
    """A random direction of length 1."""
    values = np.random.default_rng(seed).normal(size=width)
    direction: NDArray[np.float64] = values / np.linalg.norm(values)
    return direction


def add(scale: float, seed: int = 2, layer: int = 1, **extra: Any) -> Add:
    """A random vector added at a layer of a tiny model."""
    vector = SteeringVector.of(f"v{seed}", np.random.default_rng(seed).normal(size=64), layer)
    return Add(id=f"add{seed}", layer=layer, vector=vector, scale=scale, **extra)


def qwen2() -> Any:
    """4 layers, d_model 64: queries, keys and values with biases; tied head."""
    model = _model(
        "qwen2",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    return settle(model, 8)


def qwen3(*, dtype: mx.Dtype = mx.float32, bits: int = 0) -> Any:
    """4 layers, d_model 64: norms of queries and keys; tied head."""
    model = _model(
        "qwen3",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    return finished(settle(model, 9), dtype, bits)


def gemma2() -> Any:
    """4 layers, d_model 64: post-norms, soft-capped scores and logits, tied head."""
    model = _model(
        "gemma2",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    )
    return settle(model, 10)
