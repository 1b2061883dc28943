"""Lists on Features: the pane that has the features of a token, found by words, told apart by texts, or kept.

And what is asked for a contrast, what is done with it, and the dialogue of the lists that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.features import DENSE, ContrastedFeature
from lens_tui.records.wording import many
from lens_tui.tui.format import ago, fit
from lens_tui.tui.host import focus_now, host
from lens_tui.tui.lane_text import quoted
from lens_tui.tui.reading_text import features_at
from lens_tui.tui.widgets import lane
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.feature_card import CONTRAST_HEAD, FeatureMarks, contrast_row, feature_row, named_row
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.events import Contrasted, Encoded, Event, FeaturesExported, FeaturesFound, JobFailed
from lens_tui.worker.jobs import ContrastTexts, ExportFeatures, FindFeatures

from .feature_panes import Row, missing
from .form import Dialog, Field, FormScreen, filled
from .steer_forms import BETWEEN, a_file, texts

if TYPE_CHECKING:
    from lens_tui.records.feature_lists import FeatureList


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
        self._awaited = ""
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

    def show_token(self, encoded: Encoded | None, token: int | None, awaited: str = "") -> None:
        """List the features of a token, at once or when the listing is let go; ``awaited`` while its text is read."""
        self._at_token, self._awaited = ("", []), awaited
        self.dense = dict(encoded.dense) if encoded is not None else {}
        if encoded is not None and token is not None:
            words = fit(f"@ {token} {quoted(encoded.tokens[token])}", 22).rstrip()
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
        self.list.empty = "no SAE is in use" if self.session.sae_in_use is None else self._awaited or found_by
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


MEASURES = {"AUC": "auc", "difference of means": "difference"}
OVER = {"its largest activation": "max", "its mean activation": "mean"}
SIDES = {"stronger in A": False, "in A or in B": True}


def contrast_fields(typed: Mapping[str, str]) -> list[Field]:
    """The fields of a contrast, with what was typed before."""

    def file(text: str) -> str:
        return a_file(text) if text.strip() else ""

    fields = [
        Field("a", "texts A", hint="at least four, with | between; or a file below", between=BETWEEN),
        Field("path_a", "or file A", hint="a text on each line, or .jsonl", check=file),
        Field("b", "texts B", hint="at least four others", between=BETWEEN),
        Field("path_b", "or file B", check=file),
        Field("measure", "ordered by", options=tuple(MEASURES)),
        Field("over", "of a text", options=tuple(OVER)),
        Field("sides", "features", options=tuple(SIDES)),
    ]
    return [replace(item, value=typed.get(item.id, item.value)) for item in fields]


def contrast_job(sae: str, values: Mapping[str, str]) -> ContrastTexts:
    """The job that the fields mean."""
    return ContrastTexts(
        sae,
        texts(values["a"]),
        texts(values["b"]),
        values["path_a"].strip(),
        values["path_b"].strip(),
        MEASURES[values["measure"]],
        OVER[values["over"]],
        SIDES[values["sides"]],
    )


def ask_contrast(pane: ListPane, problem: str = "") -> None:
    """Ask for two sets of texts and list what tells them apart; what fails comes back with what was typed."""
    lens, sae = pane.lens, pane.session.sae_in_use
    if sae is None or pane.session.model is None:
        lens.say("A contrast needs a model and an SAE.")
        return

    def done(values: dict[str, str] | None) -> None:
        if values is None:
            return
        pane.contrast_typed = values

        def take(event: Event) -> bool:
            if isinstance(event, Contrasted):
                pane.show_contrast(event)
            elif isinstance(event, JobFailed):
                ask_contrast(pane, f"{event.message} {event.hint}".strip())
                return True
            return False

        lens.submit(contrast_job(sae.id, values), "contrast", take)

    note = "Features are chosen on one half of the texts and judged on the other: AUC, difference d, and p by chance."
    lens.push_screen(
        FormScreen("Features that tell texts apart", contrast_fields(pane.contrast_typed), note, problem), done
    )


# -- lists


def ask_name(pane: ListPane) -> None:
    """Keep the marked features, or where none is marked those listed, under a name."""
    lens, sae, listing = pane.lens, pane.session.sae_in_use, pane.listing
    features = tuple(pane.marked) or (listing.features if listing is not None else ())
    if sae is None or not features:
        lens.say(f"Mark the features first: {lens.key_text('features.mark')}.")
        return

    def done(values: dict[str, str] | None) -> None:
        if values is not None:
            _keep(pane, sae, values["name"], features)

    what = many(len(features), "marked feature") if pane.marked else f"the {many(len(features), 'listed feature')}"
    fields = [Field("name", "name", listing.kept if listing is not None else "", "what they have in common", filled)]
    note = f"A list of {what} of {sae.name}. One of the same name is replaced; u among the lists undoes it."
    lens.push_screen(FormScreen("Keep a list", fields, note), done)


def _keep(pane: ListPane, sae: SAEInfo, name: str, features: tuple[int, ...]) -> None:
    from lens_tui.records.feature_lists import FeatureLists
    from lens_tui.records.store import SHORT, Store

    try:
        with Store(patience=SHORT) as store:
            kept = FeatureLists(store).keep(sae.id, name, features)
    except LensError as error:
        pane.lens.show_error(error.message, error.hint)
        return
    pane.forget_marks()
    opens = pane.lens.key_text("features.lists")
    pane.lens.say(f"Kept {many(len(kept.features), 'feature')} as “{kept.name}”: {opens} opens it.")


def open_lists(pane: ListPane) -> None:
    """Show the lists of the SAE in use, and open the one that is chosen."""
    sae = pane.session.sae_in_use
    if sae is None:
        pane.lens.say("Lists are of an SAE, and none is in use.")
        return

    def done(chosen: FeatureList | None) -> None:
        if chosen is not None:
            pane.show_listing(Listing("List", chosen.name, chosen.features, kept=chosen.name))

    pane.lens.push_screen(FeatureListsScreen(sae), done)


class FeatureListsScreen(Dialog["FeatureList | None"]):
    """The lists of an SAE, newest first; dismisses with the one to open. What is deleted comes back with ``u``."""

    BINDINGS = [
        ("escape,q", "cancel", "back"),
        ("enter", "choose", "open"),
        ("d", "delete", "delete"),
        ("u", "undo", "undo"),
        ("e", "export", "export"),
    ]
    DEFAULT_CSS = "FeatureListsScreen RowList { height: auto; max-height: 16; }"

    def __init__(self, sae: SAEInfo) -> None:
        super().__init__()
        self._sae = sae
        self._gone: list[str] = []

    def compose(self) -> ComposeResult:
        """Title, lists, keys."""
        keys = [("⏎", " open   "), ("d", " delete   "), ("u", " undo   "), ("e", " export   "), ("esc", " back")]
        with Vertical(classes="dialog"):
            yield Static(Content(f"Lists of {self._sae.name}"), classes="dialog-title")
            key = host(self).key_text
            empty = f"none yet: {key('features.mark')} marks features, {key('features.keep')} keeps the marked ones"
            yield RowList["FeatureList"](self._draw, empty=empty)
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """Read them."""
        self.query_one(RowList).focus()
        self._do("all")

    def _do(self, act: str, *names: str) -> bool:
        """Do one thing with the lists on disk and show them again; says what failed."""
        from lens_tui.records.feature_lists import FeatureLists
        from lens_tui.records.store import SHORT, Store

        try:
            with Store(patience=SHORT) as store:
                lists = FeatureLists(store)
                getattr(lists, act)(self._sae.id, *names)
                rows = lists.all(self._sae.id)
        except LensError as error:
            self.notify(f"{error.message} {error.hint}".strip(), markup=False, timeout=8)
            return False
        shown = self.query_one(RowList)
        shown.styles.height = min(max(1, len(rows)), 16)
        shown.show(rows)
        return True

    def _draw(self, row: FeatureList, width: int) -> list[Content]:
        when = ago(datetime.fromisoformat(row.created).timestamp(), host(self).wall())
        some = " ".join(f"f{feature}" for feature in row.features[:6]) + (" …" if len(row.features) > 6 else "")
        count = len(row.features)
        facts = f"{many(count, 'feature', f'{count:>4}'):<13} · {when}"
        name = fit(row.name, max(12, min(28, width - len(facts) - 4)))
        return [Content.assemble((name, "bold"), f"  {facts}  ", (some, "$muted"))]

    @property
    def _row(self) -> FeatureList | None:
        return self.query_one(RowList).row

    def action_choose(self) -> None:
        """Open the list under the cursor."""
        if self._row is not None:
            self.dismiss(self._row)

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_choose()

    def action_delete(self) -> None:
        """Delete the list under the cursor."""
        row = self._row
        if row is not None and self._do("delete", row.name):
            self._gone.append(row.name)

    def action_undo(self) -> None:
        """Bring back what was deleted last here; else what was replaced under the name that the cursor is on."""
        if self._gone:
            self._do("restore", self._gone.pop())
        elif self._row is not None:
            self._do("restore", self._row.name)

    def action_export(self) -> None:
        """Ask for a file and write the list under the cursor to it."""
        row = self._row
        if row is None:
            return

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                job = ExportFeatures(row.sae, row.name, row.features, values["path"].strip())
                host(self).submit(job, "export", self._take)

        stem = "".join(letter if letter.isalnum() else "-" for letter in row.name).strip("-") or "features"
        fields = [Field("path", "file", str(Path.cwd() / f"{stem}.json"), ".json or .csv", filled)]
        self.app.push_screen(FormScreen(f"Export “{row.name}”", fields, "JSON, or CSV where it ends in .csv."), done)

    def _take(self, event: Event) -> None:
        if isinstance(event, FeaturesExported):
            host(self).say(f"Wrote {many(event.count, 'feature')} to {event.path}.")

    def action_cancel(self) -> None:
        """Open none."""
        self.dismiss(None)
