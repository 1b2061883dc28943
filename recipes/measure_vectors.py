"""At which scale a vector works: the share of its continuations that the classifier gives to its domain.

Twenty openings are continued as they are, under the vector, and under a random direction of the same scale, each row
with a random direction and seed of its own. The smallest scale that works is chosen; what is reported of it is measured
on twenty other openings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lens_tui.records import Add, BatchRow, Request, Sampling, SteeringVector
from recipes.candidates import Candidate
from recipes.classifier import Classifier, shares
from recipes.openings import NEUTRAL, STORIES

if TYPE_CHECKING:
    from lens_tui import LensModel

MULTIPLES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
"""Scales that are tried, in median norms of the residual at the vector's layer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a vector must reach: share of steered continuations in its target, of random ones, and distinct-2."""

    steered: float
    random: float
    distinct: float


TARGET = Limits(0.6, 0.1, 0.6)
CHOOSING = Limits(0.75, 0.1, 0.7)
"""Stricter than the target: twenty continuations leave a share uncertain by about 0.1."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Continuations under one condition: share in the target, mean distinct-2, and the domains they were given to."""

    share: float
    distinct: float
    domains: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A scale of a vector, absolute and in median residual norms, and what continuations were under it."""

    scale: float
    multiple: float
    steered: Figures
    random: Figures
    baseline: Figures

    @property
    def distinct(self) -> float:
        """Distinct-2 of the steered continuations over the baseline's."""
        return self.steered.distinct / self.baseline.distinct

    def meets(self, limits: Limits) -> bool:
        """Whether the scale works."""
        quiet = max(self.random.share, self.baseline.share) <= limits.random
        return self.steered.share >= limits.steered and quiet and self.distinct >= limits.distinct

    def report(self) -> dict[str, Any]:
        """It as plain data."""
        return {**asdict(self), "distinct_ratio": self.distinct}


def smallest(points: Sequence[Point], limits: Limits = CHOOSING) -> Point | None:
    """The point of the smallest multiple that works; ``None`` if none does."""
    return min((point for point in points if point.meets(limits)), key=lambda point: point.multiple, default=None)


def figures(classifier: Classifier, candidate: Candidate, rows: Sequence[BatchRow]) -> Figures:
    """What the continuations are; for ``away`` the target is every domain but the candidate's.

    A text without a known word counts as in no target.
    """
    from lens_tui.records.measures import distinct

    found = [classifier.domain(row.text) for row in rows]
    hits = [name != "" and (name == candidate.domain) != candidate.away for name in found]
    grams = [value for row in rows if (value := distinct(row.token_ids, 2)) is not None]
    return Figures(sum(hits) / len(hits), math.fsum(grams) / len(grams), shares(found))


@dataclass(frozen=True)
class Writer:
    """Continues openings, all in batches of at most ``rows``; the seed of an opening is its place in the list."""

    lens: LensModel
    tokens: int = 80
    temp: float = 0.7
    rows: int = 160

    def write(self, asked: Sequence[tuple[int, str, SteeringVector | None, float]]) -> list[BatchRow]:
        """The continuation of each ``(seed, opening, vector, scale)``."""
        requests = [
            Request(
                opening,
                () if vector is None else (Add(id="v", layer=vector.layer, vector=vector, scale=scale),),
                Sampling(max_tokens=self.tokens, temp=self.temp, seed=seed),
            )
            for seed, opening, vector, scale in asked
        ]
        found: list[BatchRow] = []
        for begin in range(0, len(requests), self.rows):
            part = requests[begin : begin + self.rows]
            run = self.lens.stream_batch(
                part, raw=True, completion_batch_size=self.rows, prefill_batch_size=min(32, self.rows)
            )
            for _ in run:
                pass
            found += run.records
        return found


Openings = Sequence[tuple[int, str]]


def openings(candidate: Candidate, count: int, fresh: bool) -> Openings:
    """Openings with their seeds: the first ``count`` for choosing a scale, or as many of the second half."""
    every = list(enumerate(STORIES if candidate.away else NEUTRAL))
    half = len(every) // 2
    return every[half : half + count] if fresh else every[: min(count, half)]


class Bench:
    """Measures vectors of one model; what is written without a vector or under chance is written once."""

    def __init__(self, writer: Writer, classifier: Classifier) -> None:
        self._writer, self._classifier = writer, classifier
        self._kept: dict[tuple[Any, ...], list[BatchRow]] = {}
        self.norms: dict[int, float] = {}

    def norm(self, layer: int) -> float:
        """The median residual norm at a layer's output."""
        from lens_tui.lens.vectors import residual_norm

        if layer not in self.norms:
            self.norms[layer] = residual_norm(self._writer.lens, layer)
        return self.norms[layer]

    def points(
        self, candidate: Candidate, vector: SteeringVector, scales: Sequence[float], places: Openings
    ) -> list[Point]:
        """What becomes of the openings at each scale."""
        plain = self._once(("plain", *places), [(*place, None, 0.0) for place in places])
        steered = self._writer.write([(*place, vector, scale) for scale in scales for place in places])
        chance = self._once(
            ("chance", vector.layer, *scales, *places),
            [(*place, self._random(vector.layer, place[0]), scale) for scale in scales for place in places],
        )
        size = len(places)

        def told(rows: Sequence[BatchRow], at: int = 0) -> Figures:
            return figures(self._classifier, candidate, rows[at * size : (at + 1) * size])

        return [
            Point(scale, round(scale / self.norm(vector.layer), 3), told(steered, at), told(chance, at), told(plain))
            for at, scale in enumerate(scales)
        ]

    def samples(self, vector: SteeringVector, scale: float, places: Openings) -> list[str]:
        """Openings with their continuations at a scale, to read with one's own eyes."""
        rows = self._writer.write([(*place, vector, scale) for place in places])
        return [f"{opening} |{row.text}" for (_, opening), row in zip(places, rows, strict=True)]

    def _random(self, layer: int, seed: int) -> SteeringVector:
        from lens_tui.lens.vectors import random_unit

        return random_unit(self._writer.lens, "random", layer, seed=seed)

    def _once(
        self, key: tuple[Any, ...], asked: Sequence[tuple[int, str, SteeringVector | None, float]]
    ) -> list[BatchRow]:
        if key not in self._kept:
            self._kept[key] = self._writer.write(asked)
        return self._kept[key]


def rounded(scale: float) -> float:
    """A scale to the half: what one would type."""
    return round(scale * 2) / 2


def measure(
    bench: Bench,
    vectors: Sequence[tuple[Candidate, SteeringVector]],
    multiples: Sequence[float] = MULTIPLES,
    count: int = 20,
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """One report a vector, as it is measured: its curve, the scale chosen, and the figures there on other openings."""
    for candidate, vector in vectors:
        norm = bench.norm(vector.layer)
        scales = [rounded(multiple * norm) for multiple in multiples]
        curve = bench.points(candidate, vector, scales, openings(candidate, count, fresh=False))
        chosen = smallest(curve)
        row: dict[str, Any] = {"name": vector.name, "layer": vector.layer, "domain": candidate.domain}
        row |= {"away": candidate.away, "curve": [point.report() for point in curve], "scale": None}
        if chosen is not None:
            fresh = openings(candidate, count, fresh=True)
            (held,) = bench.points(candidate, vector, [chosen.scale], fresh)
            row |= {"scale": chosen.scale, "measured": held.report(), "works": held.meets(TARGET)}
            row |= {"samples": bench.samples(vector, chosen.scale, fresh[:3])}
        say(line(row, curve))
        yield row


def line(row: Mapping[str, Any], curve: Sequence[Point]) -> str:
    """A vector's report in a line: its curve of shares, and what was measured."""
    course = " ".join(f"{point.multiple:.1f}:{point.steered.share:.2f}/{point.distinct:.2f}" for point in curve)
    head = f"{row['name']} L{row['layer']}  share/distinct-2 by multiple: {course}"
    if row["scale"] is None:
        return f"{head}\n  no scale works"
    held = row["measured"]
    shared = "  ".join(f"{name} {held[name]['share']:.2f}" for name in ("steered", "baseline", "random"))
    return f"{head}\n  scale {row['scale']:g}: {shared}  distinct-2 {held['distinct_ratio']:.2f} of the baseline's"
