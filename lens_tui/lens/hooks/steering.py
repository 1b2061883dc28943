"""What ``steer`` and ``intervene`` give: interventions that hold for a block, and can be changed while they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from lens_tui.records import Dose, Intervention, LensError, Positions

from .program import Item
from .registry import Entry, Registry, checked


class Steering:
    """Interventions put up together: a context manager, and the handle that changes them.

    They hold for forwards in the context (thread or task) that entered the
    block. A generation started inside keeps them to its end, and follows
    :meth:`update`. Leaving is allowed in any order and from any thread.
    """

    def __init__(self, registry: Registry, items: Sequence[Item], unit: float = 1.0) -> None:
        self._registry = registry
        self._items = tuple(items)
        self._unit = unit
        self._entries: list[Entry] = []
        self.doses: tuple[Dose, ...] = ()

    def __enter__(self) -> Steering:
        if self._entries:
            raise LensError("This steering has been entered already.", "Make another with steer().")
        for item in self._items:
            entry = Entry(self._registry, item)
            self._registry.put(entry)
            self._entries.append(entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entries, self._entries = self._entries, []
        for entry in entries:
            self._registry.take(entry)
        self._items = tuple(entry.item for entry in entries)
        if kind is None:
            _check_called(entries)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The records, as they are now."""
        return tuple(item for item in self._now() if isinstance(item, Intervention))

    @property
    def scale(self) -> float:
        """The scale of the first intervention that has one, in the units it was given in.

        Raises :class:`LensError` if none has (a hook, a projection).
        """
        scales = [float(item.scale) for item in self._now() if hasattr(item, "scale")]
        if not scales:
            raise LensError("Nothing in this block has a scale.", "Look at .interventions for what it holds.")
        return scales[0] / self._unit

    def update(
        self, *, scale: float | None = None, positions: Positions | None = None, enabled: bool | None = None
    ) -> None:
        """Change the interventions, live: the next forward runs under the new values.

        Raises :class:`LensError` for a scale where nothing has one.
        """
        if scale is not None:
            _ = self.scale
        for index, item in enumerate(self._now()):
            if not isinstance(item, Intervention):
                continue
            values: dict[str, Any] = {}
            if scale is not None and hasattr(item, "scale"):
                values["scale"] = scale * self._unit
            if positions is not None:
                values["positions"] = positions
            if enabled is not None:
                values["enabled"] = enabled
            self._put(index, checked(replace(item, **values), self._registry))

    def _now(self) -> tuple[Item, ...]:
        return tuple(entry.item for entry in self._entries) if self._entries else self._items

    def _put(self, index: int, item: Item) -> None:
        if self._entries:
            self._entries[index].set(item)
        else:
            self._items = (*self._items[:index], item, *self._items[index + 1 :])


def _check_called(entries: Sequence[Entry]) -> None:
    """A block whose forwards never came past the site has steered nothing: say so."""
    for entry in entries:
        if entry.forwards and not entry.calls:
            item = entry.item
            raise LensError(
                f"{item.id!r} never acted: {entry.forwards} forwards did not call layer {item.layer} {item.site}.",
                "This way of calling the model goes around its blocks.",
            )
