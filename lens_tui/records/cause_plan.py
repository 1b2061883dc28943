"""A question of cause, to be answered by patching or by an attribution graph, as it is asked, and its answer.

It is asked alike on the screen and on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .attribution_graph import EDGES, AttributionGraph, GraphScores, LogitTarget
from .errors import LensError
from .patch_grid import Agreement, By, CausalTrace, Direction, Doubles, PatchGrid, Receiver, Sender
from .steering_vector import SteeringVector
from .wording import dotted_quote, texts_in

PlanBy = Literal["trace", By]
"""What one patch is; ``trace`` restores single states of a run whose subject is noised."""
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
METRICS = ("logit-difference", "log-probability", "probability", "kl", "rank")
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
UNITS = {"logit-difference": "logits", "log-probability": "nats", "kl": "nats", "rank": "tokens above it"}


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """What is patched and how it is judged.

    ``answer`` and ``wrong`` are tokens as they are written (:func:`read_token`). ``pairs`` is a file of pairs
    that takes the place of the prompts. ``subject`` are the words whose embeddings a causal trace noises, in
    ``samples`` runs; it is of ``clean`` and ``answer`` alone.
    """

    clean: str = ""
    corrupted: str = ""
    answer: str = ""
    wrong: str = ""
    pairs: str = ""
    by: PlanBy = "layer-position"
    site: str = "resid_pre"
    metric: str = "logit-difference"
    direction: Direction = "denoise"
    subject: str = ""
    noise: float = 3.0
    samples: int = 10
    window: int = 10
    seed: int = 0

    @property
    def asked(self) -> str:
        """The prompt in question, or the file of pairs."""
        return self.pairs or self.clean

    @property
    def title(self) -> str:
        """What is patched and how it is judged, in a few words."""
        if self.by == "trace":
            return f"Causal trace · {self.site}"
        what = "heads" if self.by == "head" else self.site
        return f"Patching · {what} · {self.direction} · {self.metric}"

    @property
    def unit(self) -> str:
        """What the metric is counted in."""
        return "share" if self.by == "trace" else UNITS.get(self.metric, "share")


EXAMPLE = PatchPlan(
    "Lily saw a red ball. She wanted to play with the red",
    "Lily saw a red car. She wanted to play with the red",
    " ball",
    " car",
    subject="ball",
)
"""Copying a noun that was seen before: the bundled model does it by induction heads (docs/causes.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchFound:
    """What a plan has found, or has found so far: a grid of patches, or a trace.

    ``estimate`` is the same grid by attribution patching and ``check`` how well it agrees; ``why`` says why there is
    none. ``kept`` is its number on disk, 0 where it is not kept.
    """

    plan: PatchPlan
    grid: PatchGrid | None = None
    trace: CausalTrace | None = None
    estimate: PatchGrid | None = None
    check: Agreement | None = None
    why: str = ""
    kept: int = 0

    @property
    def effect(self) -> Doubles | None:
        """The normalised effects, (rows, columns): 0 the corrupted (or noised) run, 1 the clean one."""
        if self.grid is not None:
            return self.grid.effect
        return None if self.trace is None else self._share(self.trace.values)

    @property
    def random(self) -> Doubles | None:
        """The effects of the random patches."""
        if self.grid is not None:
            return self.grid.random
        return None if self.trace is None or self.trace.random is None else self._share(self.trace.random)

    def _share(self, values: Doubles) -> Doubles:
        assert self.trace is not None
        found: Doubles = (values - self.trace.noised) / (self.trace.clean - self.trace.noised)
        return found


def read_token(text: str) -> int | str | None:
    """``id:17`` or a text of one token, blank and all; nothing where nothing is written.

    Raises :class:`LensError` for an ``id:`` without a number.
    """
    if not text:
        return None
    if text.startswith("id:"):
        if not re.fullmatch(r"[0-9]{1,18}", text[3:]):
            raise LensError(f"The target {text!r} names no token.", "Write id: and a number, such as id:17.")
        return int(text[3:])
    return text


def read_receiver(text: str) -> Receiver:
    """What a path ends at, as written: ``logits``, ``attn:6``, ``mlp:6``, ``q:6.1`` (``k``, ``v``), ``q:6``.

    Raises :class:`LensError`.
    """
    match = re.fullmatch(r"(attn|mlp|q|k|v):(-?[0-9]{1,6})(?:\.([0-9]{1,6}))?", text.strip())
    if text.strip() == "logits":
        return Receiver("logits")
    if match is None or (match[3] is not None and match[1] in ("attn", "mlp")):
        raise LensError(f"The receiver {text!r} cannot be read.", "Write logits, attn:6, mlp:6 or q:6.1 (k, v).")
    kinds: dict[str, Any] = {kind: kind for kind in ("attn", "mlp", "q", "k", "v")}
    return Receiver(kinds[match[1]], int(match[2]), -1 if match[3] is None else int(match[3]))


def read_sender(text: str) -> Sender:
    """What a path begins at, as written: ``embed``, ``head:6.1``, ``attn:6``, ``mlp:6``. Raises :class:`LensError`."""
    match = re.fullmatch(r"(?:(attn|mlp):([0-9]{1,6})|(head):([0-9]{1,6})\.([0-9]{1,6}))", text.strip())
    if text.strip() == "embed":
        return Sender("embed")
    if match is None:
        raise LensError(f"The sender {text!r} cannot be read.", "Write embed, head:6.1, attn:6 or mlp:6.")
    if match[3]:
        return Sender("head", int(match[4]), int(match[5]))
    return Sender("attn" if match[1] == "attn" else "mlp", int(match[2]))


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What is explained, with which transcoders, and how far the graph is pruned.

    ``target`` and ``minus`` are tokens as they are written (:func:`read_token`), several targets with
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
        aims = [dotted_quote(text) for text in self.written]
        if self.minus:
            aims = [f"{', '.join(aims)} less {dotted_quote(self.minus)}"]
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
        return tuple(text.rstrip() for text in texts_in(self.target))

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
