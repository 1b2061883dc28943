"""What a probe is fitted by, how well scores tell labels apart, and the folds and dealt labels they are judged on.

Everything is NumPy in float64, on activations ``x`` (n, width). ``Reduced`` is what does not depend on the labels: with
it the hundred labellings of a permutation null cost little more than one. Inputs are shifted to their mean and divided
by their root mean square length, so that a penalty means the same at every layer and in every model. Folds and labels
dealt at random are the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
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


Whole = NDArray[np.int64]


def numbered(groups: Sequence[Any]) -> Whole:
    """Groups of any names by number, in order of their first appearance."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], dtype=np.int64)


def stratified(labels: Array, groups: Whole, folds: int, seed: int, *, classes: bool) -> Whole:
    """The fold of each example: groups stay together, and labels are as alike in the folds as groups allow.

    Groups are dealt in a random order, larger ones first, each to the fold that has least of what it holds.

    Args:
        labels: ``(n,)``.
        groups: ``(n,)``, the number of each example's group.
        folds: How many, at most; no more than every class has groups.
        seed: Of the order.
        classes: Labels are 0 and 1; else numbers, of which each fold gets about as many.

    Raises:
        LensError: For fewer than two groups of a class.
    """
    count = int(groups.max()) + 1
    kinds = (labels > 0.5).astype(np.int64) if classes else np.zeros(len(labels), np.int64)
    held = np.zeros((count, 2 if classes else 1), np.int64)
    np.add.at(held, (groups, kinds), 1)
    least = int((held > 0).sum(axis=0).min())
    if least < 2:
        raise LensError(
            "There are too few examples to hold some out of each label.", "Give at least two, in different groups."
        )
    folds = min(folds, least)
    if folds < 2:
        raise LensError(f"Held-out scores need at least 2 folds, not {folds}.")
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-held[order].max(axis=1), kind="stable")]
    sums, fold_of = np.zeros((folds, held.shape[1])), np.zeros(count, np.int64)
    for group in order:
        # Of what the group holds, the fold that has least; of those that are alike, the emptiest.
        costs = [(*sums[at][held[group] > 0].tolist(), sums[at].sum()) for at in range(folds)]
        at = min(range(folds), key=costs.__getitem__)
        sums[at] += held[group]
        fold_of[group] = at
    found: Whole = fold_of[groups]
    return found


def dealt(labels: Array, groups: Whole, count: int, seed: int) -> Array:
    """Labels at random, ``(n, count)``: within groups where a group holds several labels, else whole groups' labels.

    So a permutation keeps what makes examples alike: the two texts of a pair change places, the tokens of a text keep
    one label.
    """
    rng = np.random.default_rng(seed)
    size = int(groups.max()) + 1
    members = [np.flatnonzero(groups == group) for group in range(size)]
    found = np.empty((len(labels), count))
    if all((labels[member] == labels[member[0]]).all() for member in members):
        own = np.array([labels[member[0]] for member in members])
        for at in range(count):
            found[:, at] = own[rng.permutation(size)][groups]
        return found
    for at in range(count):
        for member in members:
            found[member, at] = labels[rng.permutation(member)]
    return found
