"""The pane of Features that lists features: those of a token, those found by words, told apart by texts, or kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from lens_tui.records.features import DENSE, ContrastedFeature
from lens_tui.records.wording import many
from lens_tui.tui.format import fit
from lens_tui.tui.host import focus_now
from lens_tui.tui.reading_text import features_at
from lens_tui.tui.widgets import lane
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.feature_card import (
    CONTRAST_HEAD,
    FeatureMarks,
    contrast_row,
    feature_row,
    named_row,
)
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.events import Contrasted, Encoded, Event, FeaturesFound
from lens_tui.worker.jobs import FindFeatures

from .feature_panes import Row, missing


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Features that came another way than from a token: a title, a note, the rows, and names that came with them.

    ``kept`` is the name of a list that was kept.
    """

    title: str
    note: str
    features: tuple[int, ...]
    names: Mapping[int, str] = field(default_factory=dict)
    contrast: Mapping[int, ContrastedFeature] = field(default_factory=dict)
    kept: str = ""


class ListPane(Pane):
    """A list of features, and which one is chosen and which are marked.

    ``name_of`` says what a feature is called, as far as that is known.
    """

    class Changed(Message):
        """Another feature may be chosen, or it was pinned or let go."""

    def __init__(self, name_of: Callable[[int], Content]) -> None:
        self.find = Entry(placeholder="words, or a feature's number", id="find", classes="-closed", between=" ")
        self.list: RowList[Row] = RowList(self._draw_row, id="features")
        self.head, self.foot = lane.Line(id="list-head"), lane.Line(id="list-foot")
        for line in (self.head, self.foot):
            line.add_class("-closed")
        self.head.content = Content.styled(CONTRAST_HEAD, "$muted")
        super().__init__("Top features", self.find, self.head, self.list, self.foot, id="list-pane")
        self.pinned: int | None = None
        self.listing: Listing | None = None
        self.hide_dense = True
        self.dense: Mapping[int, float] = {}
        self.contrast_typed: Mapping[str, str] = {}
        self._marked: dict[str, dict[int, None]] = {}
        self._gone_to: int | None = None
        self._at_token: tuple[str, list[Row]] = ("", [])
        self._name_of = name_of

    @property
    def chosen(self) -> int | None:
        """The feature to show: pinned, gone to, or under the list's cursor."""
        if self.pinned is not None:
            return self.pinned
        if self._gone_to is not None:
            return self._gone_to
        return self.list.row[0] if self.list.row is not None else None

    @property
    def marked(self) -> dict[int, None]:
        """The marked features of the SAE in use, in the order in which they were marked."""
        return self._marked.setdefault(self.session.sae or "", {})

    # -- what is listed

    def _draw_row(self, row: Row, width: int) -> list[Content]:
        feature, value = row
        marks = FeatureMarks(feature == self.pinned, feature in self.marked, self.dense.get(feature))
        name, listing = self._name_of(feature), self.listing
        if not name.plain and listing is not None:
            name = Content(listing.names.get(feature, ""))
        if listing is not None and feature in listing.contrast:
            return [contrast_row(listing.contrast[feature], name, width, marks)]
        if listing is not None:
            return [named_row(feature, name, width, marks)]
        strongest = max((found for _, found in self.list.rows), default=0.0)
        return [feature_row(feature, value, strongest, name, width, marks)]

    def show_token(self, encoded: Encoded | None, token: int | None) -> None:
        """List the features of a token, at once or when the listing is let go."""
        self._at_token = ("", [])
        self.dense = dict(encoded.dense) if encoded is not None else {}
        if encoded is not None and token is not None:
            words = fit(f"@ {token} {lane.quoted(encoded.tokens[token])}", 22).rstrip()
            self._at_token = (words, features_at(encoded, token))
        if self.listing is None:
            self._show(0)

    def show_listing(self, listing: Listing) -> None:
        """Show these features until escape lets go of them."""
        self.listing, self.pinned, self._gone_to = listing, None, None
        self._show(0)

    def show_contrast(self, event: Contrasted) -> None:
        """The features that tell two sets of texts apart."""
        names = {row.feature: row.label or "" for row in event.found}
        rows = {row.feature: row for row in event.found}
        note = f"{event.texts_a} against {many(event.texts_b, 'text')}"
        self.show_listing(Listing("Contrast", note, tuple(rows), names, rows))

    def _show(self, cursor: int | None = None) -> None:
        title, note, rows = "Top features", *self._at_token
        found_by = f"no feature is active here: {self.lens.key_text('features.find')} finds them by words"
        self.list.empty = "no SAE is in use" if self.session.sae_in_use is None else found_by
        if (listing := self.listing) is not None:
            title, note = listing.title, listing.note
            rows = [(feature, 0.0) for feature in listing.features]
        self.title, self.note = title, note
        self.head.set_class(listing is None or not listing.contrast, "-closed")
        shown = [row for row in rows if not (self.hide_dense and row[0] in self.dense)]
        self._say_what_is_left_out(len(rows) - len(shown))
        self.list.show(shown, cursor)

    def _say_what_is_left_out(self, hidden: int) -> None:
        key, parts = self.lens.key_text, []
        if hidden:  # in the cells of the pane at 80 columns: what dense means is said by the key, and by ?
            shows = f": {key('features.dense')}" if self.marked else f" left out: {key('features.dense')} shows"
            parts.append(f"≋ {hidden} dense{shows}")
        if self.marked:
            parts.append(f"✓ {len(self.marked)} marked: {key('features.keep')} keeps a list")
        self.foot.content = Content.styled(" · ".join(parts), "$muted")
        self.foot.set_class(not parts, "-closed")

    def on_row_list_moved(self) -> None:
        """Another feature under the cursor; where a person moved it, that is the one to show."""
        if self.list.has_focus:
            self._gone_to = None
        self.post_message(self.Changed())

    # -- choosing, marking

    def _choose(self, pinned: int | None, gone_to: int | None) -> None:
        self.pinned, self._gone_to = pinned, gone_to
        self.list.refresh()
        self.post_message(self.Changed())

    def go(self, feature: int) -> None:
        """Choose a feature wherever it comes from; escape goes back to the one under the cursor."""
        self._choose(None, feature)

    def pin(self) -> None:
        """Keep the chosen feature while the cursor moves, or let it go."""
        if self.chosen is None:
            self.lens.say("Choose a feature first.")
            return
        self._choose(self.chosen if self.pinned is None else None, self._gone_to)

    def mark(self) -> None:
        """Mark the chosen feature, or take its mark away."""
        if self.chosen is None:
            self.lens.say("Choose a feature first.")
            return
        if self.chosen in self.marked:
            del self.marked[self.chosen]
        else:
            self.marked[self.chosen] = None
        self._show()

    def forget_marks(self) -> None:
        """The marked features are kept elsewhere now."""
        self.marked.clear()
        self._show()

    def toggle_dense(self) -> None:
        """Leave dense features out of the list, or show them."""
        self.hide_dense = not self.hide_dense
        if not self.dense:
            self.lens.say("No dense feature is known of this SAE: an index of it says which there are.")
        elif self.hide_dense:
            self.lens.say(f"Features active on more than {DENSE:.0%} of the index's tokens are left out.")
        else:
            self.lens.say(f"Dense features (≋, active on more than {DENSE:.0%} of the index's tokens) are shown.")
        self._show()

    def let_go(self) -> bool:
        """Close the field, or let go of what is listed, pinned or gone to; false if there was nothing."""
        if self.find.has_focus:
            self._close_find()
        elif self.listing is not None:
            self.listing = None
            self._show(0)
        elif self.pinned is not None or self._gone_to is not None:
            self._choose(None, None)
        else:
            return False
        return True

    def forget(self) -> None:
        """Another SAE: nothing is pinned, gone to or found any more."""
        self.pinned = self._gone_to = self.listing = None

    # -- finding

    def ask(self) -> None:
        """Have words typed, or a feature's number."""
        self.find.remove_class("-closed")
        self.find.value = ""
        focus_now(self.find)

    def _close_find(self) -> None:
        self.find.add_class("-closed")
        self.screen.set_focus(self.list)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the feature of that number, or look for features by those words."""
        lens, text = self.lens, event.value.strip()
        number, sae = text.lstrip("fF"), self.session.sae_in_use
        if sae is None:
            lens.say(missing(lens))
        elif not (number.isascii() and number.isdecimal()):
            if text:
                self._close_find()
                lens.submit(FindFeatures(sae.id, text), "find", self._take_found)
        elif len(number) > 9 or int(number) >= sae.width:
            lens.say(f"Type a number from 0 to {sae.width - 1}, or words.")
        else:
            self._close_find()
            self.go(int(number))

    def _take_found(self, event: Event) -> None:
        if not isinstance(event, FeaturesFound):
            return
        if event.found:
            words = fit(f"“{event.words}”", 22).rstrip()
            names = {item.feature: item.name for item in event.found}
            self.show_listing(Listing("Found", words, tuple(names), names))
            return
        without = "" if event.indexed else " There is no index of this SAE: only labels were searched."
        self.lens.say(f"No feature is labelled with “{fit(event.words, 40).rstrip()}” or promotes it.{without}")

    @property
    def features(self) -> tuple[int, ...]:
        """The features listed."""
        return tuple(feature for feature, _ in self.list.rows)
