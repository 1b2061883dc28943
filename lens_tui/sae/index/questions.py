"""Questions across features: which matter at a token, which fire together, which write alike, which promote a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .encode import as_numpy
from .read import FeatureIndex

Ranking = Literal["activation", "rank"]


@dataclass(frozen=True, slots=True)
class CoActive:
    """A feature that fires where another does, over the whole corpus.

    ``both`` counts tokens with both, ``given`` is P(this | the other),
    ``jaccard`` both / either, ``lift`` how many times more often than if the
    two were independent. Estimated from ``n_used`` of the other's tokens.
    """

    feature: int
    both: float
    given: float
    jaccard: float
    lift: float
    n_used: int


@dataclass(frozen=True, slots=True)
class Promoter:
    """A feature whose decoder direction pushes a token: ``value`` logits a unit, ``place`` 0 is its strongest token."""

    feature: int
    token_id: int
    value: float
    place: int


def rank_features(
    index: FeatureIndex, ids: NDArray[Any], values: NDArray[Any], *, by: Ranking = "activation", k: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The top features of one token, from its active features: ids and scores, best first.

    ``by="activation"``: the value itself. ``by="rank"``: the share of the
    feature's own active tokens in the corpus that are weaker (0 to 1), which
    puts a feature near its maximum before a dense one that is merely large.
    Features that never fired in the corpus rank 1. See :func:`direct_effects` for the third way.
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
    activation times its decoder row as it stands (not made unit), ``(k, d)``.
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
    """The features that fire at the same tokens, by Jaccard index. Needs a full index.

    Exact for features with at most ``limit`` active tokens; of others ``limit``
    tokens, evenly spaced over the corpus, are used and counts scaled up.
    """
    tokens, _ = index.everywhere(feature)
    total = len(tokens)
    if total == 0:
        return ()
    tokens = np.sort(tokens)
    if total > limit:
        tokens = tokens[np.linspace(0, total - 1, limit).astype(np.int64)]
    used = len(tokens)
    hits = np.bincount(index.features_at(tokens), minlength=index.width).astype(np.float64)
    hits[feature] = 0
    ids = np.flatnonzero(hits)
    both = hits[ids] * (total / used)
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

    ``directions(ids)`` gives unit rows ``(n, d)``; memory stays near one block.
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
    """The features that list any of some tokens among those they promote (or suppress), strongest push first."""
    table = index.table(convention)
    ids = table.suppressed_ids if suppressing else table.promoted_ids
    values = table.suppressed_values if suppressing else table.promoted_values
    rows, places = np.nonzero(np.isin(ids, np.asarray(list(token_ids), np.int64)))
    pushed = np.asarray(values[rows, places])
    order = np.lexsort((places, rows, pushed if suppressing else -pushed))[: max(k, 0)]
    return tuple(Promoter(int(rows[i]), int(ids[rows[i], places[i]]), float(pushed[i]), int(places[i])) for i in order)
