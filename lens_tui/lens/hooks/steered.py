"""Which tokens of a run were steered, and by what: noted as forwards go, worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, Steered

from .positions import Spans, Where, touched
from .registry import Entry, acts


@dataclass(eq=False)
class History:
    """What acted on a row, from which absolute position on: interventions change while a run goes on."""

    _held: list[tuple[int, tuple[Intervention, ...]]] = field(default_factory=list)
    _stamp: tuple[object, ...] | None = None

    def note(self, at: int, entries: Sequence[Entry]) -> None:
        """A forward begins at a position under these entries."""
        stamp: tuple[object, ...] = tuple(entry.stamp for entry in entries)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if self._held and self._held[-1][0] == at:
            self._held.pop()
        items = (entry.item for entry in entries)
        self._held.append((at, tuple(item for item in items if isinstance(item, Intervention) and acts(item))))

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
    """The tokens of a row that went through the model, and what positions are told from.

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


def steered(history: History, passage: Passage, display: Callable[[int], str]) -> tuple[Steered, ...]:
    """For each intervention that acted, the tokens it touched, in the order in which they first acted."""
    where, stop = passage.where(), passage.start + len(passage.ids)
    places: dict[tuple[str, int, str], list[int]] = {}
    for begin, end, items in history.parts(passage.start, stop):
        for item in items:
            mask = touched(item.positions, where)
            hit = np.full(len(passage.ids), mask) if isinstance(mask, bool) else np.array(mask)[0, :, 0]
            mine = places.setdefault((item.id, item.layer, item.site), [])
            mine += [at for at in range(begin, end) if hit[at - passage.start]]
    return tuple(
        Steered(*key, tuple(found), tuple(display(passage.ids[at - passage.start]) for at in found))
        for key, found in places.items()
    )
