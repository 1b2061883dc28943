"""Going to a feature on the Features screen: by its number, by words, to the one after. What the screen mixes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Input

from lens_tui.records import SAEInfo

if TYPE_CHECKING:
    from lens_tui.tui.widgets.row_list import RowList

    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object


class FeatureGoing(_Base):
    """Needs ``sae``, ``chosen``, ``list`` and ``find`` of the screen; calls ``choose``, ``find_words``, ``missing``."""

    if TYPE_CHECKING:
        list: RowList[tuple[int, float]]
        find: Input
        pinned: int | None
        found: int | None

        @property
        def sae(self) -> SAEInfo | None:
            """The SAE in use."""

        @property
        def chosen(self) -> int | None:
            """The feature that is shown."""

        def choose(self, feature: int | None) -> None:
            """Show a feature."""

        def find_words(self, words: str) -> None:
            """Ask for the features that words lead to."""

        def missing(self) -> str:
            """What there is none of."""
            return ""

    def go(self, feature: int) -> None:
        """Show a feature wherever it comes from; escape goes back to the one under the list's cursor."""
        self.pinned, self.found = None, feature
        self.list.refresh()
        self.choose(feature)

    def action_feature(self, step: int) -> None:
        """The feature after or before, by number, going round."""
        feature, sae = self.chosen, self.sae
        if feature is not None and sae is not None:
            self.go((feature + step) % sae.width)

    def action_find(self) -> None:
        """Type words, or a feature's number."""
        self.find.remove_class("-closed")
        self.find.value = ""
        self.find.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the feature of that number, or look for features by those words."""
        text = event.value.strip()
        number, sae = text.lstrip("fF"), self.sae
        if sae is None:
            self.lens.say(self.missing())
        elif not (number.isascii() and number.isdecimal()):
            if text:
                self.close_find()
                self.find_words(text)
        elif len(number) > 9 or int(number) >= sae.width:
            self.lens.say(f"Type a number from 0 to {sae.width - 1}, or words.")
        else:
            self.close_find()
            self.go(int(number))

    def close_find(self) -> None:
        """Put the field away."""
        self.find.add_class("-closed")
        self.set_focus(self.list)
