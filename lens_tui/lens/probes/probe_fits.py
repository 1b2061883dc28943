"""What a probe is fitted by: a weight and a bias for each labelling, and how well scores tell labels apart.

Everything is NumPy in float64, on activations ``x`` (n, width). ``Reduced`` is what does not depend on the labels: with
it the hundred labellings of a permutation null cost little more than one. Inputs are shifted to their mean and divided
by their root mean square length, so that a penalty means the same at every layer and in every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

Array = NDArray[np.float64]
ProbeKind = Literal["mean_difference", "logistic", "ridge"]
PROBE_KINDS: tuple[str, ...] = get_args(ProbeKind)
L2 = 0.01
_STEPS, _MOST, _CLOSE = 60, 3000, 1e-10


@dataclass(frozen=True, eq=False)
class Reduced:
    """Activations in the space that they span: ``x = mean + size * (z @ basis)``; the columns of ``z`` are orthogonal.

    ``z`` is (n, rank), ``squares`` (rank,) the columns' squared lengths divided by n.
    """

    x: Array
    mean: Array
    size: float
    z: Array
    basis: Array
    squares: Array

    @classmethod
    def of(cls, x: Array) -> Reduced:
        """Of activations (n, width). Raises :class:`LensError` where they are all the same."""
        mean = x.mean(axis=0)
        centred = x - mean
        size = float(np.sqrt((centred * centred).sum(axis=1).mean()))
        if size == 0.0:
            raise LensError("All activations are the same, so nothing is read from them.", "Use texts that differ.")
        centred = centred / size
        # The small one of the two matrices of products: activations are many and narrow, or few and wide.
        if len(x) > x.shape[1]:
            values, vectors = np.linalg.eigh(centred.T @ centred)
            keep = values > values[-1] * 1e-12
            basis = vectors[:, keep].T
            z = centred @ basis.T
        else:
            values, vectors = np.linalg.eigh(centred @ centred.T)
            keep = values > values[-1] * 1e-12
            z = vectors[:, keep] * np.sqrt(values[keep])
            basis = (z.T @ centred) / values[keep][:, None]
        return cls(x, mean, size, z, basis, values[keep] / len(x))

    def raw(self, weights: Array, biases: Array) -> tuple[Array, Array]:
        """Weights (rank, k) and biases (k,) on ``z`` as those on the activations: (k, width) and (k,)."""
        wide = weights.T @ self.basis / self.size
        return wide, biases - wide @ self.mean


def fit_many(kind: str, reduced: Reduced, labels: Array, l2: float = L2) -> tuple[Array, Array]:
    """Weights (k, width) and biases (k,) of ``k`` labellings (n, k) of the same activations.

    Args:
        kind: ``mean_difference``: the mean where the label is 1 less the mean where it is 0, zero in the middle;
            ``logistic``: the minimum of ``mean log(1 + exp(-y (w.x + b))) + l2/2 ||w||^2``; ``ridge``: that of
            ``mean (y - w.x - b)^2 / 2 + l2/2 ||w||^2``, for labels that are any numbers.
        reduced: The activations.
        labels: 0 and 1, or numbers for ``ridge``.
        l2: The penalty, on inputs of root mean square length 1.
    """
    if kind == "ridge":
        means = labels.mean(axis=0)
        weights = (reduced.z.T @ (labels - means) / len(labels)) / (reduced.squares + l2)[:, None]
        return reduced.raw(weights, means)
    ones = labels.sum(axis=0)
    if ((ones == 0) | (ones == len(labels))).any():
        raise LensError("A probe needs texts of both labels.", "Give at least one of each in every fold.")
    if kind == "mean_difference":
        plus, minus = labels.T @ reduced.x / ones[:, None], (1 - labels).T @ reduced.x / (len(labels) - ones)[:, None]
        return plus - minus, -((plus - minus) * (plus + minus)).sum(axis=1) / 2
    if kind == "logistic":
        return reduced.raw(*_logistic(reduced, labels, l2))
    raise LensError(f"There is no kind {kind!r} of probe.", f"Use one of {', '.join(PROBE_KINDS)}.")


def _logistic(reduced: Reduced, labels: Array, l2: float) -> tuple[Array, Array]:
    """All labellings at once by accelerated gradient steps, each coordinate with the largest curvature it can have.

    Restarted where the momentum points uphill (O'Donoghue and Candes 2012, 1204.3982); one labelling alone is finished
    by Newton's method, and is exact.
    """
    z = np.concatenate([reduced.z, np.ones((len(labels), 1))], axis=1)
    penalty = np.append(np.full(reduced.z.shape[1], l2), 0.0)[:, None]
    curvature = np.append(reduced.squares, 1.0)[:, None] / 4 + penalty
    w = np.zeros((z.shape[1], labels.shape[1]))
    ahead, momentum = w, np.ones(labels.shape[1])
    for _ in range(_MOST if labels.shape[1] > 1 else 200):
        gradient = z.T @ (_sigmoid(z @ ahead) - labels) / len(labels) + penalty * ahead
        if np.abs(gradient).max() < 1e-7:
            break
        new = ahead - gradient / curvature
        uphill = (gradient * (new - w)).sum(axis=0) > 0
        momentum = np.where(uphill, 1.0, momentum)
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, w, momentum = new + (momentum - 1) / grown * (new - w), new, grown
    if labels.shape[1] == 1:
        w = _newton(z, labels[:, 0], w[:, 0], penalty[:, 0])[:, None]
    return w[:-1], w[-1]


def _newton(z: Array, y: Array, w: Array, penalty: Array) -> Array:
    loss = logistic_loss(z, y, w, penalty)
    for _ in range(_STEPS):
        p = _sigmoid(z @ w)
        gradient = z.T @ (p - y) / len(y) + penalty * w
        if np.abs(gradient).max() < _CLOSE:
            break
        step = np.linalg.solve((z.T * (p * (1 - p) / len(y))) @ z + np.diag(penalty + 1e-12), gradient)
        size = 1.0
        while (new := logistic_loss(z, y, w - size * step, penalty)) > loss and size > 1e-8:
            size /= 2
        w, loss = w - size * step, min(new, loss)
    return w


def logistic_loss(z: Array, y: Array, w: Array, penalty: Array) -> float:
    """What :func:`_newton` makes least, of labels 0 and 1."""
    return float(np.logaddexp(0, (1 - 2 * y) * (z @ w)).mean() + (penalty * w * w).sum() / 2)


def _sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def auc_of(scores: Array, labels: Array) -> Array:
    """For each column the chance that a score with label 1 is above one with label 0, a tie counting half.

    Args:
        scores: ``(n, k)``.
        labels: ``(n, k)``, 0 and 1.

    Returns:
        ``(k,)``; NaN where one of the labels is not there.
    """
    order = np.argsort(scores, axis=0, kind="stable")
    ranks = np.empty(scores.shape)
    for column in range(scores.shape[1]):
        ordered = scores[order[:, column], column]
        first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        starts = np.append(np.flatnonzero(first), len(ordered))
        ranks[order[:, column], column] = ((starts[:-1] + starts[1:] + 1) / 2)[np.cumsum(first) - 1]
    ones = labels.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = ((ranks * labels).sum(axis=0) - ones * (ones + 1) / 2) / (ones * (len(labels) - ones))
    return found


def r2_of(predicted: Array, labels: Array) -> Array:
    """For each column ``1 - sum (y - predicted)^2 / sum (y - mean y)^2``; NaN where the labels are all the same."""
    spread = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(spread > 0, 1 - ((labels - predicted) ** 2).sum(axis=0) / spread, np.nan)
    return found


def strongest(x: Array, labels: NDArray[Any], k: int) -> NDArray[Any]:
    """The ``k`` columns of ``x`` whose means differ most between the labels, in units of each column's deviation.

    What sparse probing chooses neurons by (Gurnee et al. 2023, 2305.01610), the maximum mean difference; of columns
    that are alike the first.
    """
    gap = np.abs(x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0))
    spread = x.std(axis=0)
    found: NDArray[Any] = np.argsort(-gap / np.where(spread > 0, spread, np.inf), kind="stable")[:k]
    return np.sort(found)
