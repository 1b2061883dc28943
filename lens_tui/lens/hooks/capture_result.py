"""What is kept of a run: the tensors of a ``capture`` block, and the readings of monitors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, Monitor

from ..architecture.taps import Sink
from .program import Key, async_eval
from .readings import reading_of
from .registry import Recorder, Registry, Run

JOINED = 1 << 26
"""Bytes of all sites up to which their parts are joined together when one is first read: a sending for each costs more.
Of more than this the parts and the whole should not be there at once."""


class CaptureResult(Recorder, Mapping["int | tuple[int, str]", mx.array]):
    """What was captured, by layer (counted from 0), or by ``(layer, site)`` if several sites were asked for.

    ``result[layer]`` has shape (batch, tokens, width) in the residual's dtype
    and can be read at once, also inside the block. It holds the last sequence:
    a forward that begins a sequence begins a new one, forwards that continue it
    over a KV cache are appended. For a generation of this library that is the
    prompt and every generated token that went into the model: the last one
    returned did not, nor does the step run ahead of the reader count. Forwards
    over a cache by other code are appended as they come.
    """

    def __init__(self, registry: Registry, keys: tuple[Key, ...], by_site: bool) -> None:
        self.registry = registry
        self.places = keys
        self._by_site = by_site
        self._named = {} if by_site else {layer: (layer, site) for layer, site in keys}
        self._steps: dict[Key, list[mx.array]] = {}
        # A run has this among its recorders: held by more than a weak reference, what was captured would stay, with its
        # memory, until Python's collector comes.
        self._run: weakref.ref[Run] | None = None
        self._waiting = False
        self._logits: weakref.ref[mx.array] | None = None
        self._rows: Callable[[int], Mapping[Key, mx.array]] | None = None

    def follow(self, rows: Callable[[int], Mapping[Key, mx.array]]) -> None:
        """A batch begins, whose rows come and go: what of them is kept is asked of ``rows``."""
        self._steps, self._rows = {}, rows

    def row(self, index: int) -> dict[int | tuple[int, str], mx.array]:
        """What was captured of one row, ``(tokens, width)`` by the same keys.

        Of a batch (``stream_batch``) that is one of its prompts with every token that it was continued by but the
        last; the prompts may be of any lengths. Raises :class:`LensError` for a row that there is not.
        """
        if self._rows is None:
            return {where: self[where][index] for where in self}
        found = self._rows(index)
        if not found:
            raise LensError(f"Nothing was captured of row {index}.", "Read the batch's tokens first, or take another.")
        return {where: found[self._key(where)] for where in self}

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins; ``starts`` or another run than before: what was held is dropped."""
        same = run is None if self._run is None else run is not None and self._run() is run
        if starts or not same:
            self._steps = {}
        self._run = None if run is None else weakref.ref(run)
        self._rows, self._waiting, self._logits = None, True, None

    def record(self, key: Key, tensor: mx.array) -> None:
        """Append a tensor."""
        self._steps.setdefault(key, []).append(tensor)
        self._waiting = True

    def sink(self, key: Key) -> Sink:
        """:meth:`record` of one site, as a list takes it."""
        return self._steps.setdefault(key, []).append

    def end(self, logits: mx.array | None = None) -> None:
        """A forward of this library is built.

        What it holds is sent to be computed in one go, and nobody waits: at once, or, where the caller gets the
        logits, when something of it is first read, together with these: two sendings cost more than one. Logits that
        nobody holds any more are left out: over a long text they are large.
        """
        if logits is None:
            self._send(*self.pending())
        else:
            self._logits = weakref.ref(logits)

    def _send(self, *arrays: mx.array) -> None:
        logits = None if self._logits is None else self._logits()
        try:
            async_eval(*arrays, *([] if logits is None else [logits]))
        except (RuntimeError, ValueError):  # inside a gradient arrays have no values: they are read as they are
            return
        self._waiting, self._logits = False, None

    def cut(self, length: int) -> None:
        """Keep the first ``length`` tokens: what ran ahead and was never used is left out."""
        for key, steps in self._steps.items():
            self._steps[key] = _first(steps, length)
        self._waiting = True

    def pending(self) -> list[mx.array]:
        """The newest tensors of every site."""
        return [steps[-1] for steps in self._steps.values() if steps]

    def beside_logits(self) -> list[mx.array]:
        """The newest tensors that are to be evaluated beside the last position's logits.

        Of a single token's forward there are none: its logits are made of all of them, and naming each of 62 layers
        once more cost a quarter of a small model's speed.
        """
        some = next(iter(self._steps.values()), [])
        return self.pending() if some and some[-1].shape[1] > 1 else []

    def __getitem__(self, where: int | tuple[int, str]) -> mx.array:
        key = self._named.get(where) if type(where) is int else None
        key = key or self._key(where)
        steps = self._steps.get(key)
        if not steps:
            if key not in self.places:
                raise KeyError(f"{where!r} is not captured; captured: {list(self)}")
            if self._rows is not None:
                raise LensError("The rows of a batch are of different lengths.", "Read them with row(index).")
            raise LensError(
                f"Layer {key[0]} {key[1]} has seen no forward pass yet.", "Run the model inside the block first."
            )
        if len(steps) > 1:
            self._join(key)
        if self._waiting:
            # With what else is waiting: one by one, each layer would be waited for on its own. Nobody waits here.
            self._send(*self.pending())
        return self._steps[key][0]

    def _join(self, key: Key) -> None:
        """Make one tensor of a site's parts, and of all others' where that is little: they are sent together.

        Of two parts it is this site's alone: whoever reads as the tokens come has so many at each, and the others would
        be copied for every token though nobody reads them.
        """
        found = self._steps
        size = sum(steps[0].nbytes + (len(steps) - 1) * steps[-1].nbytes for steps in found.values())
        for one in [key] if len(found[key]) == 2 or size > JOINED else found:
            if len(found[one]) > 1:
                found[one] = [mx.concatenate(found[one], axis=1)]
        self._waiting = True

    def __iter__(self) -> Iterator[int | tuple[int, str]]:
        return iter(key if self._by_site else key[0] for key in self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, where: object) -> bool:
        try:
            return self._key(where) in self.places  # type: ignore[arg-type]
        except (LensError, TypeError, ValueError):
            return False

    def __repr__(self) -> str:
        parts = []
        for where in self:
            steps = self._steps.get(self._key(where))
            shape = _shape(steps) if steps else "nothing yet"
            parts.append(f"{where}: {shape}")
        return f"CaptureResult({{{', '.join(parts)}}})"

    def _key(self, where: int | tuple[int, str]) -> Key:
        if isinstance(where, tuple):
            return self.registry.decoder.index(where[0]), where[1]
        return self.registry.decoder.index(where), self.places[0][1]


def _first(steps: list[mx.array], length: int) -> list[mx.array]:
    """Of parts that follow each other, ``(batch, tokens, width)``, those of the first ``length`` tokens."""
    found: list[mx.array] = []
    for step in steps:
        if length > 0:
            found.append(step if step.shape[1] <= length else step[:, :length])
        length -= step.shape[1]
    return found


def _shape(steps: list[mx.array]) -> tuple[int, ...]:
    batch, _, width = steps[0].shape
    return batch, sum(step.shape[1] for step in steps), width


class MonitorReader(Recorder):
    """Keeps the readings of some monitors, after all that acts at their sites: one number a token, row and monitor.

    A reading depends on its token alone, so that it is the same over a cache, in pieces and beside other rows.
    """

    reads_last = True

    def __init__(self, registry: Registry, monitors: Sequence[Monitor]) -> None:
        self.registry = registry
        self.monitors = tuple(monitors)
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
