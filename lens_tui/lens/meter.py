"""Measure the dose: how far each site was really moved, after rounding, on the device, in two norms a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import Dose, LensError

from .positions import Mask

Key = tuple[int, str]
Watcher = Callable[[mx.array, mx.array, mx.array, Mask], None]


class Meter:
    """Collects doses of a run, over its first ``limit`` forwards that touch anything.

    ``pending`` holds arrays not yet read; whoever runs the forwards evaluates
    them with the rest of the step and calls :meth:`settle`.
    """

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self.pending: list[tuple[Key, mx.array]] = []
        self.unchecked = False
        self._sums: dict[Key, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {}
        self._seen: dict[Key, int] = {}

    def restart(self) -> None:
        """Begin anew: the interventions have changed."""
        self.pending.clear()
        self._sums.clear()
        self._seen.clear()

    def watcher(self, key: Key) -> Watcher | None:
        """What measures this site in this forward, or ``None`` once enough is known."""
        if self._seen.get(key, 0) >= self.limit:
            return None

        def watch(before: mx.array, exact: mx.array, after: mx.array, mask: Mask) -> None:
            self._seen[key] = self._seen.get(key, 0) + 1
            self.pending.append((key, _measure(before, exact, after, mask)))

        return watch

    def settle(self) -> None:
        """Read what has been measured (evaluates what is not evaluated yet)."""
        for key, array in self.pending:
            value = np.array(array, dtype=np.float64)
            self._sums[key] = _together(self._sums[key], value) if key in self._sums else value
        self.pending.clear()

    def sums(self) -> dict[Key, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
        """What has been measured by site: sums over touched tokens, (4, rows): asked, delivered, relative, count."""
        self.settle()
        return dict(self._sums)

    def add(self, sums: Mapping[Key, np.ndarray[Any, np.dtype[np.float64]]], rows: Sequence[int], n_rows: int) -> None:
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
        return doses_of({key: value for key, value in mine.items() if keys is None or key in keys})

    def check_moved(self, row: int, keys: Sequence[Key], name: str) -> None:
        """Raise :class:`LensError` if a site that had to move was measured and did not."""
        for dose in self.doses(row, keys):
            if dose.delivered == 0.0:
                raise LensError(
                    f"{name} moves nothing at layer {dose.layer} {dose.site}: a change of length {dose.asked:.3g} "
                    "is lost in the rounding of the model's dtype.",
                    "Raise the scale, or steer with precision='float32'.",
                )


def doses_of(sums: Mapping[Key, np.ndarray[Any, np.dtype[np.float64]]]) -> tuple[Dose, ...]:
    """One row's doses from its sums (4,) by site, in order of layers."""
    found = []
    for key, (asked, delivered, relative, count) in sorted(sums.items()):
        if count:
            means = (float(asked / count), float(delivered / count), float(relative / count))
            found.append(Dose(key[0], key[1], *means, int(count)))
    return tuple(found)


def _together(
    left: np.ndarray[Any, np.dtype[np.float64]], right: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The sum of two (4, rows): companions join a batch at its end, after the prompt was measured without them."""
    wide = max(left.shape[1], right.shape[1])
    found: np.ndarray[Any, np.dtype[np.float64]] = sum(
        np.pad(one, ((0, 0), (0, wide - one.shape[1]))) for one in (left, right)
    )  # type: ignore[assignment]
    return found


def _measure(before: mx.array, exact: mx.array, after: mx.array, mask: Mask) -> mx.array:
    """Sums over touched tokens, shape (4, rows): asked, delivered, relative, how many."""
    h = before.astype(mx.float32)
    asked = mx.linalg.norm(exact - h, axis=-1)
    delivered = mx.linalg.norm(after.astype(mx.float32) - h, axis=-1)
    relative = delivered / mx.maximum(mx.linalg.norm(h, axis=-1), 1e-30)
    weight = mx.ones_like(asked) if isinstance(mask, bool) else mx.broadcast_to(mask[..., 0], asked.shape)
    weight = weight.astype(mx.float32)
    return mx.stack([(value * weight).sum(axis=1) for value in (asked, delivered, relative, mx.ones_like(asked))])
