"""What mlx-lm's KV caches tell: how many tokens they hold, and under which interventions they were filled."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lens_tui.records import LensError

from .positions import Offset

Print = tuple[object, ...]
MIXED: Print = ("mixed",)
"""The mark of a cache that was filled under one plan after another: equal to no plan's."""


class CacheLedger:
    """Notes on the caches that forwards were seen to use; a cache is known by its first layer's object."""

    def __init__(self) -> None:
        self._marks: weakref.WeakKeyDictionary[Any, Print] = weakref.WeakKeyDictionary()
        self._counts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self, caches: Sequence[Any], length: int, fingerprint: Print) -> Offset | None:
        """A forward of ``length`` tokens begins: where it starts, ``None`` if that cannot be known."""
        if not caches:
            return 0
        offset = self.offset(caches)
        filled = offset is None or not isinstance(offset, int) or offset > 0
        before = self._marks.get(caches[0], ())
        self._marks[caches[0]] = fingerprint if not filled or before == fingerprint else MIXED
        if isinstance(offset, int):
            self._counts[caches[0]] = offset + length
        return offset

    def offset(self, caches: Sequence[Any]) -> Offset | None:
        """Absolute position of the next token.

        Of the first layer's cache that counts tokens; purely recurrent ones count
        none, so what was seen to go in is counted here.
        """
        found = counted(caches)
        if found is not None or not caches:
            return found if found is not None else 0
        if caches[0] in self._counts:
            return self._counts[caches[0]]
        return 0 if _empty(caches) else None

    def note(self, caches: Sequence[Any], count: int, fingerprint: Print) -> None:
        """These caches hold ``count`` tokens that went in under these interventions."""
        if caches:
            self._marks[caches[0]] = fingerprint
            self._counts[caches[0]] = count

    def check(self, caches: Sequence[Any], fingerprint: Print) -> int:
        """Tokens that a cache holds, if it was filled under these interventions. Raises :class:`LensError`."""
        offset = self.offset(caches)
        if not isinstance(offset, int):
            raise LensError("This prompt cache does not say how many tokens it holds.", "Start with an empty cache.")
        if offset and self._marks.get(caches[0], ()) != fingerprint:
            raise LensError(
                "The prompt cache was filled under other interventions than the ones that hold now.",
                "Fill a new cache, or put up the same interventions as before.",
            )
        return offset


def caches_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The KV caches that a model call was given, whatever the argument is called; empty if none."""
    for value in (kwargs.get("cache"), *args[1:], *kwargs.values()):
        if isinstance(value, (list, tuple)) and value and all(item is None or hasattr(item, "state") for item in value):
            return [item for item in value if item is not None]
    return []


def counted(caches: Sequence[Any]) -> Offset | None:
    """The offset of the first cache that has one, composite ones (``CacheList``) opened."""
    for item in caches:
        inner = getattr(item, "caches", None)
        offset = counted(inner) if isinstance(inner, (list, tuple)) else getattr(item, "offset", None)
        if isinstance(offset, int):
            return offset
        if isinstance(offset, mx.array):
            return offset + 0  # caches may move their offset in place
    return None


def _empty(caches: Sequence[Any]) -> bool:
    try:
        return all(item.empty() for item in caches)
    except (NotImplementedError, AttributeError):
        return False
