"""Which features are like one: the job that asks, and what it gives.

They have a file of their own because they are asked for only while they show: a whole decoder is read for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base_events import Event
from .jobs import Job


@dataclass(frozen=True, slots=True)
class ReadNeighbours(Job):
    """The features nearest to one by decoder direction, and those active on the same tokens. Events: NeighboursRead."""

    sae: str
    feature: int
    top_k: int = 8


@dataclass(frozen=True, slots=True)
class NeighboursRead(Event):
    """Features like ``feature``, each as ``(feature, value)``, most alike first.

    ``near`` by the cosine of their decoder directions; ``together`` by the
    Jaccard index of the tokens they are active on, over the whole corpus: ``None`` unless a full index is at hand.
    """

    sae: str
    feature: int
    near: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, float], ...] | None
