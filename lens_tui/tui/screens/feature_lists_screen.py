"""Contrast and lists on Features: what is asked, what is done with it, and the dialogue of the lists that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.wording import many
from lens_tui.tui.format import ago, fit
from lens_tui.tui.host import host
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.events import Contrasted, Event, FeaturesExported, JobFailed
from lens_tui.worker.jobs import ContrastTexts, ExportFeatures

from .feature_list_pane import Listing, ListPane
from .form import Dialog, Field, FormScreen, filled
from .steer_forms import BETWEEN, a_file, texts

if TYPE_CHECKING:
    from lens_tui.records.feature_lists import FeatureList

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

    what = f"{len(features)} marked" if pane.marked else f"the {len(features)} listed"
    fields = [Field("name", "name", listing.kept if listing is not None else "", "what they have in common", filled)]
    note = f"A list of {what} features of {sae.name}. One of the same name is replaced; u among the lists undoes it."
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
        facts = f"{len(row.features):>4} features · {when}"
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
