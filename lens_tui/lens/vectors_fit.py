"""Directions that separate two sets of activations, and how well they do: plain functions of NumPy arrays.

Everywhere ``positive`` and ``negative`` have shape (pairs, width) and row i of both belongs to pair i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

Method = Literal["mean_difference", "pca_diff", "pca_center", "logistic"]
METHODS: tuple[str, ...] = get_args(Method)
Array = NDArray[np.float64]
L2 = 0.01
_NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True)
class Separation:
    """How well projections on a direction tell held-out positives from negatives.

    ``accuracy`` is the share of texts on the right side of the midpoint of the two
    training means, ``pairs`` the share of pairs whose positive projects further than its negative (a tie
    counts half), ``auc`` the same over every positive with every negative, and
    ``d_prime`` the distance of the means in units of the root of the mean variance.
    """

    accuracy: float
    pairs: float
    auc: float
    d_prime: float


def fit(method: str, positive: Array, negative: Array) -> Array:
    """The direction of a method, shape (width,); its length is that of the mean difference, or 1 for the others."""
    if method == "mean_difference":
        return np.asarray(positive.mean(axis=0) - negative.mean(axis=0))
    if method == "pca_diff":
        return _signed(_principal(positive - negative, centred=True), positive, negative)
    if method == "pca_center":
        return _signed(_principal((positive - negative) / 2, centred=False), positive, negative)
    if method == "logistic":
        return logistic(positive, negative)[0]
    raise LensError(f"There is no method {method!r} of making vectors.", f"Use one of {', '.join(METHODS)}.")


def logistic(positive: Array, negative: Array, l2: float = L2) -> tuple[Array, float]:
    """Logistic regression by Newton's method: the unit weight vector, and the loss that was reached.

    Minimises ``mean log(1 + exp(-y (w.x + b))) + l2/2 ||w||^2`` with activations
    shifted to their common mean and divided by their root mean square length, so that ``l2`` means
    the same in every model. The weights lie in the span of the texts, so the
    steps are taken in that space of at most 2 * pairs dimensions.
    """
    x = np.concatenate([positive, negative])
    x = x - x.mean(axis=0)
    size = np.sqrt((x * x).sum(axis=1).mean())
    if size == 0:
        raise LensError("All activations are the same, so nothing separates them.", "Use texts that differ.")
    u, s, basis = np.linalg.svd(x / size, full_matrices=False)
    z = np.concatenate([u * s, np.ones((len(x), 1))], axis=1)
    y = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    penalty = np.append(np.full(len(s), l2), 0.0)
    w = np.zeros(z.shape[1])
    loss = _loss(z, y, w, penalty)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(np.clip(y * (z @ w), -500, 500)))
        gradient = -(z.T @ (y * p)) / len(y) + penalty * w
        curve = (z.T * (p * (1 - p) / len(y))) @ z + np.diag(penalty + 1e-12)
        step, size = np.linalg.solve(curve, gradient), 1.0
        while (new := _loss(z, y, w - size * step, penalty)) > loss and size > 1e-8:
            size /= 2
        w, before, loss = w - size * step, loss, min(new, loss)
        if before - loss < 1e-14:
            break
    weights = w[:-1] @ basis
    return weights / np.linalg.norm(weights), loss


def separation(positive: Array, negative: Array, midpoint: float = 0.0) -> Separation:
    """Of projections, shape (n,) each, positives and negatives of the same pairs."""
    right = np.concatenate([positive - midpoint, midpoint - negative])
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    gap = float(positive.mean() - negative.mean())
    return Separation(
        accuracy=float(_ahead(right).mean()),
        pairs=float(_ahead(positive - negative).mean()),
        auc=float(_ahead(positive[:, None] - negative[None]).mean()),
        d_prime=gap / float(spread) if spread > 0 else float(np.sign(gap)) * np.inf if gap else 0.0,
    )


def cross_validated(method: str, positive: Array, negative: Array, folds: NDArray[np.int64]) -> Separation:
    """Separation of pairs by the directions that were fitted without them.

    ``folds`` (pairs,) numbers the fold of each pair. Projections are on unit
    directions, measured from the midpoint of the training means, so that folds can be pooled.
    """
    plus: list[Array] = []
    minus: list[Array] = []
    for fold in np.unique(folds):
        train = folds != fold
        direction = fit(method, positive[train], negative[train])
        length = np.linalg.norm(direction)
        if length == 0:
            raise LensError("Some pairs held out, the others do not differ at all.", "Add pairs that differ.")
        direction = direction / length
        middle = (positive[train].mean(axis=0) + negative[train].mean(axis=0)) / 2 @ direction
        held = ~train
        plus.append(positive[held] @ direction - middle)
        minus.append(negative[held] @ direction - middle)
    return separation(np.concatenate(plus), np.concatenate(minus))


def _ahead(difference: Array) -> Array:
    return np.asarray((difference > 0) + 0.5 * (difference == 0), dtype=np.float64)


def _loss(z: Array, y: Array, w: Array, penalty: Array) -> float:
    return float(np.logaddexp(0, -y * (z @ w)).mean() + (penalty * w * w).sum() / 2)


def _principal(rows: Array, *, centred: bool) -> Array:
    """The first principal component, by the small matrix of the rows' products."""
    rows = rows - rows.mean(axis=0) if centred else rows
    if not np.any(rows):
        raise LensError("The differences of the pairs are all the same, so they have no component.", "Add pairs.")
    _, vectors = np.linalg.eigh(rows @ rows.T)
    component = rows.T @ vectors[:, -1]
    return np.asarray(component / np.linalg.norm(component))


def _signed(direction: Array, positive: Array, negative: Array) -> Array:
    """repeng's convention: in most pairs the positive text projects further than the negative one."""
    gaps = (positive - negative) @ direction
    return -direction if (gaps < 0).sum() > (gaps > 0).sum() else direction
