"""Monitors of a run: what each reads of every token, in the prompt and as the text is written, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.gates import Monitor

from ..hooks.readings import reading_of
from ..hooks.registry import Recorder, Registry, Run
from ..hooks.steering import checked_monitor


class MonitorReader(Recorder):
    """Keeps the readings of some monitors, after all that acts at their sites: one number a token, row and monitor.

    A reading depends on its token alone, so that it is the same over a cache, in pieces and beside other rows.
    """

    reads_last = True

    def __init__(self, registry: Registry, monitors: Sequence[Monitor]) -> None:
        self.registry = registry
        self.monitors = tuple(checked_monitor(monitor, registry) for monitor in monitors)
        self._keys = [(monitor.layer, monitor.site) for monitor in self.monitors]
        self.places = tuple(dict.fromkeys(self._keys))
        self._reads = [reading_of(monitor, registry.sources) for monitor in self.monitors]
        self._steps: list[list[mx.array]] = [[] for _ in self.monitors]

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins; one that begins the sequence drops what was read."""
        if starts:
            self._steps = [[] for _ in self.monitors]

    def record(self, key: tuple[int, str], tensor: mx.array) -> None:
        """The tensor at a site: those that read there read it now."""
        for own, read, steps in zip(self._keys, self._reads, self._steps, strict=True):
            if own == key:
                steps.append(read(tensor)[..., 0])

    def beside_logits(self) -> list[mx.array]:
        """The newest readings, which are evaluated with the step they belong to."""
        return [steps[-1] for steps in self._steps if steps]

    def newest(self) -> mx.array:
        """What was read at the last token of the newest forward, ``(rows, monitors)``, lazy."""
        return mx.stack([steps[-1][:, -1] for steps in self._steps], axis=1)

    def readings(self, row: int, count: int) -> NDArray[np.float32]:
        """What was read of a row's first ``count`` tokens, as many of them as have gone in: ``(monitors, tokens)``."""
        if not all(self._steps):
            return np.zeros((len(self.monitors), 0), dtype=np.float32)
        found = [np.concatenate([np.array(step[row]) for step in steps])[:count] for steps in self._steps]
        return np.asarray(np.stack(found), dtype=np.float32)


def reader_of(registry: Registry, monitors: Any) -> MonitorReader | None:
    """The reader of a run's monitors; ``None`` where there are none. Raises :class:`LensError` for what is none."""
    given = (monitors,) if isinstance(monitors, Monitor) else tuple(monitors or ())
    names = [monitor.name for monitor in given if isinstance(monitor, Monitor)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LensError(f"Two monitors have the name {twice!r}.", "Give each its own.")
    return MonitorReader(registry, given) if given else None
