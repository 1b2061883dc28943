"""The lower half of a feature's page: which list shows, and the features like it. What the screen mixes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import VerticalScroll
from textual.geometry import Region

from lens_tui.records import SAEInfo
from lens_tui.tui.widgets.feature_card import SECTIONS, near_row, short_name
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.events import Event, FeaturePage, JobDone, NeighboursRead
from lens_tui.worker.jobs import ReadNeighbours

if TYPE_CHECKING:
    from textual.content import Content

    from lens_tui.tui.widgets.feature_card import FeatureCard

    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object

NEAR_KEPT = 128
LISTED = ("near", "together")

Row = tuple[int, float]


class FeatureNear(_Base):
    """Needs ``sae``, ``chosen``, ``pages`` and ``card`` of the screen, and calls its ``read_names``."""

    if TYPE_CHECKING:
        pages: dict[tuple[str, int], FeaturePage]
        card: FeatureCard

        @property
        def sae(self) -> SAEInfo | None:
            """The SAE in use."""

        @property
        def chosen(self) -> int | None:
            """The feature that is shown."""

        def read_names(self) -> None:
            """Name the features that have no name yet."""

    def __init__(self) -> None:
        super().__init__()
        self.near: RowList[Row] = RowList(self._draw_near, id="near")
        self.near.add_class("-closed")
        self._like: dict[tuple[str, int], NeighboursRead] = {}

    @property
    def near_features(self) -> tuple[int, ...]:
        """The features listed as like the one that is shown."""
        return tuple(feature for feature, _ in self.near.rows)

    def action_section(self, step: int) -> None:
        """The next list, or the one before: top examples, a sample, neighbours, co-active features."""
        names = list(SECTIONS)
        self.card.section = names[(names.index(self.card.section) + step) % len(names)]
        self.show_near(ask=True)
        self.call_after_refresh(self._section_in_sight)

    def _section_in_sight(self) -> None:
        page, row = self._page, self.card.section_row
        page.scroll_to_region(Region(0, row, 1, page.virtual_size.height - row), animate=False)

    @property
    def _page(self) -> VerticalScroll:
        return self.query_one("#card-scroll", VerticalScroll)

    def show_near(self, *, ask: bool = False) -> None:
        """List the features like the chosen one, as far as they are known; ``ask`` for them if they are not."""
        sae, feature, section = self.sae, self.chosen, self.card.section
        wanted = section in LISTED and sae is not None and feature is not None
        self.near.set_class(not wanted, "-closed")
        self._page.can_focus = not wanted  # the list moves the page
        if sae is None or feature is None or not wanted:
            self.near.show((), 0)
            return
        known = self._like.get((sae.id, feature))
        if known is None and ask:
            self.lens.submit(ReadNeighbours(sae.id, feature), "near", self._take_near)
        rows = None if known is None else known.near if section == "near" else known.together
        needs = "Needs an index made with --full." if known is not None else "…"
        self.near.empty = "None." if rows is not None else needs
        self.near.styles.height = max(1, len(rows or ()))
        self.near.show(rows or (), 0)
        self.read_names()

    def _take_near(self, event: Event) -> None:
        if isinstance(event, NeighboursRead):
            self._like[event.sae, event.feature] = event
            while len(self._like) > NEAR_KEPT:
                del self._like[next(iter(self._like))]
            if event.feature == self.chosen:
                self.show_near()
        elif isinstance(event, JobDone) and not event.stopped:
            self.read_names()

    def _draw_near(self, row: Row, width: int) -> list[Content]:
        sae, (feature, value) = self.sae, row
        page = self.pages.get((sae.id if sae is not None else "", feature))
        return [near_row(feature, value, short_name(page) if page is not None else "", width)]

    def follow_near(self) -> None:
        """Keep the list's cursor in sight: what scrolls is the page around it."""
        if self.near.has_focus:
            self._page.scroll_to_region(Region(0, self.near.virtual_region.y + self.near.cursor, 1, 1), animate=False)
