"""Features: a text as tokens, what an SAE sees in each, and the page of one feature."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content

from lens_tui.records import SAEInfo
from lens_tui.tui.bindings import bindings
from lens_tui.tui.feature_text import Source, features_at, sources, strongest_token
from lens_tui.tui.format import figure, fit
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.feature_card import FeatureCard, feature_row, short_name
from lens_tui.tui.widgets.frame import Hairline
from lens_tui.tui.widgets.lane import Line, quoted
from lens_tui.tui.widgets.pane import Pane
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.tui.widgets.token_view import TokenView
from lens_tui.worker.events import Encoded, Event
from lens_tui.worker.jobs import Encode

from .base import LensScreen
from .feature_actions import FeatureActions
from .feature_going import FeatureGoing
from .feature_near import FeatureNear
from .feature_reading import FeatureReading, Row
from .feature_words import FeatureWords, fit_words


class FeaturesScreen(FeatureWords, FeatureActions, FeatureGoing, FeatureNear, FeatureReading, LensScreen):
    """Text, the features of the token under the cursor, and the page of the chosen feature."""

    mode: ClassVar[str] = "features"
    CSS_PATH = "features.tcss"
    AUTO_FOCUS = ""
    BINDINGS = [
        *bindings("features"),
        *(item for item in bindings("move") if isinstance(item, Binding) and item.id in ("move.left", "move.right")),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.text = TokenView(empty="no text yet")
        self.list: RowList[Row] = RowList(self._draw_row, empty="no feature is active here", id="features")
        self.card = FeatureCard(id="card")
        self.find = Entry(placeholder="words, or a feature's number", id="find", classes="-closed", between=" ")
        self.encoded: Encoded | None = None
        self.pinned: int | None = None
        self.found: int | None = None
        self._asked: tuple[str, Source] | None = None
        self._place = 0

    def body(self) -> ComposeResult:
        """Which text and SAE; then text, list and page."""
        yield Line(id="which")
        yield Hairline()
        with Horizontal(id="panes"):
            yield Pane("Text", self.text, id="text-pane")
            yield Pane("Top features", self.find, self.list, id="list-pane")
            yield Pane("Feature", VerticalScroll(self.card, self.near, id="card-scroll"), id="card-pane")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)

    def focus_first(self) -> None:
        """Begin in the list: ``j k`` go through features, ``h l`` through tokens."""
        self.set_focus(self.list)

    def _tint_changed(self, tint: str) -> None:
        self.text.mode = tint  # type: ignore[assignment]
        self.card.mode = tint  # type: ignore[assignment]

    # -- which text, which SAE ---------------------------------------------------------------------------

    @property
    def sae(self) -> SAEInfo | None:
        """The SAE in use."""
        return next((sae for sae in self.session.saes if sae.id == self.session.sae), None)

    @property
    def source(self) -> Source:
        """The text in use."""
        every = sources(self.session)
        return every[min(self._place, len(every) - 1)]

    def session_changed(self, old: Session, new: Session) -> None:
        """Another SAE, prompt or run: read the text again, if the screen shows."""
        if old.sae != new.sae:
            self.pinned = self.found = self.results = None
        if old.fits != new.fits:
            self._say_which()
        if (old.sae, old.prompt, old.written, old.saes) != (new.sae, new.prompt, new.written, new.saes):
            self._place = min(self._place, len(sources(new)) - 1)
            if self.is_current:
                self.read()
            self._say_which()

    def on_screen_resume(self) -> None:
        """Read what changed while the screen was away."""
        self.read()
        self._say_which()

    def read(self) -> None:
        """Have the text encoded, unless it already is."""
        sae, source = self.sae, self.source
        if sae is None or source.blank:
            self._asked = None
            self._show_nothing()
            return
        if self._asked == (sae.id, source):
            return
        self._asked = (sae.id, source)
        self.lens.submit(Encode(sae.id, source.text, source.token_ids), "encode", self._take_encoded)

    def _take_encoded(self, event: Event) -> None:
        if isinstance(event, Encoded):
            self.encoded = event
            self.text.set_tokens(event.tokens)
            self._say_text()
            self.choose(self.chosen)
            token = strongest_token(event)
            if self.text.cursor is None and token is not None:
                self.text.move_to(token)
            else:
                self._show_token()

    def _show_nothing(self) -> None:
        self.encoded = None
        self.text.empty = self.missing()
        self.text.set_tokens([])
        self.list.show([])
        self.card.page = None
        self._say_text()

    def missing(self) -> str:
        """What there is none of, and where to get it."""
        key = self.lens.key_text
        if self.session.model is None:
            return f"No model: {key('app.load')} goes to Load."
        if self.sae is None and self.session.saes:
            return f"No SAE in use: {key('features.sae_up')} loads one that fits this model."
        if self.sae is None:
            return f"No SAE for this model: {key('app.load')} goes to Load, where one can be added."
        return f"No text: write a prompt on Generate ({key('app.generate')})."

    def _say_which(self) -> None:
        sae = self.sae
        parts: list[str | tuple[str, str]] = []
        for place, source in enumerate(sources(self.session)):
            here = place == self._place
            parts.append((f"▐{source.name}▌" if here else f" {source.name} ", "bold" if here else "$muted"))
        if sae is not None:
            facts = f"   SAE {sae.name} · {sae.site} {sae.layer} · {sae.width} features"
            parts.append((facts, "$muted"))
            parts += fit_words(self.session.fit(sae.id))
        if self._place:
            parts.append((" · read with steering off", "$muted"))
        self.query_one("#which", Line).content = Content.assemble(*parts)

    def _say_text(self) -> None:
        pane = self.query_one("#text-pane", Pane)
        encoded = self.encoded
        pane.note = ""
        if encoded is not None:
            l0, fvu = figure(encoded.l0, 1), figure(encoded.fvu, 3)
            pane.note = f"{len(encoded.tokens)} tokens · L0 {l0} · FVU {fvu}"

    # -- the token and the feature ---------------------------------------------------------------------

    @property
    def chosen(self) -> int | None:
        """The feature whose shade and page show: pinned, found by number, or under the list's cursor."""
        if self.pinned is not None:
            return self.pinned
        if self.found is not None:
            return self.found
        return self.list.row[0] if self.list.row is not None else None

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        """Another token: its features."""
        self._show_token()

    def _show_token(self) -> None:
        pane = self.query_one("#list-pane", Pane)
        if self.results is not None:
            return
        pane.title = "Top features"
        token = self.text.cursor
        if self.encoded is None or token is None:
            pane.note = ""
            self.list.show([])
            return
        pane.note = fit(f"@ {token} {quoted(self.encoded.tokens[token])}", 22).rstrip()
        self.list.show(features_at(self.encoded, token), 0)

    def on_row_list_moved(self, event: RowList.Moved) -> None:
        """Another feature under the list's cursor; or another row of those like the one shown."""
        if event.row_list is not self.list:
            self.follow_near()
            return
        if self.list.has_focus:
            self.found = None
        self.choose(self.chosen)

    def _draw_row(self, row: Row, width: int) -> list[Content]:
        feature, value = row
        page = self.pages.get((self.session.sae or "", feature))
        name = short_name(page) if page is not None else self.found_name(feature)
        strongest = self.list.rows[0][1] if self.list.rows else 0.0
        return [feature_row(feature, value, strongest, name, width, feature == self.pinned)]

    def _results_changed(self) -> None:
        """Show what was found instead of the token's features."""
        if self.results is not None:
            self.pinned = self.found = None
            pane = self.query_one("#list-pane", Pane)
            pane.title, pane.note = "Found", fit(f"“{self.results.words}”", 22).rstrip()
            self.list.show([(item.feature, 0.0) for item in self.results.found], 0)

    def _label_changed(self, feature: int) -> None:
        """Read the page anew."""
        self.list.refresh()
        if feature == self.chosen:
            self.choose(feature)

    # -- actions ---------------------------------------------------------------------------------------

    def action_cursor_left(self) -> None:
        """The token before."""
        self.text.action_cursor_left()

    def action_cursor_right(self) -> None:
        """The token after."""
        self.text.action_cursor_right()

    def action_source(self, step: int) -> None:
        """The text before or after."""
        self._place = (self._place + step) % len(sources(self.session))
        self.text.cursor = None
        self.read()
        self._say_which()

    def action_sae(self, step: int) -> None:
        """Load the SAE before or after."""
        saes = self.session.saes
        if not saes or (len(saes) == 1 and self.sae is not None):
            self.lens.say("There is no other SAE for this model.")
            return
        ids = [sae.id for sae in saes]
        place = ids.index(self.sae.id) + step if self.sae is not None else 0
        self.lens.opening.load_sae(saes[place % len(saes)].path)

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        """A click on the cursor's row of those like the one shown goes there."""
        if event.row_list is self.near and self.near.row is not None:
            self.go(self.near.row[0])

    def action_pin(self) -> None:
        """Keep the chosen feature while the cursor moves, or let it go; among those like it, go to the one there."""
        if self.near.has_focus and self.near.row is not None:
            self.go(self.near.row[0])
            return
        self.pinned = None if self.pinned is not None else self.chosen
        self.list.refresh()
        self.choose(self.chosen)

    def on_key(self, event: events.Key) -> None:
        """Escape closes the number, then lets a found or pinned feature go."""
        if event.key != "escape":
            return
        if self.find.has_focus:
            self.close_find()
        elif self.forget_results():
            self._show_token()
        elif self.pinned is not None or self.found is not None:
            self.pinned = self.found = None
            self.list.refresh()
            self.choose(self.chosen)
        else:
            return
        event.stop()
        event.prevent_default()
