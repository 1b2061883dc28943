"""What an SAE is trained to minimise: selection of latents, reconstruction, sparsity, revival of the dead.

Pure functions of arrays, all in normalised units. ``n`` tokens, ``d`` the model's width, ``f`` latents.
Reconstruction losses are the squared error summed over ``d``, averaged over tokens and divided by ``d``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from lens_tui.records.training import TrainConfig

from .parameters import Parameters, preactivations

_TINY = 1e-6
_SELECTION_LIMIT = 1 << 21
"""The batch threshold is taken from at most this many pre-activations: to sort a whole wide batch costs more than
its matrix products do."""


class Losses(NamedTuple):
    """One batch: the total to minimise, the squared error, mean L0, and which latents fired ``(f,)``."""

    total: mx.array
    error: mx.array
    l0: mx.array
    fired: mx.array


def topk_threshold(pre: mx.array, k: int) -> mx.array:
    """The ``k``-th largest of each row, ``(n, 1)``."""
    return mx.min(mx.topk(pre, k, axis=-1), axis=-1, keepdims=True)


def batch_threshold(pre: mx.array, k: int) -> mx.array:
    """The value that ``k`` pre-activations a token reach on average over the batch, a scalar.

    Of a batch with more than 2 M entries the first rows that hold as many are used: rows
    come shuffled, and with 10,000 of them above it the count is right to 1 %.
    """
    rows = max(1, min(pre.shape[0], _SELECTION_LIMIT // pre.shape[1]))
    flat = pre[:rows].reshape(-1)
    place = flat.size - min(rows * k, flat.size)
    return mx.partition(flat, place)[place]


def jumprelu(pre: mx.array, log_threshold: mx.array, bandwidth: float) -> tuple[mx.array, mx.array]:
    """``pre`` where above the threshold, and the gate (1 where it fires), both ``(n, f)``.

    Forward: exact. Backward to the threshold ``t``, with ``K`` the rectangle of width ``bandwidth``
    around it: ``dz/dt = -(t / bandwidth) K``, ``dgate/dt = -(1 / bandwidth) K`` (Rajamanoharan et al. 2024, eq. 11-12).
    """
    threshold = mx.exp(log_threshold).astype(pre.dtype)
    held = mx.stop_gradient(threshold)
    fixed = mx.stop_gradient(pre)
    gate = (fixed > held).astype(pre.dtype)
    kernel = (mx.abs(fixed - held) < bandwidth / 2).astype(pre.dtype) / bandwidth
    pull = held - threshold  # zero in value; carries the gradient to the threshold
    return pre * gate + held * kernel * pull, gate + kernel * pull


def activations(p: Parameters, pre: mx.array, config: TrainConfig) -> tuple[mx.array, mx.array]:
    """``(z, gate)`` of the pre-activations in the way of ``config.architecture``, both ``(n, f)``."""
    if config.architecture == "jumprelu":
        return jumprelu(pre, p["log_threshold"], config.bandwidth)
    select = topk_threshold if config.architecture == "topk" else batch_threshold
    threshold = mx.maximum(select(mx.stop_gradient(pre), config.k), _TINY)
    gate = (pre >= threshold).astype(pre.dtype)
    return pre * gate, gate


def reconstruction_errors(p: Parameters, x: mx.array, z: mx.array, prefixes: Sequence[int]) -> list[mx.array]:
    """``x_hat - x``, ``(n, d)`` float32, of the first ``m`` latents for each ``m`` in ``prefixes``, then of all."""
    ends = [*prefixes, z.shape[1]]
    total = p["b_dec"] - x
    errors = []
    for start, end in zip([0, *prefixes], ends, strict=True):
        part = z[:, start:end] @ p["w_dec"][start:end].astype(z.dtype)
        total = total + part.astype(mx.float32)
        errors.append(total)
    return errors


def auxiliary_loss(p: Parameters, x: mx.array, error: mx.array, idle: mx.array, config: TrainConfig) -> mx.array:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the dead latents explain what is left over.

    ``error`` is ``x_hat - x``; ``idle`` ``(f,)`` counts the tokens since each latent
    fired. The longest dead latents, at most ``aux_slots`` of them, reconstruct ``x - x_hat`` with the ``aux_k`` of
    them that are largest on each token. Zero when none is dead.
    """
    width, d = p["w_dec"].shape
    slots = min(config.aux_slots or 512, width)
    k = min(config.aux_k or max(1, d // 2), slots)
    chosen = mx.argpartition(-idle, slots - 1)[:slots] if slots < width else mx.arange(width)
    dead = idle[chosen] > config.dead_after
    part: Parameters = {
        "w_enc": mx.take(p["w_enc"], chosen, axis=1),
        "b_enc": mx.take(p["b_enc"], chosen),
        "b_dec": mx.stop_gradient(p["b_dec"]),
    }
    pre = mx.where(dead, mx.maximum(preactivations(part, x), 0), 0)
    z = pre * (pre >= mx.maximum(topk_threshold(mx.stop_gradient(pre), k), _TINY)) if k < slots else pre
    left = mx.stop_gradient(error) + z @ mx.take(p["w_dec"], chosen, axis=0)
    return mx.where(mx.any(dead), mx.mean(mx.square(left)), 0.0)


def sparsity_loss(l0: mx.array, config: TrainConfig, ramp: mx.array) -> mx.array:
    """The L0 penalty of JumpReLU training times ``ramp`` (0 to 1 during the warm-up); 0 for the other architectures."""
    if config.architecture != "jumprelu":
        return mx.array(0.0)
    share = l0 / config.k
    return ramp * config.l0_coefficient * (share if config.l0_linear else mx.square(share - 1.0))


def losses(p: Parameters, x: mx.array, idle: mx.array, ramp: mx.array, config: TrainConfig) -> Losses:
    """Everything that one batch of normalised ``x (n, d)`` has to say. Differentiable in ``p``."""
    dtype = mx.bfloat16 if config.compute == "bfloat16" else mx.float32
    pre = preactivations(p, x, dtype)
    z, gate = activations(p, pre, config)
    errors = reconstruction_errors(p, x, z, config.matryoshka)
    squared = [mx.mean(mx.square(error)) for error in errors]
    l0 = mx.mean(mx.sum(gate.astype(mx.float32), axis=-1))  # bfloat16 cannot count past 256
    total = sum(squared[1:], squared[0]) / len(squared) + sparsity_loss(l0, config, ramp)
    if config.aux_coefficient:
        total = total + config.aux_coefficient * auxiliary_loss(p, x, errors[-1], idle, config)
    return Losses(total, squared[-1], l0, mx.any(z > 0, axis=0))
