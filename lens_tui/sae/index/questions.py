"""Questions across features: which matter at a token, which fire together, which write alike, which promote a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.features import CoActive, ContrastedFeature, Promoter

from .index_reader import FeatureIndex
from .tables import as_numpy

Ranking = Literal["activation", "rank"]


def rank_features(
    index: FeatureIndex, ids: NDArray[Any], values: NDArray[Any], *, by: Ranking = "activation", k: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The top features of one token, from its active features.

    See :func:`direct_effects` for a third way to rank them.

    Args:
        index: the SAE's index.
        ids: the token's features, ``(n,)``.
        values: their activations, ``(n,)``; those not above 0 are left out.
        by: ``"activation"``, the value itself; or ``"rank"``, the share (0 to 1) of the feature's own active tokens in
            the corpus that are weaker, which puts a feature near its maximum before a dense one that is merely
            large. Features that never fired in the corpus rank 1.
        k: how many to give.

    Returns:
        ids and scores, best first.
    """
    ids, values = index.check_all(ids), np.asarray(values, np.float64)
    if ids.shape != values.shape or ids.ndim != 1:
        raise LensError(f"Feature ids {ids.shape} and values {values.shape} differ in shape.", "Both are (n,).")
    ids, values = ids[values > 0], values[values > 0]
    if by == "activation":
        scores = values
    elif by == "rank":
        scores = np.nan_to_num(index.quantile(ids, values), nan=1.0)
    else:
        raise LensError(f"There is no ranking {by!r}.", "Choose activation or rank.")
    order = np.lexsort((ids, -values, -scores))[: max(k, 0)]
    return ids[order], scores[order]


def direct_effects(
    residual: Any,
    contributions: Any,
    next_token: int,
    logprobs: Callable[[NDArray[np.float32]], Any],
) -> NDArray[np.float64]:
    """What each feature adds to the log-probability of the next token by the direct path, in nats, ``(k,)``.

    ``log p(next | r) - log p(next | r - c_i)``, where ``r`` is the final
    residual ``(d,)`` of the token and ``c_i`` a feature's contribution to it: its
    activation times its decoder row as it is (not made unit), ``(k, d)``.
    ``logprobs`` maps ``(n, d)`` through final norm and unembedding to ``(n, vocabulary)``.
    *Direct*: later layers are not run again (as sae_vis' loss effect, with the real norm).
    """
    r, c = as_numpy(residual, np.float32), as_numpy(contributions, np.float32)
    if r.ndim != 1 or c.ndim != 2 or c.shape[1] != len(r):
        raise LensError(f"A residual {r.shape} and contributions {c.shape} do not fit.", "Give (d,) and (k, d).")
    scores = as_numpy(logprobs(np.concatenate([r[None], r - c])), np.float64)
    if not 0 <= next_token < scores.shape[1]:
        raise LensError(f"There is no token {next_token}.", f"The vocabulary has {scores.shape[1]} tokens.")
    return np.asarray(scores[0, next_token] - scores[1:, next_token])


def co_active(index: FeatureIndex, feature: int, *, k: int = 10, limit: int = 50_000) -> tuple[CoActive, ...]:
    """The features that fire at the same tokens, by Jaccard index, highest first.

    Args:
        index: a full index (``IndexSettings(full=True)``), or one that kept a table of them: as many as it kept.
        feature: the feature to start from.
        k: how many to give.
        limit: exact for features with at most this many active tokens; of others this many tokens, evenly spaced over
            the corpus, are used and counts scaled up. A table is exact for all.

    Raises:
        LensError: for an index that is neither, and a feature that it does not have.
    """
    total = used = int(index.count[index.check(feature)])
    if total == 0:
        return ()
    if index.full:
        tokens = np.sort(index.everywhere(feature)[0])
        if total > limit:
            tokens = tokens[np.linspace(0, total - 1, limit).astype(np.int64)]
        used = len(tokens)
        hits = np.bincount(index.features_at(tokens), minlength=index.width).astype(np.float64)
        hits[feature] = 0
        ids = np.flatnonzero(hits)
        both = hits[ids] * (total / used)
    else:
        ids, counts = index.kept_co_active(feature)
        both = counts.astype(np.float64)
    count = np.asarray(index.count[ids], np.float64)
    jaccard = both / np.maximum(count + total - both, 1.0)
    order = np.lexsort((ids, -jaccard))[: max(k, 0)]
    return tuple(
        CoActive(
            int(ids[i]),
            float(both[i]),
            float(both[i] / total),
            float(jaccard[i]),
            float(both[i] * index.n_counted / (total * count[i])),
            used,
        )
        for i in order
    )


def decoder_neighbours(
    directions: Callable[[NDArray[np.int64]], Any], width: int, feature: int, *, k: int = 10, block: int = 16_384
) -> tuple[tuple[int, float], ...]:
    """The features whose unit decoder directions are nearest: (feature, cosine), nearest first, itself left out.

    Args:
        directions: gives the unit decoder rows ``(n, d)`` of feature ids ``(n,)``, as :meth:`SAE.directions` does.
        width: the number of features.
        feature: the feature to start from.
        k: how many to give.
        block: how many rows are held in memory at a time.

    Raises:
        LensError: for a feature outside the width.
    """
    if not 0 <= feature < width:
        raise LensError(f"There is no feature {feature}.", f"The SAE has features 0..{width - 1}.")
    own = as_numpy(directions(np.array([feature])), np.float32)[0]
    cosines = np.concatenate(
        [
            as_numpy(directions(np.arange(start, min(start + block, width))), np.float32) @ own
            for start in range(0, width, block)
        ]
    )
    cosines[feature] = -np.inf
    order = np.lexsort((np.arange(width), -cosines))[: min(max(k, 0), width - 1)]
    return tuple((int(i), float(cosines[i])) for i in order)


def promoting(
    index: FeatureIndex,
    token_ids: Sequence[int],
    *,
    convention: str = "norm",
    suppressing: bool = False,
    k: int = 20,
) -> tuple[Promoter, ...]:
    """The features that list any of some tokens among those they promote, strongest push first.

    Args:
        index: the SAE's index, with its token tables.
        token_ids: the tokens to look for.
        convention: which token table: ``"norm"`` (the final norm's gain folded in) or ``"raw"``.
        suppressing: look among the tokens that features suppress instead.
        k: how many to give.

    Raises:
        LensError: for a token table that the index does not have.
    """
    table = index.table(convention)
    ids = table.suppressed_ids if suppressing else table.promoted_ids
    values = table.suppressed_values if suppressing else table.promoted_values
    rows, places = np.nonzero(np.isin(ids, np.asarray(list(token_ids), np.int64)))
    pushed = np.asarray(values[rows, places])
    order = np.lexsort((places, rows, pushed if suppressing else -pushed))[: max(k, 0)]
    return tuple(Promoter(int(rows[i]), int(ids[rows[i], places[i]]), float(pushed[i]), int(places[i])) for i in order)


Measure = Literal["auc", "difference"]
Over = Literal["max", "mean"]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """One text as its features: distinct ``ids`` and one ``values`` each, ``(m,)``. Silent features are left out."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


def text_features(
    ids: NDArray[Any], values: NDArray[Any], special: NDArray[np.bool_], *, over: Over = "max"
) -> TextFeatures:
    """One text's features from those of its tokens.

    Args:
        ids: the features of each token, ``(n, k)``.
        values: their activations, ``(n, k)``.
        special: which tokens are special and do not count, ``(n,)``.
        over: ``"max"``, each feature's strongest token; or ``"mean"``, its mean over all tokens that count (silent
            ones as 0).

    Raises:
        LensError: for shapes that differ.
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


def contrast_features(
    a: Sequence[TextFeatures],
    b: Sequence[TextFeatures],
    *,
    measure: Measure = "auc",
    both_sides: bool = False,
    k: int = 20,
    seed: int = 0,
) -> tuple[ContrastedFeature, ...]:
    """The features that best tell texts A from texts B, by their score on texts they were not chosen on.

    Each side is shuffled and halved; candidates are chosen on the first halves and ordered by the second. How good the
    best of them would look by chance is found by dealing the held-out texts to the two sides at random, 999 times
    (the distribution of the maximum: Westfall and Young, Resampling-Based Multiple Testing, 1993): ``p``, ``null``.

    Args:
        a: the features of each text of side A, from :func:`text_features`.
        b: those of side B.
        measure: ``"auc"``, P(a > b) + P(a = b) / 2; or ``"difference"``, of means over the pooled standard deviation.
        both_sides: also find features that are stronger in B.
        k: how many to give.
        seed: of the shuffle and of the deals.

    Raises:
        LensError: for fewer than four texts on a side, and an unknown measure.
    """
    _check_contrast(a, b, measure)
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
    side = np.where(chosen < centre, -1.0, 1.0) if both_sides else np.ones(len(names))
    p, level = _against_deals(right, left, measure, side, rng)
    areas, effects = auc(right, left), standardised_difference(right, left)
    chance = ((len(right) + len(left) + 1) / (12 * len(right) * len(left))) ** 0.5
    every = np.full(len(names), chance)
    means, shares = (right.mean(0), left.mean(0)), ((right > 0).mean(0), (left > 0).mean(0))
    columns = np.stack([chosen, judged, every, *means, *shares, areas, effects, p, centre + side * level], axis=1)
    rows: list[list[Any]] = columns.astype(np.float64).tolist()
    return tuple(ContrastedFeature(int(names[i]), *rows[i]) for i in np.lexsort((names, -(judged - centre) * side)))


def _check_contrast(a: Sequence[TextFeatures], b: Sequence[TextFeatures], measure: str) -> None:
    if measure not in ("auc", "difference"):
        raise LensError(f"There is no measure {measure!r}.", "Choose auc or difference.")
    if min(len(a), len(b)) < 4:
        raise LensError(
            f"There are {len(a)} texts against {len(b)}; choosing on one half and judging on the other "
            "needs four on each side.",
            "Give more texts, for example one a line.",
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


DEALS = 999
"""How often held-out texts are dealt to the sides at random."""


def _against_deals(
    a: Matrix, b: Matrix, measure: Measure, side: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """How often the best feature of a random deal scores as well as each, and what it reaches in one of twenty.

    A feature's score is how far it is from telling nothing, on the ``side`` it was chosen for.
    """
    values = np.concatenate([a, b]).astype(np.float64)
    of_deals = _dealt_auc if measure == "auc" else _dealt_difference
    own = of_deals(values, np.arange(len(values))[None] < len(a))[0] * side
    best = np.empty(DEALS)
    block = max(1, 2_000_000 // max(values.shape[1], 1))
    for start in range(0, DEALS, block):
        deals = rng.random((min(block, DEALS - start), len(values))).argsort(1) < len(a)
        best[start : start + len(deals)] = (of_deals(values, deals) * side).max(1)
    as_good = DEALS - np.searchsorted(np.sort(best), own - 1e-9, side="left")
    return np.asarray((1 + as_good) / (1 + DEALS)), float(np.quantile(best, 0.95, method="higher"))


def _dealt_auc(values: NDArray[np.float64], deals: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AUC less 0.5 of every column ``(n, m)`` for every deal ``(deals, n)``: ranks do not change with the deal."""
    ranks = np.empty_like(values)
    for column in range(values.shape[1]):
        _, place, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n_a = int(deals[0].sum())
    won = deals.astype(np.float64) @ ranks - n_a * (n_a + 1) / 2
    return np.asarray(won / (n_a * (len(values) - n_a)) - 0.5)


def _dealt_difference(values: NDArray[np.float64], deals: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The standardised difference of every column for every deal."""
    centred = values - values.mean(0)
    n_a = int(deals[0].sum())
    n_b = len(values) - n_a
    of_a = deals.astype(np.float64) @ centred
    mean_a, mean_b = of_a / n_a, -of_a / n_b
    whole = (centred**2).sum(0)
    within = np.maximum(whole - n_a * mean_a**2 - n_b * mean_b**2, 0.0)
    within[within < 1e-12 * whole] = 0.0
    spread = np.sqrt(within / max(len(values) - 2, 1))
    difference = mean_a - mean_b
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.abs(difference) < 1e-12, 0.0, difference / spread))


def _matrix(texts: Sequence[TextFeatures], which: NDArray[np.int64], names: NDArray[np.int64]) -> Matrix:
    """Values ``(texts, features)`` of the named features (rising), 0 where silent."""
    matrix = np.zeros((len(which), len(names)), np.float32)
    for row, number in zip(matrix, which, strict=True):
        text = texts[number]
        place = np.minimum(np.searchsorted(names, text.ids), len(names) - 1)
        known = names[place] == text.ids
        row[place[known]] = text.values[known]
    return matrix
