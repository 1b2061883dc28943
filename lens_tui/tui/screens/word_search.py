"""Going through what has the words that were typed: cells of a map and nodes of a graph alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import has_words, many
from lens_tui.tui.host import LensHost

from .form import Field, FormScreen

Place = TypeVar("Place")


@dataclass
class WordSearch(Generic[Place]):
    """The words that places are searched for. Places come in the order they are gone through in, with their texts.

    ``what`` a place is called, and the ``scope`` of the keys that go through them.
    """

    what: str
    scope: str
    words: str = ""

    def found(self, places: Mapping[Place, str]) -> list[Place]:
        """The places that have every word, whatever its case; all of them where there is no word."""
        return [place for place, text in places.items() if has_words(text, self.words)]

    def step(self, places: Mapping[Place, str], here: Place, by: int) -> Place:
        """The next of those found or the one before, going round; of all where none has the words (of an older map)."""
        order = self.found(places) or list(places)
        at = order.index(here) if here in order else -1 if by > 0 else 0
        return order[(at + by) % len(order)]

    def ask(self, lens: LensHost, places: Callable[[], Mapping[Place, str]], go: Callable[[Place], object]) -> None:
        """Ask for words, say how many places have them and go to the first of those."""

        def take(values: dict[str, str] | None) -> None:
            known = places()
            if values is None or not known:
                return
            self.words = values["words"].strip()
            found = self.found(known)
            lens.say(self._said(lens, len(found)))
            go((found or list(known))[0])

        field = Field("words", "words", self.words, "nothing: all again")
        lens.push_screen(FormScreen(f"Find {self.what}s", [field]), take)

    def _said(self, lens: LensHost, count: int) -> str:
        keys = " and ".join(lens.key_text(f"{self.scope}.{key}") for key in ("next", "previous"))
        if not self.words:
            return f"{keys} go through every {self.what}."
        words = f"“{one_line(self.words, 40)}”"
        return (
            f"{many(count, self.what)} with {words}: {keys} go through them."
            if count
            else f"No {self.what} has {words}."
        )
