"""Plain arithmetic in place of mlx-lm's own Metal kernels, for the two architectures that have nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx

MODELS = ("bitnet", "muse_spark")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Where there is no Metal, let plain arithmetic stand in for the kernels."""
    if mx.metal.is_available():
        yield
        return
    from mlx_lm.models import bitlinear_layers, muse_spark

    parts: list[Any] = [norm_add_norm, qk_norm, qk_norm_rope, rms_norm_sigmoid_gate, expert_routing]
    parts.append(post_expert_norm_combine)
    kernels: dict[str, Any] = {part.__name__: part for part in parts}
    with (
        patch.multiple(muse_spark, **kernels),
        patch.object(bitlinear_layers.BitLinear, "execute_matmul_kernel", ternary),
    ):
        yield


def ternary(layer: Any, x: mx.array, packed: mx.array) -> mx.array:
    weight = mx.concatenate([(packed >> (2 * place)) & 3 for place in range(4)]).astype(x.dtype) - 1
    scale = 1 / layer.weight_scale if layer.invert_weight_scales else layer.weight_scale
    product: mx.array = x @ weight.T * scale
    return product


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: Any,
) -> tuple[mx.array, mx.array | None]:
    scaled = branch if post_weight is None else branch * post_weight
    new = alpha * stream + beta * mx.fast.rms_norm(scaled, None, post_eps)
    return new, None if next_norm is None else next_norm(new)


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    wide = qkvg.reshape(*qkvg.shape[:-1], -1, head_dim)
    queries, keys = wide[..., :n_heads, :], wide[..., n_heads : n_heads + n_kv_heads, :]
    return [mx.fast.rms_norm(queries, None, eps) * query_scale, mx.fast.rms_norm(keys, None, eps)]


def qk_norm_rope(qkvg: mx.array, *, rope_base: float, offset: Any, head_dim: int, **options: Any) -> list[mx.array]:
    def turned(x: mx.array) -> mx.array:
        rows = x.swapaxes(1, 2)
        turn = mx.fast.rope(rows, head_dim, traditional=True, base=rope_base, scale=1.0, offset=offset)
        return turn.swapaxes(1, 2)

    return [turned(x) for x in qk_norm(qkvg, head_dim=head_dim, **options)]


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    normed = mx.fast.rms_norm(x, None, eps).swapaxes(1, 2)
    return normed.reshape(gate.shape) * mx.sigmoid(gate)


def expert_routing(
    logits: mx.array, bias: mx.array, *, top_k: int, multiplier: float, score_eps: float, route_scale: float
) -> list[mx.array]:
    scores = mx.sigmoid(logits * multiplier)
    chosen = mx.argsort(-(scores + bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    return [chosen, weights / (weights.sum(axis=-1, keepdims=True) + score_eps) * route_scale]


def post_expert_norm_combine(experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float) -> mx.array:
    normed = mx.fast.rms_norm(experts * norm_weight, None, eps)
    return (normed * weights[..., None]).sum(axis=-2)
