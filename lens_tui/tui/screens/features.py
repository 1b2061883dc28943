"""Features: a text as tokens, what an SAE sees in each, and the page of one feature."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input

from lens_tui.records import FloatArray, SAEInfo
from lens_tui.tui.feature_text import (
    Source,
    features_at,
    next_active,
    rough_activations,
    shades,
    sources,
    strongest_token,
)
from lens_tui.tui.format import figure, fit
from lens_tui.tui.keys.bindings import bindings
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.feature_card import FeatureCard, feature_row, short_name
from lens_tui.tui.widgets.frame import Hairline
from lens_tui.tui.widgets.lane import Line, quoted
from lens_tui.tui.widgets.pane import Pane
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.tui.widgets.token_view import TokenView
from lens_tui.worker.events import (
    Encoded,
    Event,
    FeatureActivations,
    FeaturePage,
    JobDone,
)
from lens_tui.worker.jobs import Encode, ReadFeature

from .base import LensScreen
from .feature_actions import FeatureActions
from .feature_words import FeatureWords, fit_words

REST = 0.08
"""Seconds the cursor rests on a feature before its page is read."""
PAGES_KEPT = 512

Row = tuple[int, float]


class FeaturesScreen(FeatureWords, FeatureActions, LensScreen):
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
        self.find = Input(placeholder="words, or a feature's number", id="find", classes="-closed")
        self.encoded: Encoded | None = None
        self.pinned: int | None = None
        self.found: int | None = None
        self.values: FloatArray = np.zeros(0, np.float32)
        self.pages: dict[tuple[str, int], FeaturePage] = {}
        self._asked: tuple[str, Source] | None = None
        self._place = 0
        self._rest: Timer | None = None

    def body(self) -> ComposeResult:
        """Which text and SAE; then text, list and page."""
        yield Line(id="which")
        yield Hairline()
        with Horizontal(id="panes"):
            yield Pane("Text", self.text, id="text-pane")
            yield Pane("Top features", self.find, self.list, id="list-pane")
            yield Pane("Feature", VerticalScroll(self.card, id="card-scroll"), id="card-pane")

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
            self._choose(self.chosen)
            token = strongest_token(event)
            if self.text.cursor is None and token is not None:
                self.text.move_to(token)
            else:
                self._show_token()

    def _show_nothing(self) -> None:
        self.encoded = None
        self.text.empty = self._missing()
        self.text.set_tokens([])
        self.list.show([])
        self.card.page = None
        self._say_text()

    def _missing(self) -> str:
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
        """Another feature: shade at once by what is known, read the rest after a rest."""
        if self.list.has_focus:
            self.found = None
        self._choose(self.chosen)

    def _choose(self, feature: int | None) -> None:
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

    def _take_feature(self, event: Event) -> None:
        match event:
            case FeatureActivations(_, _, feature, values) if feature == self.chosen:
                self._shade(values)
            case FeaturePage():
                self._keep(event)
                if event.feature == self.chosen:
                    self._show_page(event)
            case JobDone(_, stopped) if not stopped:
                self._read_names()

    def _shade(self, values: FloatArray) -> None:
        self.values = values
        self.text.set_levels(shades(values))
        self.card.here = float(values.max(initial=0.0))

    def _show_page(self, page: FeaturePage) -> None:
        self.card.page = page
        pane = self.query_one("#card-pane", Pane)
        pane.title = f"Feature {page.feature}"
        pane.note = "◆ pinned" if page.feature == self.pinned else ""

    def _keep(self, page: FeaturePage) -> None:
        self.pages[page.sae, page.feature] = page
        while len(self.pages) > PAGES_KEPT:
            del self.pages[next(iter(self.pages))]
        self.list.refresh()

    def _read_names(self) -> None:
        """One after the other, name the features of the list that have no name yet."""
        if self.sae is None or not self.is_current or self.lens.book.in_slot("names") is not None:
            return
        sae = self.sae.id
        nameless = next((feature for feature, _ in self.list.rows if (sae, feature) not in self.pages), None)
        if nameless is not None:
            self.lens.submit(ReadFeature(sae, nameless), "names", self._take_name)

    def _take_name(self, event: Event) -> None:
        if isinstance(event, FeaturePage):
            self._keep(event)
        elif isinstance(event, JobDone) and not event.stopped:
            self._read_names()

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
            self._choose(feature)

    # -- actions ---------------------------------------------------------------------------------------

    def action_cursor_left(self) -> None:
        """The token before."""
        self.text.action_cursor_left()

    def action_cursor_right(self) -> None:
        """The token after."""
        self.text.action_cursor_right()

    def action_active(self, step: int) -> None:
        """The next token on which the chosen feature is active."""
        token = next_active(self.values, self.text.cursor or 0, step) if len(self.values) else None
        if token is None:
            self.lens.say("The feature is active nowhere in this text.")
        else:
            self.text.move_to(token)

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

    def action_pin(self) -> None:
        """Keep the chosen feature while the cursor moves, or let it go."""
        self.pinned = None if self.pinned is not None else self.chosen
        self.list.refresh()
        self._choose(self.chosen)

    def action_find(self) -> None:
        """Type words, or a feature's number."""
        self.find.remove_class("-closed")
        self.find.value = ""
        self.find.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the feature of that number, or look for features by those words."""
        text = event.value.strip()
        number = text.lstrip("fF")
        sae = self.sae
        if sae is None:
            self.lens.say(self._missing())
            return
        if not number.isdecimal():
            if text:
                self._close_find()
                self.find_words(text)
            return
        text = number
        if int(text) >= sae.width:
            self.lens.say(f"Type a number from 0 to {sae.width - 1}, or words.")
            return
        self.pinned, self.found = None, int(text)
        self._close_find()
        self._choose(self.found)

    def _close_find(self) -> None:
        self.find.add_class("-closed")
        self.set_focus(self.list)

    def on_key(self, event: events.Key) -> None:
        """Escape closes the number, then lets a found or pinned feature go."""
        if event.key != "escape":
            return
        if self.find.has_focus:
            self._close_find()
        elif self.forget_results():
            self._show_token()
        elif self.pinned is not None or self.found is not None:
            self.pinned = self.found = None
            self.list.refresh()
            self._choose(self.chosen)
        else:
            return
        event.stop()
        event.prevent_default()
