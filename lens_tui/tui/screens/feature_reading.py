"""Pages of features on the Features screen: asked for after a rest, kept, and shown. What the screen mixes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_tui.records import FloatArray, SAEInfo
from lens_tui.tui.feature_text import next_active, rough_activations, shades
from lens_tui.tui.widgets.pane import Pane
from lens_tui.worker.events import Encoded, Event, FeatureActivations, FeaturePage, JobDone
from lens_tui.worker.jobs import ReadFeature

if TYPE_CHECKING:
    from textual.timer import Timer

    from lens_tui.tui.widgets.feature_card import FeatureCard
    from lens_tui.tui.widgets.row_list import RowList
    from lens_tui.tui.widgets.token_view import TokenView

    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object

REST = 0.08
"""Seconds the cursor rests on a feature before its page is read."""
PAGES_KEPT = 512

Row = tuple[int, float]


class FeatureReading(_Base):
    """Needs ``sae``, ``chosen``, ``encoded``, ``text``, ``list``, ``near`` and ``card`` of the screen."""

    if TYPE_CHECKING:
        text: TokenView
        list: RowList[Row]
        card: FeatureCard
        encoded: Encoded | None
        near: RowList[Row]
        pinned: int | None

        @property
        def sae(self) -> SAEInfo | None:
            """The SAE in use."""

        @property
        def chosen(self) -> int | None:
            """The feature that is shown."""

        @property
        def near_features(self) -> tuple[int, ...]:
            """The features listed as like the one that is shown."""
            return ()

        def show_near(self, *, ask: bool = False) -> None:
            """List the features like the one that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.values: FloatArray = np.zeros(0, np.float32)
        self.pages: dict[tuple[str, int], FeaturePage] = {}
        self._rest: Timer | None = None

    def choose(self, feature: int | None) -> None:
        """Shade the text by a feature at once, by what is known; read the rest of it after a rest."""
        if self._rest is not None:
            self._rest.stop()
        if feature is None or self.encoded is None or self.sae is None:
            self.card.page = None
            return
        self._shade(rough_activations(self.encoded, feature))
        page = self.pages.get((self.sae.id, feature))
        if page is not None:
            self._show_page(page)
        self._rest = self.set_timer(REST, lambda: self._ask(feature))

    def _ask(self, feature: int) -> None:
        if self.sae is not None:
            self.lens.submit(ReadFeature(self.sae.id, feature), "feature", self._take_feature)
            self.show_near(ask=True)

    def _take_feature(self, event: Event) -> None:
        match event:
            case FeatureActivations(_, _, feature, values) if feature == self.chosen:
                self._shade(values)
            case FeaturePage():
                self._keep(event)
                if event.feature == self.chosen:
                    self._show_page(event)
            case JobDone(_, stopped) if not stopped:
                self.read_names()

    def _shade(self, values: FloatArray) -> None:
        self.values = values
        self.text.set_levels(shades(values))
        self.card.here = float(values.max(initial=0.0))

    def _show_page(self, page: FeaturePage) -> None:
        self.card.page = page
        pane = self.query_one("#card-pane", Pane)
        pane.title = f"Feature {page.feature}"
        pane.note = "◆ pinned" if page.feature == self.pinned else ""
        self.show_near()

    def _keep(self, page: FeaturePage) -> None:
        self.pages[page.sae, page.feature] = page
        while len(self.pages) > PAGES_KEPT:
            del self.pages[next(iter(self.pages))]
        self.list.refresh()
        self.near.refresh()

    def read_names(self) -> None:
        """One after the other, name the features of the lists that have no name yet."""
        if self.sae is None or not self.is_current or self.lens.book.in_slot("names") is not None:
            return
        sae = self.sae.id
        listed = (*(feature for feature, _ in self.list.rows), *self.near_features)
        nameless = next((feature for feature in listed if (sae, feature) not in self.pages), None)
        if nameless is not None:
            self.lens.submit(ReadFeature(sae, nameless), "names", self._take_name)

    def _take_name(self, event: Event) -> None:
        if isinstance(event, FeaturePage):
            self._keep(event)
        elif isinstance(event, JobDone) and not event.stopped:
            self.read_names()

    def action_active(self, step: int) -> None:
        """The next token on which the chosen feature is active."""
        token = next_active(self.values, self.text.cursor or 0, step) if len(self.values) else None
        if token is None:
            self.lens.say("The feature is active nowhere in this text.")
        else:
            self.text.move_to(token)
