"""Two panes of Features: a text as an SAE reads it, and the page of one feature; the list is in ``feature_list_pane``.

Each keeps what it shows and says in messages what another pane needs to know; the screen takes those across.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from textual.content import Content
from textual.geometry import Region
from textual.message import Message
from textual.timer import Timer

from lens_tui.records import FloatArray
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tasks.run_command import quoted
from lens_tui.tui.format import figure, fit
from lens_tui.tui.host import WAITING, LensHost
from lens_tui.tui.reading_text import READING, ReadingText, know_chat, next_active, shades, sources, strongest_token
from lens_tui.tui.widgets.feature_card import (
    SECTIONS,
    FeatureCard,
    near_row,
    page_lines,
    page_name,
    short_name,
    token_names,
)
from lens_tui.tui.widgets.frame import Pane, Scroll
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.tui.widgets.token_view import TokenView
from lens_tui.worker.events import (
    Encoded,
    Event,
    FeatureActivations,
    FeaturePage,
    JobDone,
    JobFailed,
    JobStarted,
    LabelSet,
    NeighboursRead,
    VectorMade,
)
from lens_tui.worker.jobs import Encode, ReadFeature, ReadNeighbours, SetLabel, VectorFromFeature

from .form import Field, FormScreen

REST = 0.08
"""Seconds the cursor rests on a feature before its page is read."""
PAGES_KEPT, NEAR_KEPT = 512, 128
LISTED = ("near", "together")
"""Sections of a page that are a list of features."""
MAX_LABEL = 2000
STOPPED = "stopped"

Row = tuple[int, float]


def missing(lens: LensHost) -> str:
    """What there is none of, and where to get it."""
    session, key = lens.store.session, lens.key_text
    if session.model is None:
        return lens.without_model()
    if session.sae_in_use is None and session.loading:
        return "The SAE is still loading."
    if session.sae_in_use is None and session.saes:
        return f"No SAE in use: {key('features.sae_up')} loads one that fits this model."
    if session.sae_in_use is None:
        return f"No SAE for this model: {key('app.load')} goes to Load, where one can be added."
    return f"No text: write a prompt on Generate ({key('app.generate')})."


class TextPane(Pane):
    """The text in use as tokens, shaded by one feature. ``encoded`` is what the SAE sees in it."""

    @dataclass
    class Read(Message):
        """The text was read with the SAE, or there is none to read any more."""

        encoded: Encoded | None

    def __init__(self) -> None:
        self.view = TokenView(empty="no text yet: write a prompt on Generate")
        super().__init__("Text", self.view, id="text-pane")
        self.encoded: Encoded | None = None
        self.values: FloatArray = np.zeros(0, np.float32)
        self.place = 0
        self._asked: tuple[str, ReadingText] | None = None

    @property
    def explains(self) -> tuple[str, ...]:
        """How much is active, how well the SAE fits, and the shade."""
        return ("l0", "fvu", "activation")

    @property
    def source(self) -> ReadingText:
        """The text in use."""
        every = sources(self.session)
        return every[min(self.place, len(every) - 1)]

    def go_to(self, place: int) -> None:
        """Take another text, by its place among all; says so where there is no other."""
        every = len(sources(self.session))
        if place % every == self.place:
            self.lens.say(f"There is no other text: {self.lens.key_text('app.run')} on Generate writes some.")
            return
        self.place = place % every
        self.view.cursor = None
        self.read()

    def read(self) -> None:
        """Have the text encoded, unless it already is."""
        chat = know_chat(self.lens)
        sae, source = self.session.sae_in_use, self.source
        if sae is None or source.blank:
            self._asked = None
            self.view.empty = READING if chat and sae is not None else missing(self.lens)
            self._show(None)
        elif self._asked != (sae.id, source):
            self._asked = (sae.id, source)
            coming = WAITING if self.lens.book.busy else READING
            self._mark(coming)
            self._say_instead(coming)
            self.lens.submit(Encode(sae.id, source.text, source.token_ids), "encode", self._take_encoded)

    def forget(self) -> None:
        """Have the text encoded once more by the next :meth:`read`, also by the same SAE."""
        self._asked = None

    def _say_instead(self, words: str) -> None:
        """What stands in place of the text while there is none."""
        self.view.empty = words
        if self.encoded is None:
            self.view.set_tokens([])
            self.post_message(self.Read(None))

    @property
    def awaited(self) -> str:
        """What stands in place of a text that was asked for and has not come; nothing where one is there or blank."""
        return "" if self.encoded is not None or self.view.empty not in (WAITING, READING, STOPPED) else self.view.empty

    def _mark(self, why: str) -> None:
        """Say that the text that shows is the one of before, and why it still is; or no more."""
        before = bool(why) and self.encoded is not None
        self.title = f"Text · as of before: {why}" if before else "Text"
        self.view.set_class(before, "-before")

    def _take_encoded(self, event: Event) -> bool:
        if isinstance(event, JobStarted):
            self._mark(READING)
            self._say_instead(READING)
        elif isinstance(event, JobDone) and (self.view.has_class("-before") or self.awaited):
            self._asked = None  # stopped: asked again on coming back
            self._mark(STOPPED)
            self._say_instead(STOPPED)
        elif isinstance(event, JobFailed):
            self._mark("it failed")
            self._say_instead("")
            if not self.screen.is_current:  # no dialogue over another: it is asked, and said, again on coming back
                self._asked = None
                return True
        elif isinstance(event, Encoded):
            self._show(event)
            token = strongest_token(event)
            if self.view.cursor is None and token is not None:
                self.view.move_to(token)
        return False

    def _show(self, encoded: Encoded | None) -> None:
        self.encoded = encoded
        self._mark("")
        self.view.set_tokens(encoded.tokens if encoded is not None else [])
        self.note = ""
        if encoded is not None:
            l0, fvu = figure(encoded.l0, 1), figure(encoded.fvu, 3)
            self.note = f"{many(len(encoded.tokens), 'token')} · L0 {l0} · FVU {fvu}"
        self.post_message(self.Read(encoded))

    def shade(self, values: FloatArray) -> None:
        """Shade the tokens by a feature's activations, one for each."""
        self.values = values
        self.view.set_levels(shades(values))

    def move_to_active(self, step: int) -> None:
        """Go to the next token on which the feature is active; ``step`` -1 goes to the one before."""
        token = next_active(self.values, self.view.cursor or 0, step) if len(self.values) else None
        if token is None:
            self.lens.say("The feature is active nowhere in this text.")
        elif token == self.view.cursor:
            self.lens.say("The feature is active on this token alone.")
        else:
            self.view.move_to(token)

    def copy_command(self) -> None:
        """Copy the command that shows the features of this text."""
        session = self.session
        if self.source.token_ids:
            self.lens.say("A command reads a prompt as it is, not a conversation or what an arm wrote.")
            return
        if session.sae_in_use is not None and session.model is not None:
            from lens_tui.tasks.made_with import model_source, sae_words

            options = ["--model", model_source(session.model), "--sae", sae_words(session.sae_in_use)]
            words = ["mlx-lens-tui", "features", *options, "--", self.source.text]
            self.lens.copy(" ".join(map(quoted, words)), "the command")
        else:
            self.lens.say(missing(self.lens))


class FeaturePane(Pane):
    """The page of one feature and the features like it; asked for after a rest, and kept.

    ``listed`` are the features elsewhere on the screen, which are named when there is nothing else to read.
    """

    @dataclass
    class ActivationsRead(Message):
        """A feature's activations on the tokens of the text that was read last."""

        feature: int
        values: FloatArray

    @dataclass
    class Wanted(Message):
        """The page of another feature is wanted."""

        feature: int

    class Named(Message):
        """More features have a name than before, or another one."""

    def __init__(self, listed: Callable[[], tuple[int, ...]]) -> None:
        self.card = FeatureCard(id="card")
        self.near: RowList[Row] = RowList(self._draw_near, id="near")
        self.near.add_class("-closed")
        self._scroll = Scroll(self.card, self.near, id="card-scroll")
        super().__init__("Feature", self._scroll, id="card-pane")
        self.feature: int | None = None
        self.pages: dict[tuple[str, int], FeaturePage] = {}
        self._like: dict[tuple[str, int], NeighboursRead] = {}
        self._listed = listed
        self._pinned = False
        self._here = (-1, 0.0)
        self._rest: Timer | None = None

    @property
    def explains(self) -> tuple[str, ...]:
        """The list that shows, where it has a measure, and what stands above it."""
        listed = (self.card.section,) if self.card.section in LISTED else ()
        return (*listed, "density", "activation", "histogram", "promoted", "detection")

    def _page(self, feature: int | None) -> FeaturePage | None:
        return self.pages.get((self.session.sae or "", -1 if feature is None else feature))

    def name_of(self, feature: int) -> Content:
        """What a feature is called, where its page was read: a label, or promoted tokens behind an arrow."""
        page = self._page(feature)
        return page_name(page) if page is not None else Content("")

    # -- the page

    def show(self, feature: int | None, *, pinned: bool = False) -> None:
        """Show a feature's page if it is known, and read it after a rest; ``None`` shows nothing."""
        if self._rest is not None:
            self._rest.stop()
        sae = self.session.sae_in_use
        self.feature, self._pinned = (feature if sae is not None else None), pinned
        if self.feature is None:
            self.card.page = None
            return
        page = self._page(feature)
        shown = self.card.page
        self.card.index_key = self.lens.key_text("features.work")
        if page is not None:
            self._show_page(page)
        elif shown is not None and shown.feature != feature:
            self.title = f"Feature {shown.feature} · {feature} is being read"
            self.card.add_class("-before")
        self._rest = self.set_timer(REST, self._ask)

    def read_again(self) -> None:
        """Forget what was read of features: an index came. The page that shows is read once more."""
        self.pages.clear()
        self._like.clear()
        if self.feature is not None:
            self.show(self.feature, pinned=self._pinned)

    def _ask(self) -> None:
        sae = self.session.sae_in_use
        if sae is not None and self.feature is not None:
            self.lens.submit(ReadFeature(sae.id, self.feature), "feature", self._take_feature)
            self._show_near(ask=True)

    def _take_feature(self, event: Event) -> None:
        match event:
            case FeatureActivations(_, _, feature, values):
                self.post_message(self.ActivationsRead(feature, values))
            case FeaturePage():
                self._keep(event)
                if event.feature == self.feature:
                    self._show_page(event)
            case JobDone(_, stopped) if not stopped:
                self._read_names()

    def _show_page(self, page: FeaturePage) -> None:
        before, self.card.page = self.card.page, page
        self.card.remove_class("-before")
        self._show_here()
        if before is None or (before.sae, before.feature) != (page.sae, page.feature):
            self._scroll.scroll_home(animate=False)  # what a feature is called stands at the top
        self.title = f"Feature {page.feature}"
        self.note = "◆ pinned" if self._pinned else ""
        self._show_near()

    def set_here(self, feature: int, largest: float) -> None:
        """A feature's largest activation in the text; the page of another one does not show it."""
        self._here = (feature, largest)
        self._show_here()

    def _show_here(self) -> None:
        page = self.card.page
        if page is not None and page.feature == self._here[0]:
            self.card.here = self._here[1]

    def _keep(self, page: FeaturePage) -> None:
        self.pages[page.sae, page.feature] = page
        while len(self.pages) > PAGES_KEPT:
            del self.pages[next(iter(self.pages))]
        self.near.refresh()
        self.post_message(self.Named())

    def _read_names(self) -> None:
        """One after the other, name the features of the lists that have no name yet."""
        sae = self.session.sae_in_use
        if sae is None or not self.screen.is_current or self.lens.book.in_slot("names") is not None:
            return
        listed = (*self._listed(), *self.near_features)
        nameless = next((feature for feature in listed if (sae.id, feature) not in self.pages), None)
        if nameless is not None:
            self.lens.submit(ReadFeature(sae.id, nameless), "names", self._take_name)

    def _take_name(self, event: Event) -> None:
        if isinstance(event, FeaturePage):
            self._keep(event)
        elif isinstance(event, JobDone) and not event.stopped:
            self._read_names()

    # -- the features like it

    @property
    def near_features(self) -> tuple[int, ...]:
        """The features listed as like the one that is shown."""
        return tuple(feature for feature, _ in self.near.rows)

    def turn(self, step: int) -> None:
        """The next list, or the one before: top examples, a sample, neighbours, co-active features."""
        if self.feature is None:
            self.lens.say("There is no feature's page here yet.")
            return
        names = list(SECTIONS)
        self.card.section = names[(names.index(self.card.section) + step) % len(names)]
        self._show_near(ask=True)
        self.call_after_refresh(self._section_in_sight)

    def _section_in_sight(self) -> None:
        row = self.card.section_row
        self._scroll.scroll_to_region(Region(0, row, 1, self._scroll.virtual_size.height - row), animate=False)

    def _show_near(self, *, ask: bool = False) -> None:
        """List the features like the chosen one, as far as they are known; ``ask`` for them if they are not."""
        sae, feature, section = self.session.sae_in_use, self.feature, self.card.section
        wanted = section in LISTED and sae is not None and feature is not None
        self.near.set_class(not wanted, "-closed")
        self._scroll.can_focus = not wanted  # the list moves the page
        if sae is None or feature is None or not wanted:
            self.near.show((), 0)
            return
        known = self._like.get((sae.id, feature))
        if known is None and ask:
            self.lens.submit(ReadNeighbours(sae.id, feature), "near", self._take_near)
        rows = None if known is None else known.near if section == "near" else known.together
        needs = f"{self.lens.key_text('features.work')} makes an index that knows." if known is not None else "…"
        self.near.empty = "None." if rows is not None else needs
        self.near.styles.height = max(1, len(rows or ()))
        self.near.show(rows or (), 0)
        self._read_names()

    def _take_near(self, event: Event) -> None:
        if isinstance(event, NeighboursRead):
            self._like[event.sae, event.feature] = event
            while len(self._like) > NEAR_KEPT:
                del self._like[next(iter(self._like))]
            if event.feature == self.feature:
                self._show_near()
        elif isinstance(event, JobDone) and not event.stopped:
            self._read_names()

    def _draw_near(self, row: Row, width: int) -> list[Content]:
        return [near_row(*row, self.name_of(row[0]), width)]

    def on_row_list_moved(self) -> None:
        """Keep the list's cursor in sight: what scrolls is the page around it."""
        if self.near.has_focus:
            place = self.near.virtual_region.y + self.near.cursor
            self._scroll.scroll_to_region(Region(0, place, 1, 1), animate=False)

    def on_row_list_chosen(self) -> None:
        """A click on the cursor's row of those like the one shown goes there."""
        self.go_near()

    def go_near(self) -> bool:
        """Go to the feature under the cursor of those like this one; false if there is none."""
        if self.near.row is None:
            return False
        self.post_message(self.Wanted(self.near.row[0]))
        return True

    # -- what can be done with it

    def send(self, feature: int | None) -> None:
        """Put a feature's direction on the bench, as a new arm.

        Its scale is twice the largest activation in this text, and at least the largest that is known.
        """
        lens = self.lens
        sae, here = self.session.sae_in_use, self._here[1] if self._here[0] == feature else 0.0
        if feature is None or sae is None:
            lens.say("Choose a feature first.")
            return

        def take(event: Event) -> None:
            if not isinstance(event, VectorMade):
                return
            page = self._page(feature)
            name = short_name(page) if page is not None else token_names(event.promoted)
            vector = replace(event.vector, name=fit(f"f{feature} {name}".strip(), 28).rstrip())
            if vector.max_activation is None and here > 0:
                vector = replace(vector, max_activation=here)
            scale = max(2 * here, event.vector.max_activation or 0.0) or None
            lens.put_on_bench(replace(event, vector=vector), f"f{feature}", scale=scale, scaled=True)

        lens.submit(VectorFromFeature(sae.id, feature), "send", take)

    def scale(self, feature: int | None, steps: int) -> None:
        """Scale of the bench's rows that are this feature's direction, by steps; says where there is none."""
        lens, sae = self.lens, self.session.sae_in_use
        of = {"sae": sae.id if sae is not None else "", "feature": feature}
        steers = self.session.steers
        mine = [row.moved(steps) for row in steers if of.items() <= row.vector.origin.facts.items()]
        if feature is None or not mine:
            lens.say(f"This feature is not on the bench: {lens.key_text('features.steer')} sends it there.")
            return
        lens.store.replace_steers(mine)
        scales = ", ".join(f"{row.scale:+g}" for row in mine)
        lens.say(f"f{feature} on the bench: {scales}.")

    def copy(self) -> None:
        """Copy the page as text."""
        page = self.card.page
        if page is not None:
            lines = page_lines(page, 72, self.card.here, "off")
            body = "\n".join(line.plain.rstrip() for line in lines)
            self.lens.copy(f"f{page.feature} of {page.sae}\n{body}", f"feature {page.feature}")
        else:
            self.lens.say("There is no page to copy: choose a feature first.")

    def label(self, feature: int | None) -> None:
        """Have a label of the person's own written for a feature."""
        lens = self.lens
        sae = self.session.sae_in_use
        if feature is None or sae is None:
            lens.say("Choose a feature first.")
            return
        page = self._page(feature)
        label = page.facts.label if page is not None else None
        mine = one_line(label.text, MAX_LABEL) if label is not None and label.is_mine else ""
        note = "Empty removes it; earlier labels stay in the history."

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                lens.submit(SetLabel(sae.id, feature, values["label"][:MAX_LABEL]), "label", self._take_label)

        fields = [Field("label", "label", mine, "what the feature stands for", between=" ")]
        self.app.push_screen(FormScreen(f"Your label of feature {feature}", fields, note), done)

    def _take_label(self, event: Event) -> None:
        if isinstance(event, LabelSet):
            self.pages.pop((event.sae, event.feature), None)
            self.lens.say(f"f{event.feature}: {event.label or 'no label of yours'}")
            self.post_message(self.Named())
            if event.feature == self.feature:
                self.show(event.feature, pinned=self._pinned)
