"""The tokens that went through the model in a run, what acted on them and when, and which of them it touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, LensError, Steered

from .places import Spans, Where, touched
from .program import has_effect
from .registry import Plan, PlanEntry, Registry, Run


@dataclass(eq=False)
class History:
    """What acted on a row, from which absolute position on: interventions change during a run."""

    _held: list[tuple[int, tuple[Intervention, ...]]] = field(default_factory=list)
    _stamp: tuple[object, ...] | None = None

    def note(self, at: int, entries: Sequence[PlanEntry]) -> None:
        """A forward begins at a position under these entries."""
        stamp: tuple[object, ...] = tuple(entry.stamp for entry in entries)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if self._held and self._held[-1][0] == at:
            self._held.pop()
        items = (entry.item for entry in entries)
        self._held.append((at, tuple(item for item in items if isinstance(item, Intervention) and has_effect(item))))

    @property
    def plain(self) -> bool:
        """Whether nothing has acted on the row so far."""
        return not any(items for _, items in self._held)

    def restart(self) -> None:
        """The prompt begins again."""
        self._held.clear()
        self._stamp = None

    def parts(self, start: int, stop: int) -> list[tuple[int, int, tuple[Intervention, ...]]]:
        """Half-open ranges of positions with the interventions that held there."""
        ends = [at for at, _ in self._held[1:]] + [stop]
        begins = [start, *(at for at, _ in self._held[1:])]
        pairs = zip(begins, ends, self._held, strict=True) if self._held else ()
        return [(begin, min(end, stop), items) for begin, end, (_, items) in pairs if begin < min(end, stop)]


@dataclass(frozen=True, eq=False)
class Passage:
    """The tokens of a row that went through the model, and what positions are found from.

    ``ids`` begin at the absolute position ``start`` (not 0 where the run went on from a cache); ``n_prompt`` is where
    the prompt ends, ``spans`` its roles, ``markers`` what thinking stands between, ``inside`` whether the prompt ends
    between them.
    """

    ids: tuple[int, ...]
    n_prompt: int
    start: int = 0
    bos: int | None = None
    spans: Spans | None = None
    markers: tuple[int, int] | None = None
    inside: bool = False

    def where(self) -> Where:
        """All of it as one forward."""
        ids = mx.array([self.ids])
        return Where(
            self.start, len(self.ids), ids, self.n_prompt, self.bos, self.spans, mx.array(self.thinking()[None])
        )

    def forward(self, registry: Registry, plan: Plan) -> mx.array:
        """Logits of all of it, lazy, in one forward under a plan, as if it were a text of its own."""
        where = self.where()
        assert where.ids is not None
        run = Run(registry, plan, self.n_prompt, self.spans, thinking=where.thinking)
        return registry.forward(run, where.ids)

    def thinking(self) -> NDArray[np.bool_]:
        """Which tokens are between the thinking markers: those of the prompt by its spans, then one by one."""
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for role, begin, end in self.spans or ():
            if role == "thinking":
                found[max(0, begin - self.start) : max(0, end - self.start)] = True
        if self.markers is not None:
            inside = self.inside
            for at in range(self.n_prompt - self.start, len(self.ids)):
                opens, closes = (self.ids[at] == marker for marker in self.markers)
                found[at] = inside and not opens and not closes
                inside = (inside or opens) and not closes
        return found


def steered(
    history: History, passage: Passage, display: Callable[[int], str], registry: Registry
) -> tuple[Steered, ...]:
    """For each intervention that acted, the tokens it touched, in the order in which they first acted.

    Where one has a gate, the tokens go through the model once more, under what held for each of them.

    Raises:
        LensError: For gates in a run that went on from a cache, whose tokens are not known.
    """
    where, stop = passage.where(), passage.start + len(passage.ids)
    parts = history.parts(passage.start, stop)
    opened = _opened(registry, passage, parts) if any(item.gate for *_, items in parts for item in items) else {}
    places: dict[tuple[str, int, str], list[int]] = {}
    for begin, end, items in parts:
        for item in items:
            key = (item.id, item.layer, item.site)
            mask: Any = touched(item.positions, where)
            hit = np.full(len(passage.ids), mask) if isinstance(mask, bool) else np.array(mask)[0, :, 0]
            if item.gate is not None:
                hit = hit & opened[key]
            mine = places.setdefault(key, [])
            mine += [at for at in range(begin, end) if hit[at - passage.start]]
    return tuple(
        Steered(*key, tuple(found), tuple(display(passage.ids[at - passage.start]) for at in found))
        for key, found in places.items()
    )


def _opened(
    registry: Registry, passage: Passage, parts: Sequence[tuple[int, int, tuple[Intervention, ...]]]
) -> dict[tuple[str, int, str], NDArray[np.bool_]]:
    """Where the gate of each record was open, (tokens,), by its id, layer and site: what held is run again in parts."""
    from mlx_lm.models.cache import make_prompt_cache

    if passage.start:
        raise LensError(
            "Which tokens a gate let through is not known: the run went on from a cache.",
            "Start it with the whole prompt.",
        )
    root: Any = registry.decoder.root
    cache, thinking = make_prompt_cache(root), mx.array(passage.thinking()[None])
    found: dict[tuple[str, int, str], NDArray[np.bool_]] = {}
    for begin, end, items in parts:
        opened: dict[tuple[str, int, str], mx.array] = {}
        plan = Plan(([PlanEntry(registry, item) for item in items],))
        run = Run(registry, plan, passage.n_prompt, passage.spans, thinking=thinking[:, begin:end], opened=opened)
        mx.eval(registry.forward(run, mx.array([passage.ids[begin:end]]), cache, start=begin))
        for item in items:
            if item.gate is not None:
                key = (item.id, item.layer, item.site)
                every = found.setdefault(key, np.zeros(len(passage.ids), dtype=np.bool_))
                every[begin:end] = np.array(opened[key])[0, :, 0] if key in opened else False
    return found
