"""Distributions over the vocabulary, as float32 log-probabilities: the one place of their formulas."""

from __future__ import annotations

import mlx.core as mx


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities in float32 of logits along the last axis."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def kl(p: mx.array, q: mx.array) -> mx.array:
    """D(p || q) in nats along the last axis of float32 log-probabilities; NaN where either is not a distribution.

    Never below 0 by rounding. A token that ``p`` cannot choose adds nothing: 0 log 0 = 0.
    """
    share = mx.exp(p)
    terms = mx.where(share == 0.0, 0.0, share * (p - q))
    return mx.maximum(terms.sum(axis=-1), 0.0)  # MLX's comparison and maximum keep NaN


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """``-log p(target)`` in nats, ``(...,)``, of logits ``(..., vocabulary)`` and token ids ``(...,)``; in float32."""
    logits = logits.astype(mx.float32)
    return mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
