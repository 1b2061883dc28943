"""What is kept of a batch whose rows come and go: each row's tensors and readings, whoever it shares a forward with."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Monitor

from ..hooks.capture_result import CaptureResult
from ..hooks.program import Key, async_eval
from ..hooks.readings import reading_of
from ..hooks.registry import Recorder, Registry, Run

Part = tuple[mx.array, int, int]
"""A forward's numbers, the row's place in it, and how many of its tokens there are the row's own."""


class RowRecorder(Recorder):
    """Keeps, row by row, tensors for the ``capture`` blocks around a batch and the readings of its monitors.

    A row's forwards follow each other, and padding is behind its tokens, so that what is kept is the row's own passage.
    """

    reads_last = True

    def __init__(self, registry: Registry, captures: Sequence[CaptureResult], monitors: Sequence[Monitor]) -> None:
        self.registry = registry
        # They ask this for their rows: held by more than weak references, what was captured would stay, with its
        # memory, until Python's collector comes.
        self._captures = [weakref.ref(capture) for capture in captures]
        self.monitors = tuple(monitors)
        self._keys = tuple(dict.fromkeys(key for capture in captures for key in capture.places))
        self._watched = [(monitor.layer, monitor.site) for monitor in monitors]
        self._reads = [reading_of(monitor, registry.sources) for monitor in monitors]
        self.places = tuple(dict.fromkeys([*self._keys, *self._watched]))
        self._here: list[tuple[int, int | None]] = []
        self._newest: dict[Key | int, mx.array] = {}
        self._parts: dict[int, dict[Key | int, list[Part]]] = {}
        self._used: dict[int, int] = {}

    def expect(self, rows: Sequence[int], real: Sequence[int | None]) -> None:
        """The next forwards have these rows; ``real`` is how many tokens of each are no padding (``None``: all)."""
        self._here = list(zip(rows, real, strict=True))

    def use(self, row: int, count: int) -> None:
        """Of a row this many tokens count, the last written one among them: what ran ahead is left out."""
        self._used[row] = count

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins: from now on the captures tell of this batch."""
        self._newest = {}
        for held in self._captures:
            if (capture := held()) is not None:
                capture.follow(self._row)

    def record(self, key: Key, tensor: mx.array) -> None:
        """The tensor at a site: kept, and read by the monitors there."""
        if key in self._keys:
            self._keep(key, tensor)
        for at, (own, read) in enumerate(zip(self._watched, self._reads, strict=True)):
            if own == key:
                self._keep(at, read(tensor)[..., 0])

    def _keep(self, name: Key | int, tensor: mx.array) -> None:
        self._newest[name] = tensor
        for place, (row, real) in enumerate(self._here):
            count = tensor.shape[1] if real is None else real
            if count:
                self._parts.setdefault(row, {}).setdefault(name, []).append((tensor, place, count))

    def beside_logits(self) -> list[mx.array]:
        """What the newest forward gave, to be evaluated with it."""
        return list(self._newest.values())

    def send(self) -> None:
        """Send it to be computed."""
        async_eval(*self.beside_logits())

    def newest(self) -> mx.array | None:
        """What monitors read at the last token of the newest forward, ``(rows, monitors)``; ``None`` without any."""
        if not self.monitors:
            return None
        return mx.stack([self._newest[at][:, -1] for at in range(len(self.monitors))], axis=1)

    def readings(self, row: int) -> NDArray[np.float32]:
        """What was read of a row's tokens, as many of them as have gone in: ``(monitors, tokens)``."""
        found = [self._whole(row, at) for at in range(len(self.monitors))]
        if not found or any(one is None for one in found):
            return np.zeros((len(self.monitors), 0), dtype=np.float32)
        count = self._used.get(row, 0)
        return np.stack([np.array(one, dtype=np.float32)[:count] for one in found if one is not None])

    def _row(self, row: int) -> Mapping[Key, mx.array]:
        """A row's tensors ``(tokens, width)``: of the prompt and all written tokens but the last."""
        count = self._used.get(row, 0) - 1
        found = {key: self._whole(row, key) for key in self._keys}
        return {key: whole[: max(count, 0)] for key, whole in found.items() if whole is not None}

    def _whole(self, row: int, name: Key | int) -> mx.array | None:
        parts = self._parts.get(row, {}).get(name)
        if not parts:
            return None
        whole = mx.concatenate([tensor[place, :count] for tensor, place, count in parts])
        mx.eval(whole)
        # One array instead of many views: what the row shared with others can be let go of.
        self._parts[row][name] = [(whole[None], 0, int(whole.shape[0]))]
        return whole
