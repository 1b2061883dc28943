"""Find features by contrast: chosen on half of the texts, judged on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

Measure = Literal["auc", "difference"]
Over = Literal["max", "mean"]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """One text as its features: distinct ``ids`` and one ``values`` each, ``(m,)``. Silent features are left out."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Contrast:
    """How well a feature tells texts A from texts B.

    ``chosen`` is its score on the half it was chosen on (optimistic: it won there),
    ``held_out`` on the other half, which is the one to believe. Scores are the
    AUC, P(a > b) + P(a = b) / 2 (0.5 is chance, below it the feature is stronger
    in B), or the difference of means over the pooled standard deviation.
    ``chance`` is the standard deviation of the held-out AUC of a feature that
    tells nothing. Means and shares (of texts where it is active) are held out.
    """

    feature: int
    chosen: float
    held_out: float
    chance: float
    mean_a: float
    mean_b: float
    active_a: float
    active_b: float


def text_features(
    ids: NDArray[Any], values: NDArray[Any], special: NDArray[np.bool_], *, over: Over = "max"
) -> TextFeatures:
    """One text's features from those of its tokens: ``ids`` and ``values`` ``(n, k)``, ``special`` ``(n,)``.

    ``max`` is each feature's strongest token, ``mean`` its mean over all tokens
    that are not special (silent ones count as 0).
    """
    ids, values = np.asarray(ids, np.int64), np.asarray(values, np.float32)
    if ids.shape != values.shape or ids.ndim != 2 or len(special) != len(ids):
        raise LensError(f"Feature ids {ids.shape}, values {values.shape} and the mask differ in shape.")
    mask = (values > 0) & ~np.asarray(special, bool)[:, None]
    names, place = np.unique(ids[mask], return_inverse=True)
    if over == "max":
        result = np.zeros(len(names), np.float32)
        np.maximum.at(result, place.reshape(-1), values[mask])
    else:
        n = max(int((~np.asarray(special, bool)).sum()), 1)
        result = (np.bincount(place.reshape(-1), values[mask], len(names)) / n).astype(np.float32)
    return TextFeatures(names, result)


def contrast(
    a: Sequence[TextFeatures],
    b: Sequence[TextFeatures],
    *,
    measure: Measure = "auc",
    both_sides: bool = False,
    k: int = 20,
    seed: int = 0,
) -> tuple[Contrast, ...]:
    """The ``k`` features that best tell texts A from texts B, by their score on texts they were not chosen on.

    Each side is shuffled (``seed``) and halved; candidates are chosen on the first
    halves and ordered by the second. ``both_sides`` also finds features that are
    stronger in B. Raises :class:`LensError` below four texts a side.
    """
    if measure not in ("auc", "difference"):
        raise LensError(f"There is no measure {measure!r}.", "Choose auc or difference.")
    if min(len(a), len(b)) < 4:
        raise LensError(
            f"There are {len(a)} texts against {len(b)}; halves to choose on and to judge on need four a side.",
            "Give more texts, for example one a line.",
        )
    rng = np.random.default_rng(seed)
    order_a, order_b = rng.permutation(len(a)), rng.permutation(len(b))
    choose_a, judge_a = order_a[: len(a) // 2], order_a[len(a) // 2 :]
    choose_b, judge_b = order_b[: len(b) // 2], order_b[len(b) // 2 :]
    seen = [text.ids for text in (*(a[i] for i in choose_a), *(b[i] for i in choose_b))]
    names = np.unique(np.concatenate(seen))
    if len(names) == 0 or k < 1:
        return ()
    score = auc if measure == "auc" else standardised_difference
    centre = 0.5 if measure == "auc" else 0.0
    chosen = score(_matrix(a, choose_a, names), _matrix(b, choose_b, names))
    strength = np.abs(chosen - centre) if both_sides else chosen - centre
    best = np.sort(np.lexsort((names, -strength))[: max(k, 0)])
    names, chosen = names[best], chosen[best]
    right, left = _matrix(a, judge_a, names), _matrix(b, judge_b, names)
    judged = score(right, left)
    side = np.sign(chosen - centre) if both_sides else 1.0
    chance = ((len(right) + len(left) + 1) / (12 * len(right) * len(left))) ** 0.5
    return tuple(
        Contrast(
            int(names[i]),
            float(chosen[i]),
            float(judged[i]),
            float(chance),
            float(right[:, i].mean()),
            float(left[:, i].mean()),
            float((right[:, i] > 0).mean()),
            float((left[:, i] > 0).mean()),
        )
        for i in np.lexsort((names, -(judged - centre) * side))
    )


def auc(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """P(a > b) + P(a = b) / 2 for each column of ``(n_a, m)`` and ``(n_b, m)`` (Mann-Whitney), ``(m,)``."""
    wins = np.zeros(a.shape[1])
    for row in a:
        wins += (row > b).sum(0) + 0.5 * (row == b).sum(0)
    return np.asarray(wins / (len(a) * len(b)))


def standardised_difference(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """(mean a - mean b) / pooled standard deviation of each column; infinite where they differ and neither varies."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    difference = x.mean(0) - y.mean(0)
    within = ((x - x.mean(0)) ** 2).sum(0) + ((y - y.mean(0)) ** 2).sum(0)
    spread = np.sqrt(within / max(len(x) + len(y) - 2, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(difference == 0, 0.0, difference / spread))


def _matrix(texts: Sequence[TextFeatures], which: NDArray[np.int64], names: NDArray[np.int64]) -> Matrix:
    """Values ``(texts, features)`` of the named features (rising), 0 where silent."""
    matrix = np.zeros((len(which), len(names)), np.float32)
    for row, number in zip(matrix, which, strict=True):
        text = texts[number]
        place = np.minimum(np.searchsorted(names, text.ids), len(names) - 1)
        known = names[place] == text.ids
        row[place[known]] = text.values[known]
    return matrix
