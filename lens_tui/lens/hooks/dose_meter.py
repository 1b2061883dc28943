"""Measure the dose: how far each site was really moved, after rounding, on the device, in two norms a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Dose, LensError, NotFinite

from .positions import Mask
from .program import Key

Watcher = Callable[[mx.array, mx.array, mx.array, Mask], None]
Sums = NDArray[np.float64]
LIMIT = 16
"""Decoding steps that touch a row, of which its dose is the mean; its prompt is measured whole."""
MOST = 256
"""Decoding steps that are looked at for it, at most."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One site in one forward: sums over touched tokens (4, rows): asked, delivered, relative, how many."""

    key: Key
    sums: mx.array
    decoding: bool


class Meter:
    """Collects doses of a run: over its prompt, and over each row's first ``LIMIT`` decoding steps that touch it.

    ``pending`` holds what is not yet read; whoever runs the forwards evaluates it with the rest of the step and
    calls :meth:`settle`, or takes it away and calls :meth:`count` once the step is used: a step that was launched
    ahead and that no token came from is no part of a dose. ``decoding`` is set by who runs the forwards.
    """

    def __init__(self) -> None:
        self.pending: list[Measured] = []
        self.decoding = False
        self.unchecked = False
        self._sums: dict[Key, Sums] = {}
        self._seen: dict[Key, NDArray[np.int64]] = {}
        self._looked: dict[Key, int] = {}

    def restart(self) -> None:
        """Begin anew: the interventions have changed."""
        self.pending.clear()
        self._sums.clear()
        self._seen.clear()
        self._looked.clear()

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated with the step."""
        return [item.sums for item in self.pending]

    def watcher(self, key: Key, acting: Sequence[int] = ()) -> Watcher | None:
        """What measures this site in this forward, or ``None`` once enough is known of the rows that are acted on."""
        decoding = self.decoding
        if decoding and self._enough(key, acting):
            return None

        def watch(before: mx.array, exact: mx.array, after: mx.array, mask: Mask) -> None:
            self._looked[key] = self._looked.get(key, 0) + decoding
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

    def count(self, measured: Sequence[Measured]) -> None:
        """Add what was measured in a step that was used."""
        for item in measured:
            self.count_sums(item.key, np.array(item.sums, dtype=np.float64), item.decoding)

    def count_sums(self, key: Key, value: Sums, decoding: bool) -> None:
        """Add the sums (4, rows) of one site in one forward; rows of which enough is known are left out."""
        self.unchecked = True
        if decoding:
            seen = self._seen.setdefault(key, np.zeros(value.shape[1], np.int64))
            value = np.where(seen < LIMIT, value, 0.0)
            seen += value[3] > 0
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

    def check_moved(self, row: int, keys: Sequence[Key], name: str) -> None:
        """Raise :class:`LensError` if a site that had to move was measured and did not."""
        for dose in self.doses(row, keys):
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
    whole = isinstance(mask, bool)
    weight = mx.ones_like(asked) if whole else mx.broadcast_to(mask[..., 0], asked.shape)  # type: ignore[index]
    weight = weight.astype(mx.float32)
    # Padding is left out, whatever it holds.
    parts = [mx.where(weight > 0, value, 0.0).sum(axis=1) for value in (asked, delivered, relative)]
    return mx.stack([*parts, weight.sum(axis=1)])
