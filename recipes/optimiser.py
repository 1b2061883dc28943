"""Muon for the matrices inside the blocks, AdamW for everything else.

Muon (Jordan et al. 2024) orthogonalises the momentum of each matrix. Here decay is decoupled (Loshchilov &
Hutter 2019), as in Moonlight (Liu et al. 2025): `mlx.optimizers.Muon` adds it to the gradient, where the
orthogonalisation rescales it. Matrices of one shape go through Newton-Schulz as one batch, which on a GPU
replaces thousands of small kernels per step by a few dozen.
"""

from __future__ import annotations

from collections import defaultdict

import mlx.core as mx

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5

Arrays = dict[str, mx.array]


def is_matrix(name: str, weight: mx.array) -> bool:
    """Whether Muon takes this parameter: the blocks' matrices, not the embedding and not the gains."""
    return weight.ndim == 2 and "embed" not in name and "lm_head" not in name


def orthogonalise(matrices: mx.array) -> mx.array:
    """Push the singular values of a batch of matrices (n, rows, columns) toward 1 by a quintic Newton-Schulz."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.swapaxes(-1, -2) if tall else matrices
    x = x / (mx.sqrt(mx.square(x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(-1, -2) if tall else x


def muon_step(
    parameters: Arrays,
    gradients: Arrays,
    momentum: Arrays,
    rate: mx.array,
    decay: float,
    beta: float = 0.95,
) -> tuple[Arrays, Arrays]:
    """One step with Nesterov momentum; returns the new parameters and momentum, by name.

    The update of a tall matrix is scaled by sqrt(rows / columns), so that its RMS effect on activations does
    not depend on the shape.
    """
    moved = {name: beta * momentum[name] + (1 - beta) * gradient for name, gradient in gradients.items()}
    ahead = {name: beta * moved[name] + (1 - beta) * gradient for name, gradient in gradients.items()}
    by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in sorted(parameters):
        by_shape[parameters[name].shape].append(name)
    updated: Arrays = {}
    for shape, names in by_shape.items():
        updates = orthogonalise(mx.stack([ahead[name] for name in names])) * max(1.0, shape[0] / shape[1]) ** 0.5
        for index, name in enumerate(names):
            updated[name] = parameters[name] * (1 - rate * decay) - rate * updates[index]
    return updated, moved


def initial_momentum(parameters: Arrays) -> Arrays:
    """Zeros for every matrix."""
    return {name: mx.zeros_like(weight) for name, weight in parameters.items()}


def clip_scale(gradients: list[mx.array], limit: float) -> tuple[mx.array, mx.array]:
    """The global gradient norm and the factor that brings it under the limit."""
    norm = mx.sqrt(sum((mx.square(gradient).sum() for gradient in gradients), start=mx.array(0.0)))
    return norm, mx.minimum(limit / (norm + 1e-6), 1.0)
