"""Styles that are parsed once a process: Textual parses them anew for each app, several times as it starts."""

from __future__ import annotations

from typing import Any

from textual.cache import LRUCache
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet

MOST = 1024
"""How many texts of styles are kept, for each theme: an app has about a hundred."""

Rules = LRUCache[tuple[Any, ...], list[RuleSet]]


def share_parsed_styles() -> None:
    """Have all stylesheets of this process with the same variables keep what they parse in one place.

    Rules are only read once they are parsed. What is invalid is not kept.
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
