"""Textual without what it does again for every app, or for nothing: a seventh of the time of the tests of screens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.segment import Segment
from textual.cache import FIFOCache, LRUCache
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet
from textual.strip import Strip

MOST = 1024
"""How many texts of styles are kept, for each theme: an app has about a hundred."""

Rules = LRUCache[tuple[Any, ...], list[RuleSet]]


def share_parsed_styles() -> None:
    """Have all stylesheets of this process with the same variables keep what they parse in one place.

    Textual parses the styles anew for each app, several times as it starts. Rules are only read once they are parsed.
    What is invalid is not kept.
    """
    begin, vary = Stylesheet.__init__, Stylesheet.set_variables
    kept: dict[frozenset[tuple[str, str]], Rules] = {}

    def begun(self: Stylesheet, *, variables: dict[str, str] | None = None) -> None:
        begin(self, variables=variables)
        self._parse_cache = kept.setdefault(frozenset(self._variables.items()), LRUCache(MOST))

    def varied(self: Stylesheet, variables: dict[str, str]) -> None:
        self._parse_cache = LRUCache(MOST)  # or those of the others would be cleared
        vary(self, variables)
        self._parse_cache = kept.setdefault(frozenset(variables.items()), LRUCache(MOST))

    Stylesheet.__init__, Stylesheet.set_variables = begun, varied  # type: ignore[method-assign]


def hash_rules_at_once() -> None:
    """Have Python itself hash a rule by what object it is, as Textual's method does: once for each rule and widget."""
    RuleSet.__hash__ = object.__hash__  # type: ignore[method-assign]


def make_caches_when_used() -> None:
    """Have a strip make each of its caches when it is first asked for: most of the seven never are.

    They were a third of all objects that the garbage collector goes through.
    """
    model: Any = Strip([])
    sizes = {name: value._maxsize for name in Strip.__slots__ if isinstance(value := getattr(model, name), FIFOCache)}
    if {*Strip.__slots__} - {*sizes} != {"_segments", "_cell_length", "_render_cache", "_link_ids", "_cell_count"}:
        return  # another version of Textual, with something that is not known here

    def begun(self: Strip, segments: Iterable[Segment], cell_length: int | None = None) -> None:
        self._segments = list(segments)
        self._cell_length = cell_length
        self._render_cache = self._link_ids = self._cell_count = None

    def made(self: Strip, name: str) -> object:
        if name not in sizes:
            raise AttributeError(name)
        cache: FIFOCache[Any, Any] = FIFOCache(sizes[name])
        setattr(self, name, cache)
        return cache

    Strip.__init__ = begun  # type: ignore[method-assign]
    Strip.__getattr__ = made  # type: ignore[attr-defined]
