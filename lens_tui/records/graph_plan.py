"""An attribution graph as it is asked for on the screen and on the command line, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .attribution_graph import AttributionGraph, LogitTarget
from .errors import LensError
from .graph_influence import EDGES, GraphScores
from .patch_plan import read_token


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What is explained, with which transcoders, and how far the graph is pruned.

    ``target`` and ``minus`` are tokens as they are written (:func:`~.patch_plan.read_token`); without a target the
    likeliest next tokens are explained. ``transcoders`` names a set, nothing the bundled one. At most ``features``
    features get a node. ``nodes`` and ``edges`` are the shares of influence that pruning keeps.
    """

    prompt: str = ""
    target: str = ""
    minus: str = ""
    transcoders: str = ""
    features: int = 4096
    nodes: float = 0.6
    edges: float = EDGES

    @property
    def targets(self) -> list[LogitTarget]:
        """What is explained; empty for the likeliest tokens. Raises :class:`LensError`."""
        if not self.target:
            if self.minus:
                raise LensError("A difference is of one target less another.", "Give a target, too.")
            return []
        return [LogitTarget(read_token(self.target), read_token(self.minus))]


@dataclass(frozen=True, slots=True, eq=False)
class GraphFound:
    """A graph: all of it, and the part of it that pruning keeps.

    ``shown`` has the labels. ``scores`` and ``sum_error`` (the largest difference between a target's value and the sum
    of what adds up to it) are of a graph made here; ``file`` is where another one was read. ``saes`` are the
    paths of its transcoders by layer, where each of them can be opened alone.
    """

    plan: GraphPlan
    whole: AttributionGraph
    shown: AttributionGraph
    scores: GraphScores | None = None
    sum_error: float | None = None
    file: str = ""
    saes: Mapping[int, str] = field(default_factory=dict)
