"""An attribution graph as it is asked for on the screen and on the command line, and what was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .attribution_graph import AttributionGraph, LogitTarget
from .errors import LensError
from .graph_influence import EDGES, GraphScores
from .patch_plan import read_token
from .steering_vector import SteeringVector


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What is explained, with which transcoders, and how far the graph is pruned.

    ``target`` and ``minus`` are tokens as they are written (:func:`~.patch_plan.read_token`), several targets with
    ``|`` between; ``direction`` is what the final norm gives read along a vector, beside them or alone. Without any the
    likeliest next tokens are explained. ``transcoders`` names a set, nothing the bundled one. At most ``features``
    features get a node, none at the first ``ignored`` tokens (-1: the special ones). ``nodes`` and ``edges`` are the
    shares of influence that pruning keeps.
    """

    prompt: str = ""
    target: str = ""
    minus: str = ""
    transcoders: str = ""
    features: int = 4096
    nodes: float = 0.6
    edges: float = EDGES
    ignored: int = -1
    direction: SteeringVector | None = None

    @property
    def aim(self) -> str:
        """What is explained, in words, blanks of tokens as dots; not safe to show."""
        aims = [f"‘{text.replace(' ', '·')}’" for text in self.written]
        if self.minus:
            aims = [f"{', '.join(aims)} less ‘{self.minus.replace(' ', '·')}’"]
        if self.direction is not None:
            aims.append(f"along {self.direction.name}")
        return ", ".join(aims) or "the likeliest tokens"

    @property
    def title(self) -> str:
        """What the graph is of, in a few words."""
        return f"Attribution graph → {self.aim}"

    @property
    def written(self) -> tuple[str, ...]:
        """The target tokens one by one; the blank in front of one is its own, ``\\|`` is a plain ``|``."""
        parts = (part.rstrip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", self.target))
        return tuple(part for part in parts if part)

    @property
    def targets(self) -> list[LogitTarget]:
        """What is explained; empty for the likeliest tokens. Raises :class:`LensError`."""
        found = [LogitTarget(read_token(text)) for text in self.written]
        if self.minus:
            if len(found) != 1:
                raise LensError("A difference is of one target less another.", "Give one target.")
            found = [LogitTarget(found[0].token, read_token(self.minus))]
        if self.direction is not None:
            found.append(LogitTarget(direction=self.direction.direction, name=f"along {self.direction.name}"))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class GraphFound:
    """A graph: all of it, and the part of it that pruning keeps.

    ``pruned`` has the labels. ``scores`` and ``sum_error`` (the largest difference between a target's value and the sum
    of what adds up to it) are of a graph made here; ``file`` is where another one was read. ``saes`` are the
    paths of its transcoders by layer, where each of them can be opened alone. ``kept`` is its number on disk, 0 where
    it is not kept; one that was read from there is a ``part``: its ``whole`` is what pruning had kept.
    """

    plan: GraphPlan
    whole: AttributionGraph
    pruned: AttributionGraph
    scores: GraphScores | None = None
    sum_error: float | None = None
    file: str = ""
    saes: Mapping[int, str] = field(default_factory=dict)
    kept: int = 0
    part: bool = False
