"""Which features are worth a label: a score of how much each has to say, and the rules that leave one out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.labels.material import Material

DENSITIES = (1e-4, 0.1)
"""Rarer features have too few examples, denser ones fire on everything."""

SINGLE_SHARE = 0.25
"""The share of chosen features that may stand for one token."""

FEW_PEAKS = 3
"""Up to so many distinct peak tokens among the top examples, a feature stands for a token."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature and what its usefulness is made of.

    ``peaks`` is the number of distinct tokens that its top 20 examples peak on (case and spaces aside), ``domain``
    how selective it is for domains (0: as often in every one, 1: in one alone), ``cluster`` the mean cosine between
    the embeddings of the ten tokens it promotes, ``purity`` the share of its examples that peak on the commonest one.
    """

    feature: int
    peaks: int
    domain: float
    cluster: float
    purity: float

    @property
    def single(self) -> bool:
        """Whether it stands for a token, not for a meaning that several tokens carry."""
        return self.peaks <= FEW_PEAKS

    @property
    def score(self) -> float:
        """Usefulness, 0 to about 3.

        Of a feature about meaning: distinct peaks (up to ten) + selectivity for domains + the promoted tokens'
        cosine. Of one about a token: how pure it is + selectivity + cosine.
        """
        first = self.purity if self.single else min(self.peaks, 10) / 10
        return first + self.domain + self.cluster


def choose(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """The ``n`` of highest score, at most a quarter of them about a single token, in order of their ids."""
    best = sorted(candidates, key=lambda candidate: (-candidate.score, candidate.feature))
    single = [candidate for candidate in best if candidate.single][: int(n * SINGLE_SHARE)]
    meaning = [candidate for candidate in best if not candidate.single][: n - len(single)]
    return sorted(single + meaning, key=lambda candidate: candidate.feature)


def union(chosen: Sequence[Candidate], further: Sequence[Candidate]) -> list[Candidate]:
    """Both, each feature once, in order of their ids."""
    found = {one.feature: one for one in [*further, *chosen]}
    return [found[feature] for feature in sorted(found)]


def read_features(file: Path, width: int) -> list[int]:
    """A JSON list of features, each once; raises :class:`ValueError` for anything that an SAE of ``width`` lacks."""
    features = json.loads(file.read_text("utf-8"))
    if not isinstance(features, list) or not all(type(one) is int and 0 <= one < width for one in features):
        raise ValueError(f"{file.name} is not a list of features from 0 to {width - 1}")
    return list(dict.fromkeys(features))


def candidates(
    material: Material,
    embeddings: NDArray[np.float32],
    token_text: Callable[[int], str],
    may: Callable[[int], bool] = lambda feature: True,
) -> list[Candidate]:
    """Every feature of the index with a density in ``DENSITIES`` and 20 examples, for which ``may`` holds.

    ``embeddings`` are the model's, ``(vocabulary, d)``.
    """
    index = material.index
    low, high = DENSITIES
    density = index.density
    features = np.flatnonzero((density >= low) & (density <= high)).tolist()
    made = (candidate(material, feature, embeddings, token_text) for feature in features if may(feature))
    return [one for one in made if one is not None]


def candidate(
    material: Material, feature: int, embeddings: NDArray[np.float32], token_text: Callable[[int], str]
) -> Candidate | None:
    """What a feature is worth, of any density; ``None`` if it has not 20 examples."""
    index = material.index
    examples = index.examples(feature)
    if len(examples) < index.settings.top_k:
        return None
    peaks = Counter(token_text(int(e.token_ids[e.peak])).strip().lower() for e in examples)
    return Candidate(
        feature,
        len(peaks),
        selectivity(domain_profile(material, feature)),
        cosine(embeddings[index.table().promoted_ids[feature]]),
        peaks.most_common(1)[0][1] / len(examples),
    )


def domain_profile(material: Material, feature: int) -> NDArray[np.float64]:
    """The share of each domain in a feature's active tokens if all domains were of one size, ``(domains,)``."""
    tokens, _ = material.index.everywhere(feature)
    active = np.bincount(material.domain_of_token[tokens], minlength=len(material.domains))
    rate = active / np.maximum(material.domain_sizes, 1)
    return np.asarray(rate / max(float(rate.sum()), 1e-300))


def selectivity(shares: NDArray[np.float64]) -> float:
    """One minus the shares' entropy over its largest value: 0 for equal shares, 1 for all in one place."""
    some = shares[shares > 0]
    if len(shares) < 2 or not len(some):
        return 0.0
    return float(1 + (some * np.log(some)).sum() / np.log(len(shares)))


def cosine(rows: NDArray[np.float32]) -> float:
    """The mean cosine between two different rows."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    n = len(unit)
    return float(((unit.sum(0) ** 2).sum() - n) / (n * (n - 1)))


def meaning_share(material: Material, n: int, seed: int) -> tuple[float, int]:
    """Of ``n`` random live features, the share whose top 20 examples peak on more than three distinct tokens.

    Also how many features that was: all live ones if there are fewer than ``n``.
    """
    live = np.flatnonzero(material.index.count)
    chosen = np.random.default_rng(seed).choice(live, min(n, len(live)), replace=False)
    distinct = [
        len({int(e.token_ids[e.peak]) for e in material.index.examples(int(feature), 20)}) for feature in chosen
    ]
    return float(np.mean(np.array(distinct) > FEW_PEAKS)), len(chosen)
