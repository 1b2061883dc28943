"""What happens at one site: what each intervention does, composed for every row of a batch, and how far it moved it.

Neighbouring additions on all positions are fused into one cached array
``(rows, 1, width)``. All that happens at a site is computed in float32 and rounded
once, so that the same change is the same numbers however its positions are written.

The dose is measured on the device, after rounding, as two norms a site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import (
    Ablate,
    AblateHeads,
    Add,
    Dose,
    EditPattern,
    Intervention,
    LensError,
    NormMatch,
    NotFinite,
    ProjectOut,
)
from lens_tui.records.gates import Monitor

from .deltas import Delta, delta_of
from .pattern_edits import PatternEdit
from .places import Mask, Where, touched
from .readings import (
    FeatureSource,
    Opening,
    Reading,
    opening_of,
    reading_of,
)

async_eval: Any = mx.async_eval
"""MLX's own, which has no types."""


def must_move(record: Intervention) -> bool:
    """Whether the record is an error when it moves nothing (a cap that does not bind, or a shut gate, is none)."""
    if record.gate is not None:
        return False
    if isinstance(record, (Add, NormMatch)):
        return record.scale != 0.0
    if isinstance(record, EditPattern):
        return record.weights is None  # another run's pattern may be this one's
    return isinstance(record, (ProjectOut, Ablate, AblateHeads))


Key = tuple[int, str]
"""A layer and a site."""


@dataclass(frozen=True)
class Hook:
    """A function of the user's at a site: ``fn(ctx, h) -> h | None``. ``ctx`` is a :class:`HookContext`."""

    id: str
    layer: int
    site: str
    fn: Callable[[Any, mx.array], mx.array | None]


def adding(change: mx.array) -> Callable[[Any, mx.array], mx.array]:
    """What a hook does that adds ``change`` in the type of what it is added to."""
    return lambda ctx, h: h + change.astype(h.dtype)


@dataclass(frozen=True, eq=False)
class HookContext:
    """What a user's hook gets to know: the layer, the site, and what is known of the forward."""

    layer: int
    site: str
    where: Where


Item = Intervention | Hook


def has_effect(item: Item) -> bool:
    """Whether an item does anything at all: switched-off records and scales of zero leave every bit as it is."""
    return isinstance(item, Hook) or (item.enabled and getattr(item, "scale", 1.0) != 0.0)


@dataclass(eq=False)
class _Fused:
    """Additions on all positions, summed: ``values`` (rows, width) in float32."""

    values: np.ndarray[Any, np.dtype[np.float32]]

    @cached_property
    def array(self) -> mx.array:
        array = mx.array(self.values)[:, None, :]
        mx.eval(array)
        return array


@dataclass(frozen=True, eq=False)
class _Change:
    """One record on some rows; ``rows`` is ``None`` for all, else a bool array (rows, 1, 1)."""

    record: Intervention
    delta: Delta | PatternEdit
    rows: mx.array | None
    opening: Opening | None = None


@dataclass(frozen=True, eq=False)
class _UserChange:
    hook: Hook
    rows: mx.array | None


@dataclass(frozen=True, eq=False)
class Program:
    """All that happens at one site in one forward; ``acting`` are the rows that interventions are on, empty for all.

    ``reads`` are the monitors here whose gates are on records further on.
    """

    key: Key
    steps: tuple[_Fused | _Change | _UserChange, ...]
    n_rows: int
    float32: bool
    must_move: tuple[bool, ...]
    acting: tuple[int, ...] = ()
    reads: tuple[tuple[Monitor, Reading], ...] = ()

    def run(
        self, h: mx.array, where: Where, watch: Callable[[mx.array, mx.array, mx.array, Mask], None] | None
    ) -> mx.array:
        """The changed residual. ``watch(before, exact, after, mask)`` is called once if given."""
        if self.n_rows > 1 and h.shape[0] != self.n_rows:
            raise LensError(
                f"The interventions are for {self.n_rows} rows, but the forward has {h.shape[0]}.",
                "Give as many sequences as there are rows.",
            )
        # ``exact`` is in float32 from the first step that touches anything, and rounded once at the end, so that two
        # steerings are the same numbers as their sum, and the meter can tell what was asked from what was delivered.
        before, exact = h, h
        dtype = mx.float32 if self.float32 else h.dtype
        hit: Mask = False
        for step in self.steps:
            if isinstance(step, _UserChange):  # is given, and gives, the model's own dtype
                exact = _run_hook(step, exact.astype(dtype), where)
                continue
            exact, mask = _applied(step, exact, where)
            hit = _either(hit, mask)
        h = exact if exact.dtype == dtype else exact.astype(dtype)
        # The dose is of the tokens that any step touched, padding left out.
        if watch is not None and hit is not False:
            watch(before, exact, h, _both(hit, where.real))
        return h


def build(
    key: Key,
    rows: Sequence[Sequence[Item]],
    sources: Mapping[str, FeatureSource],
    width: int,
    monitors: Sequence[Monitor] = (),
) -> Program:
    """The program of a site from the items of each row, in order.

    Args:
        key: The layer and site.
        rows: The items of each row; one row stands for every row of any batch.
        sources: The SAEs that records may name.
        width: Of the tensor there.
        monitors: What is read there for gates further on.
    """
    # Rows of a batch have interventions of their own, and one tensor. Every record becomes a step that knows its rows,
    # row after row: records of different rows do not touch each other, and within a row the order is kept.
    rows = [list(filter(has_effect, items)) for items in rows]
    steps: list[_Fused | _Change | _UserChange] = []
    shared = len(rows) == 1
    for row, items in enumerate(rows):
        only = None if shared else _row_mask(len(rows), row)
        for item in items:
            if isinstance(item, Hook):
                steps.append(_UserChange(item, only))
            elif isinstance(item, Add) and item.positions.kind == "all" and item.gate is None:
                # The common case, and the one that costs most often: additions commute, so that those of all rows are
                # one array, made once, and a step adds it once however many arms there are.
                _fuse(steps, item, row, len(rows), width)
            else:
                opening = None if item.gate is None else opening_of(item.gate, key, sources)
                steps.append(_Change(item, delta_of(item, sources, width), only, opening))
    flat = [item for items in rows for item in items if isinstance(item, Intervention)]
    return Program(
        key,
        tuple(steps),
        len(rows),
        any(item.precision == "float32" for item in flat),
        tuple(any(isinstance(item, Intervention) and must_move(item) for item in items) for items in rows),
        () if shared else tuple(row for row, items in enumerate(rows) if items),
        tuple((monitor, reading_of(monitor, sources)) for monitor in monitors),
    )


def _row_mask(count: int, row: int) -> mx.array:
    mask = mx.array((np.arange(count) == row)[:, None, None])
    mx.eval(mask)  # programs are shared by threads, which lazy arrays cannot cross
    return mask


def _fuse(steps: list[_Fused | _Change | _UserChange], item: Add, row: int, n_rows: int, width: int) -> None:
    """Add to the fused step before, if that keeps the order within the row; else begin one."""
    # Steps that are on other rows alone are passed over: moving an addition before them changes nothing.
    place = len(steps) - 1
    while place >= 0 and not isinstance(steps[place], _Fused) and not _on_row(steps[place], row):
        place -= 1
    step = steps[place] if place >= 0 else None
    if not isinstance(step, _Fused):
        step = _Fused(np.zeros((n_rows, width), dtype=np.float32))
        steps.append(step)
    step.values[row] += np.float32(item.scale) * item.vector.direction


def _on_row(step: _Fused | _Change | _UserChange, row: int) -> bool:
    if isinstance(step, _Fused) or step.rows is None:
        return True
    return bool(step.rows[row, 0, 0].item())


def _applied(step: _Fused | _Change, h: mx.array, where: Where) -> tuple[mx.array, Mask]:
    """The residual after a step, in float32 where it is touched at all, and which tokens are.

    Those that are not keep their bits: every number of a lower precision is one of float32.
    """
    if isinstance(step, _Fused):
        return h.astype(mx.float32) + step.array, True
    mask = touched(step.record.positions, where)
    if mask is False:
        return h, False
    mask = _both(mask, step.rows)
    if step.opening is not None:
        mask = _both(mask, step.opening(h, where))
        if where.opened is not None and not isinstance(mask, bool):
            where.opened[step.record.id, step.record.layer, step.record.site] = mask
    wide = h.astype(mx.float32)
    change = step.delta.change(where, mask) if isinstance(step.delta, PatternEdit) else step.delta(wide)
    moved = wide + change
    return moved if isinstance(mask, bool) else mx.where(mask, moved, wide), mask


def _run_hook(step: _UserChange, h: mx.array, where: Where) -> mx.array:
    hook = step.hook
    try:
        out = hook.fn(HookContext(hook.layer, hook.site, where), h)
    except Exception as error:
        raise LensError(f"The hook {hook.id!r} at layer {hook.layer} {hook.site} failed: {error!r}.") from error
    if out is None:
        return h
    if not isinstance(out, mx.array) or out.shape != h.shape:
        got = tuple(out.shape) if isinstance(out, mx.array) else type(out).__name__
        raise LensError(
            f"The hook {hook.id!r} at layer {hook.layer} {hook.site} gave {got}, not {tuple(h.shape)}.",
            "Return an array of the same shape, or None to change nothing.",
        )
    out = out.astype(h.dtype)
    return out if step.rows is None else mx.where(step.rows, out, h)


def _both(mask: Mask, rows: mx.array | None) -> Mask:
    if rows is None:
        return mask
    return rows if isinstance(mask, bool) else mask & rows


def _either(left: Mask, right: Mask) -> Mask:
    if left is True or right is True:
        return True
    if isinstance(left, bool):
        return right
    return left if isinstance(right, bool) else left | right


Watcher = Callable[[mx.array, mx.array, mx.array, Mask], None]
Sums = NDArray[np.float64]
LIMIT = 16
"""Decoding steps that touch a row, of which its dose is the mean; its prompt is measured whole."""
MOST = 256
"""Decoding steps that are looked at for it, at most."""


Residuals = tuple[mx.array, mx.array, mx.array]
"""Of one site in one forward: before, as it was asked for, as it was delivered; (rows, tokens, width) each."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One site in one forward: sums over touched tokens (4, rows): asked, delivered, relative, how many.

    ``late``: instead of sums, the residuals that they will be made of together with those of other steps.
    """

    key: Key
    sums: mx.array | None
    decoding: bool
    late: Residuals | None = None


class DoseMeter:
    """Collects doses of a run: over its prompt, and over each row's first ``LIMIT`` decoding steps that touch it.

    ``pending`` holds what is not yet read; whoever runs the forwards evaluates it with the rest of the step and
    calls :meth:`settle`, or takes it away and calls :meth:`count` once the step is used: a step that was launched
    ahead and that no token came from is not part of a dose. ``decoding`` is set by who runs the forwards.

    ``gathers``: what the first decoding step does is measured with it, those after it (of one token a row, all of them
    touched) together once there are :data:`LIMIT` of them, or when a dose is asked for: the sums of one step are
    forty small operations, a fifteenth of what a step of 26 layers launches.
    """

    def __init__(self, *, gathers: bool = False) -> None:
        self.pending: list[Measured] = []
        self.decoding = False
        self.unchecked = False
        self._gathers = gathers
        self._late: dict[Key, list[Residuals]] = {}
        self._sent: list[Measured] = []
        self._sums: dict[Key, Sums] = {}
        self._seen: dict[Key, NDArray[np.int64]] = {}
        self._looked: dict[Key, int] = {}

    def restart(self) -> None:
        """Start over: the interventions have changed."""
        self.pending.clear()
        self._late.clear()
        self._sent.clear()
        self._sums.clear()
        self._seen.clear()
        self._looked.clear()

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated with the step."""
        return [item.sums for item in self.pending if item.sums is not None]

    def watcher(self, key: Key, acting: Sequence[int] = ()) -> Watcher | None:
        """What measures this site in this forward, or ``None`` once enough is known of the rows that are acted on."""
        decoding = self.decoding
        if decoding and self._enough(key, acting):
            return None

        def watch(before: mx.array, exact: mx.array, after: mx.array, mask: Mask) -> None:
            looked = self._looked.get(key, 0)
            self._looked[key] = looked + decoding
            if self._gathers and decoding and looked and mask is True and before.shape[1] == 1:
                self.pending.append(Measured(key, None, decoding, (before, exact, after)))
            else:
                self.pending.append(Measured(key, _measure(before, exact, after, mask), decoding))

        return watch

    def _enough(self, key: Key, acting: Sequence[int]) -> bool:
        if self._looked.get(key, 0) >= MOST:
            return True
        if self._looked.get(key, 0) < LIMIT or key not in self._seen:
            return False
        seen = self._seen[key]
        return bool((seen[list(acting)] if len(acting) else seen).min() >= LIMIT)

    def take(self) -> list[Measured]:
        """What is pending, which is then somebody else's to count."""
        taken, self.pending = self.pending, []
        return taken

    def settle(self) -> None:
        """Read what has been measured (evaluates what is not evaluated yet)."""
        self.count(self.take())
        for key in list(self._late):
            self._send(key)
        self.count(())

    def count(self, measured: Sequence[Measured]) -> None:
        """Add what was measured in a step that was used."""
        sent, self._sent = self._sent, []
        for item in sent:
            self.unchecked = True
            self._add(item.key, np.array(item.sums, dtype=np.float64))
        for item in measured:
            if item.late is not None:
                self._gather(item.key, item.late)
            else:
                self.count_sums(item.key, np.array(item.sums, dtype=np.float64), item.decoding)

    def _gather(self, key: Key, residuals: Residuals) -> None:
        """Keep what one step did until there is more of it, or it is asked for."""
        rows = residuals[0].shape[0]
        seen, held = self._seen.get(key), self._late.get(key)
        if seen is None or len(seen) != rows or (seen >= LIMIT).any() or (held and held[0][0].shape[0] != rows):
            # Its rows are not those of the steps before, or some of them are measured: it counts by itself.
            self._send(key)
            self.count_sums(key, np.array(_measure(*residuals, True), dtype=np.float64), decoding=True)
            return
        seen += 1
        self._late.setdefault(key, []).append(residuals)
        if seen.max() >= LIMIT:
            self._send(key)

    def _send(self, key: Key) -> None:
        """Measure the steps that were kept. Nobody waits: the sums are read with the next step, or when asked for."""
        if held := self._late.pop(key, None):
            before, exact, after = (mx.concatenate(list(parts), axis=1) for parts in zip(*held, strict=True))
            sums = _measure(before, exact, after, True)
            async_eval(sums)
            self._sent.append(Measured(key, sums, decoding=True))

    def count_sums(self, key: Key, value: Sums, decoding: bool) -> None:
        """Add the sums (4, rows) of one site in one forward; rows of which enough is known are left out."""
        self.unchecked = True
        if decoding:
            seen = self._seen.setdefault(key, np.zeros(value.shape[1], np.int64))
            value = np.where(seen < LIMIT, value, 0.0)
            seen += value[3] > 0
        self._add(key, value)

    def _add(self, key: Key, value: Sums) -> None:
        self._sums[key] = _together(self._sums[key], value) if key in self._sums else value

    def sums(self) -> dict[Key, Sums]:
        """What has been measured by site: sums over touched tokens, (4, rows): asked, delivered, relative, count."""
        self.settle()
        return dict(self._sums)

    def add(self, sums: Mapping[Key, Sums], rows: Sequence[int], n_rows: int) -> None:
        """Count what was measured elsewhere, (4,) a site, for each of these rows."""
        self.unchecked = self.unchecked or bool(sums)
        for key, value in sums.items():
            here = self._sums.get(key, np.zeros((4, n_rows)))
            here[:, list(rows)] += value[:, None]
            self._sums[key] = here

    def doses(self, row: int, keys: Sequence[Key] | None = None) -> tuple[Dose, ...]:
        """The doses of one row by site, in order of layers; ``keys`` keeps only these sites."""
        self.settle()
        mine = {key: sums[:, min(row, sums.shape[1] - 1)] for key, sums in self._sums.items()}
        return _doses_of({key: value for key, value in mine.items() if keys is None or key in keys})

    def check_moved(self, row: int, keys: Sequence[Key], name: str, *, adds: bool = True) -> None:
        """Raise :class:`LensError` if a site that had to move was measured and did not.

        ``adds``: something is added there, whose length is not nothing: what was asked is then lost by its smallness.
        """
        for dose in self.doses(row, keys):
            if dose.asked == 0.0 and not adds:
                raise LensError(
                    f"{name} moves nothing at layer {dose.layer} {dose.site}: what it takes away is not there.",
                    "Change its positions, or what it takes away; the tokens of a text are numbered from 0.",
                )
            if dose.delivered == 0.0:
                raise LensError(
                    f"{name} moves nothing at layer {dose.layer} {dose.site}: a change of length {dose.asked:.3g} "
                    "is lost in the rounding of the model's dtype.",
                    "Raise the scale, or steer with precision='float32'.",
                )


def _doses_of(sums: Mapping[Key, Sums]) -> tuple[Dose, ...]:
    """One row's doses from its sums (4,) by site, in order of layers. Raises ``NotFinite``."""
    found = []
    for key, value in sorted(sums.items(), key=lambda item: item[0]):
        asked, delivered, relative, count = value
        if not np.isfinite(value).all():
            where = f"layer {key[0]} {key[1]}"
            raise NotFinite(f"The residual at {where} is not finite under its steering.", "Lower the scale.")
        if count:
            means = (float(asked / count), float(delivered / count), float(relative / count))
            found.append(Dose(key[0], key[1], *means, int(count)))
    return tuple(found)


def _together(left: Sums, right: Sums) -> Sums:
    """The sum of two (4, rows): companions join a batch at its end, after the prompt was measured without them."""
    if left.shape == right.shape:
        return left + right
    wide = max(left.shape[1], right.shape[1])
    one, other = (np.pad(sums, ((0, 0), (0, wide - sums.shape[1]))) for sums in (left, right))
    found: Sums = one + other
    return found


def _measure(before: mx.array, exact: mx.array, after: mx.array, mask: Mask) -> mx.array:
    """Sums over touched tokens, shape (4, rows): asked, delivered, relative, how many."""
    h = before.astype(mx.float32)
    asked = mx.linalg.norm(exact - h, axis=-1)
    delivered = mx.linalg.norm(after.astype(mx.float32) - h, axis=-1)
    relative = delivered / mx.maximum(mx.linalg.norm(h, axis=-1), 1e-30)
    if isinstance(mask, bool):
        whole = [value.sum(axis=1) for value in (asked, delivered, relative)]
        return mx.stack([*whole, mx.full((asked.shape[0],), float(asked.shape[1]))])
    weight = mx.broadcast_to(mask[..., 0], asked.shape).astype(mx.float32)
    # Padding is left out, whatever it holds.
    parts = [mx.where(weight > 0, value, 0.0).sum(axis=1) for value in (asked, delivered, relative)]
    return mx.stack([*parts, weight.sum(axis=1)])
