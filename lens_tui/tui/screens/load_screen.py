"""The details pane of Load: a model's shape, its need of memory, how its loading goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from lens_tui.records import LensError
from lens_tui.records.wording import has_words, many
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import ago, bar, count, fit, fit_end, fit_left, size
from lens_tui.tui.host import BUSY, Activity, LensHost, focus_now
from lens_tui.tui.screens.form import Choice, ChoiceScreen
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.frame import Divider, LensScreen, Pane
from lens_tui.tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry


Part = str | tuple[str, str]
EMPTY = "There is no row here."


def details(app: LensHost, entry: ModelEntry, memory: MemoryEstimate, width: int, narrow: bool) -> Content:
    """Everything the pane says above the SAEs; ``narrow`` leaves out what a list of 80 columns has no rows for."""
    parts: list[Part] = [(entry.name, "bold"), "\n", (shape(entry), "$muted"), "\n"]
    if entry.problem:
        parts += ["\n", ("✗ ", "$error"), (entry.problem, "$error"), "\n"]
    if narrow:
        parts += [(memory_line(memory), "$muted"), "\n"]
    else:
        parts += ["\n", *memory_rows(memory, width), "\n"]
        if entry.path and entry.source != "demo":
            parts += [(fit_end(entry.path, width), "$muted"), "\n\n"]
    parts += _loading(app, entry, narrow)
    if app.store.session.work:
        parts += [("● ", "$accent"), (fit_end(app.store.session.work, width - 2), ""), "\n\n"]
    parts += [("SAEs and transcoders for this model", "$muted" if narrow else "bold $muted")]
    return Content.assemble(*parts)


def shape(entry: ModelEntry) -> str:
    """Architecture and sizes in one line, what is known of them."""
    facts = [entry.architecture]
    if entry.n_layers:
        facts.append(many(entry.n_layers, "layer"))
    if entry.d_model:
        facts.append(f"d_model {entry.d_model}")
    if entry.vocab_size:
        facts.append(f"vocab {count(entry.vocab_size)}".replace(" ", "\N{NO-BREAK SPACE}"))
    if entry.source == "hub":
        facts.append(f"{size(entry.partial)} of it are here" if entry.partial else "not downloaded yet")
    return " · ".join(fact for fact in facts if fact)


def memory_rows(memory: MemoryEstimate, width: int) -> list[Part]:
    """What a comparison of four arms needs, piece by piece, against what there is."""
    if not memory.weights:
        return [("Memory is known once it is downloaded.", "$muted"), "\n"]
    rows: list[Part] = [(f"Memory  of {size(memory.machine)}", "bold $muted"), "\n"]
    room = max(6, width - 8 - 10 - 8)
    so_far = 0
    for label, part in (
        ("weights", memory.weights),
        ("+ cache", memory.cache),
        ("+ reads", memory.capture + memory.logits),
    ):
        so_far += part
        share = so_far / memory.machine
        rows += [
            (fit(label, 8), "$muted"),
            (fit_left(size(part), 9) + " ", ""),
            (bar(share, room).ljust(room), "$muted"),
            (fit_left(f"{share:.0%}", 6), "$muted"),
            "\n",
        ]
    if memory.float32:
        rows += [("Weights in float32: faster on this CPU.", "$muted"), "\n"]
    if not memory.fits:
        rows += [("More than this machine has: it would be slow or fail.", "$warning"), "\n"]
    return rows


def memory_line(memory: MemoryEstimate) -> str:
    """The same in one line."""
    if not memory.weights:
        return "memory is known once it is downloaded"
    share = memory.total / memory.machine
    return f"needs {size(memory.total)} of {size(memory.machine)} ({share:.0%}) for four arms"


def _fit(app: LensHost) -> list[Part]:
    """What was measured of the SAE in use."""
    report = app.store.session.fit(app.store.session.sae)
    if report is None:
        return []
    mark: Part = ("✓ ", "$success") if report.fits else ("! ", "$warning")
    return [mark, (report.sentence, "$muted" if report.fits else "$warning"), "\n"]


def is_loaded(app: LensHost, entry: ModelEntry) -> bool:
    """Whether the row is that of the loaded model: a folder on the command line may be written in its own way."""
    model = app.store.session.model
    return model is not None and (model.name in (entry.name, entry.id) or model.path in (entry.path, entry.id))


def _loading(app: LensHost, entry: ModelEntry, narrow: bool) -> list[Part]:
    opening = app.opening
    if opening.model != entry.id and not is_loaded(app, entry):
        return _paused(app, entry)
    if opening.failure is not None:
        failure = opening.failure
        return [("✗ ", "$error"), (failure.message, "$error"), (f" {failure.hint}\n\n", "")]
    if not opening.going:
        keys = f"{app.key_text('app.generate')} Generate · {app.key_text('app.steer')} Steer"
        ready: list[Part] = [("✓ ", "$success"), "ready  ", (keys, "$muted"), "\n"]
        model = app.store.session.model
        if model is None:
            return _paused(app, entry)
        machine = app.catalog.memory(entry).machine
        held = f"{size(model.nbytes)} of {size(machine)} held ({model.nbytes / machine:.0%})"
        facts = [*([f"Weights: {model.weights}"] if model.weights else []), held]
        ready += [((" · " if narrow else "\n").join(facts), "$muted"), "\n", *_fit(app)]
        return ready if narrow else [*ready, "\n"]
    parts: list[Part] = []
    for stage in opening.stages:
        current = stage == app.activity.stage and app.activity.state == BUSY
        parts += [("● " if current else "✓ ", "$accent"), (stage + "  ", "" if current else "$muted")]
    if app.activity.stage == "download" and app.activity.state == BUSY:
        stop = app.key_text("app.stop")
        parts += ["\n", (app.activity.facts(), "$muted"), "\n", (f"{stop} stops it; what came is kept.", "$muted")]
    return [*parts, "\n\n"] if parts else []


def _paused(app: LensHost, entry: ModelEntry) -> list[Part]:
    """What to do about a download that broke off."""
    if not entry.partial:
        return []
    key = app.key_text("load.open")
    return [("◐ ", "$warning"), f"paused: {key} goes on where it broke off", "\n\n"]


ORDERS: dict[str, Callable[[ModelEntry], object]] = {
    "recent": lambda entry: (entry.source != "demo", -entry.used, entry.name),
    "name": lambda entry: entry.name.lower(),
    "size": lambda entry: entry.nbytes,
}


def fit_glyph(memory: MemoryEstimate) -> str:
    """How well a model fits in memory, in three cells: full is roomy, ``░░░`` is more than there is."""
    if not memory.weights or not memory.machine:
        return "   "
    share = memory.total / memory.machine
    return "███" if share <= 0.6 else "██░" if share <= 0.85 else "█░░" if share <= 1 else "░░░"


def matching(entries: Sequence[ModelEntry], words: str, order: str) -> list[ModelEntry]:
    """The entries that hold every word of the filter, in the order asked for."""
    found = [entry for entry in entries if has_words(f"{entry.name} {entry.architecture} {entry.quantization}", words)]
    return sorted(found, key=ORDERS[order])  # type: ignore[arg-type]


def _question(row: ModelEntry | SAEEntry) -> Screen[str | None]:
    """Whether to take it off this disk, or a folder off the list."""
    amount = getattr(row, "partial", 0) or row.nbytes
    if row.source == "folder":
        choice = Choice("remove", "take it off the list", "its files stay")
    else:
        choice = Choice("remove", "remove it", f"frees {size(amount)}; it can be fetched again")
    return ChoiceScreen(f"Remove {fit_end(row.name, min(50, len(row.name)))}?", (Choice("keep", "keep it"), choice))


class LoadScreen(LensScreen):
    """Choose a model, see what it needs, load it; then an SAE beside it."""

    mode: ClassVar[str] = "load"
    CSS_PATH = "load_screen.tcss"
    BINDINGS = bindings("load")

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[ModelEntry] = []
        self._saes: dict[str, Sequence[SAEEntry]] = {}
        self._order = "recent"
        self._typing = ""
        self._words = ""
        self._sought = ""

    def body(self) -> ComposeResult:
        """The list on the left, what is under the cursor on the right."""
        yield Pane(
            "Models",
            Static("", id="columns"),
            RowList(self._draw, empty="Looking for models …", id="list"),
            Entry(id="entry"),
            id="models",
        )
        yield Divider(id="rule")
        yield Pane(
            "Details",
            Static("", id="facts"),
            RowList(self._draw_sae, id="saes"),
            id="details",
        )

    def on_mount(self) -> None:
        """Look for models without holding up the screen."""
        super().on_mount()
        self.watch(self.app, "activity", self._work_went_on, init=False)
        self.lens.after_first_frame(self._look)  # it imports the hub library, which takes a while

    # ---- the lists

    @property
    def _list(self) -> RowList[ModelEntry]:
        return self.query_one("#list", RowList)

    def _work_went_on(self, old: Activity, new: Activity) -> None:
        if old.stage == "download" and (new.state, new.stage) != (BUSY, "download"):
            self._look()  # what came is in the cache now, whole or not
            self._saes.clear()
        self._show_details()

    def action_rescan(self) -> None:
        """Look for models and SAEs again, and say so."""
        self.query_one("#models", Pane).note = "looking …"
        self._saes.clear()
        self._look(say=True)

    @work(thread=True, exit_on_error=False, group="catalog", exclusive=True)
    def _look(self, say: bool = False) -> None:
        try:
            entries = list(self.lens.catalog.models())
        except LensError as error:
            self.app.call_from_thread(self.lens.show_error, error.message, error.hint)
        else:
            self.app.call_from_thread(self._found, entries, say)

    def _is_loaded(self, entry: ModelEntry) -> bool:
        return is_loaded(self.lens, entry)

    def _seek_loaded(self) -> None:
        """Have a row for the loaded model: one that came by the command line need not be on any list."""
        model = self.session.model
        if model is not None and model.path != self._sought and not any(map(self._is_loaded, self._entries)):
            self._sought = model.path
            self._check_loaded(model.path)

    @work(thread=True, exit_on_error=False, group="loaded")
    def _check_loaded(self, path: str) -> None:
        with suppress(LensError):  # what was loaded may be gone from the disk by now
            self.app.call_from_thread(self._show_loaded, self.lens.catalog.check(path))

    def _show_loaded(self, entry: ModelEntry) -> None:
        if self._is_loaded(entry):
            self._entries.append(entry)
            self._refill(entry.id)

    def _found(self, entries: list[ModelEntry], say: bool) -> None:
        added = [entry for entry in self._entries if entry.source == "hub" and not entry.partial]
        known = {entry.id for entry in entries}
        before = {entry.id for entry in self._entries}
        self._entries = [*entries, *(entry for entry in added if entry.id not in known)]
        self._refill()
        self._sought = ""
        self._seek_loaded()
        if say:
            new = len(known - before)
            self.lens.say(f"Looked again: {many(len(entries), 'model')}, {new or 'none'} of them new.")

    def _refill(self, select: str | None = None) -> None:
        rows = matching(self._entries, self._words, self._order)
        names = [entry.id for entry in rows]
        current = select or (self._list.row.id if self._list.row else "")
        adds = f"{self.lens.key_text('load.add')} adds a folder or a hub id."
        self._list.empty = f"Nothing matches: {adds}" if self._entries else f"No models yet: {adds}"
        self._list.show(rows, names.index(current) if current in names else 0)
        pane = self.query_one("#models", Pane)
        pane.note = f"{len(rows)} of {len(self._entries)} · {self._order}" if self._words else f"by {self._order}"

    def _columns(self, width: int) -> tuple[int, bool]:
        """The width of the name column, and whether there is room for when it was used."""
        used = width >= 66
        return max(10, width - (10 + 10 + 5 + (14 if used else 0))), used

    def on_resize(self) -> None:
        """The headings follow the columns, and the details the room there is."""
        self.call_after_refresh(self._show_columns)
        self.call_after_refresh(self._show_details)

    def _show_columns(self) -> None:
        name, used = self._columns(self._list.scrollable_content_region.width - 2)
        text = fit("NAME", name) + fit("QUANT", 10) + fit_left("SIZE", 10) + "  FIT" + ("  USED" if used else "")
        self.query_one("#columns", Static).update(Content(text))

    def _draw(self, entry: ModelEntry, width: int) -> list[Content]:
        name_width, used = self._columns(width)
        loaded = self._is_loaded(entry)
        quantization = entry.quantization.partition(",")[0] or ("" if not entry.nbytes else "none")
        when = "bundled" if entry.source == "demo" else ago(entry.used, self.lens.wall()) if entry.used else "—"
        when = ("paused" if entry.partial else "on the hub") if entry.source == "hub" else when
        style = "$muted" if entry.problem else ""
        return [
            Content.assemble(
                ("● " if loaded else "", style),
                (fit_end(entry.name, name_width - 1 - (2 if loaded else 0)) + " ", style),
                (fit(quantization, 10), "$muted"),
                (fit_left(size(entry.nbytes or entry.partial) if entry.nbytes or entry.partial else "—", 10), ""),
                "  ",
                (fit_glyph(self.lens.catalog.memory(entry)), "$muted"),
                (fit("  " + when, 14) if used else "", "$muted"),
            )
        ]

    def _draw_sae(self, sae: SAEEntry, width: int) -> list[Content]:
        loaded = any(sae.path in (one.path, one.id) and one.id == self.session.sae for one in self.session.saes)
        mark = "● " if loaded else "  "
        where = "⇣ hub" if sae.source == "hub" else size(sae.nbytes)
        name = fit_end(sae.name, width - 3 - len(where)) + " "
        return [Content.assemble((mark, "$accent"), (name, ""), (where, "$muted"))]

    # ---- what is under the cursor

    def on_row_list_moved(self, event: RowList.Moved) -> None:
        """Show what the cursor is on."""
        if event.row_list.id == "list":
            self._show_details()
            entry = self._list.row
            if entry is not None and entry.id not in self._saes:
                self._look_for_saes(entry.id)

    @work(thread=True, exit_on_error=False, group="saes")
    def _look_for_saes(self, model: str) -> None:
        found = list(self.lens.catalog.saes(model))
        self.app.call_from_thread(self._found_saes, model, found)

    def _found_saes(self, model: str, found: list[SAEEntry]) -> None:
        self._saes[model] = found
        self._show_details()

    def session_changed(self, old: Session, new: Session) -> None:
        """A model or SAE came or went."""
        if old.work_done != new.work_done:
            self._saes.clear()
            if self._list.row is not None:
                self._look_for_saes(self._list.row.id)
        if old.work != new.work:
            self._show_details()
        if (old.model, old.saes, old.sae, old.fits) != (new.model, new.saes, new.sae, new.fits):
            self._list.refresh()
            self._show_details()
        if old.model != new.model and self._entries:
            self._seek_loaded()

    def _show_details(self) -> None:
        entry = self._list.row
        saes = self.query_one("#saes", RowList)
        width = max(20, self.query_one("#facts").size.width or 44)
        if entry is None:
            self.query_one("#facts", Static).update(Content(""))
            saes.show(())
            return
        narrow = self.has_class("-narrow")
        facts = details(self.lens, entry, self.lens.catalog.memory(entry), width, narrow)
        self.query_one("#facts", Static).update(facts)
        found = self._saes.get(entry.id)
        none = f"No SAE found for this model: {self.lens.key_text('load.work')} trains one."
        saes.empty = "…" if found is None else none
        saes.show(found or ())

    # ---- actions

    def action_open(self) -> None:
        """Load the model, or the SAE, under the cursor."""
        saes = self.query_one("#saes", RowList)
        if self.focused is saes:
            if saes.row is not None:
                self._open_sae(saes.row)
                return
        elif self._list.row is not None:
            self._open_model(self._list.row)
            return
        self.lens.say(EMPTY)

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor loads it."""
        self.action_open()

    def _open_model(self, entry: ModelEntry) -> None:
        if entry.problem:
            self.lens.show_error(f"{entry.name} cannot be loaded.", entry.problem)
        else:
            self.lens.opening.load(entry.id)

    def _open_sae(self, sae: SAEEntry) -> None:
        if self.session.model is None:
            self.lens.say("Load the model first: an SAE is read beside it.")
        else:
            self.lens.opening.load_sae(sae.path)

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Each model can be loaded, and each SAE of the one under the cursor."""
        for entry in self._entries:
            yield f"Load the model {entry.name}", partial(self._open_model, entry)
        for sae in self.query_one("#saes", RowList).rows:
            yield f"Load the SAE {sae.name}", partial(self._open_sae, sae)

    def action_sort(self) -> None:
        """The next order: recent, name, size."""
        orders = list(ORDERS)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        self._refill()

    def action_work(self) -> None:
        """Index a text, train, or go on with either."""
        from .work_forms import ask_work

        ask_work(self.lens)

    def action_unload(self) -> None:
        """Free the loaded model."""
        if self.session.model is not None:
            self.lens.opening.unload()
        else:
            self.lens.say("No model is loaded.")

    def _pointed(self) -> ModelEntry | SAEEntry | None:
        """What the cursor of the list in use is on."""
        saes = self.query_one("#saes", RowList)
        return saes.row if self.focused is saes else self._list.row

    def action_copy(self) -> None:
        """Copy the path of the row: of what is at the hub, its id there."""
        row = self._pointed()
        if row is not None:
            self.lens.copy(row.path or getattr(row, "id", ""), "the path")
        else:
            self.lens.say(EMPTY)

    def action_remove(self) -> None:
        """Ask whether to take the row off this disk."""
        row = self._pointed()
        if row is None:
            self.lens.say(EMPTY)
        elif self._in_use(row):
            self.lens.say(f"{row.name} is loaded: {self.lens.key_text('load.unload')} frees it first.")
        elif row.source == "hub" and not getattr(row, "partial", 0):
            self._entries = [entry for entry in self._entries if entry is not row]
            self._refill()
            self.lens.say(f"Nothing of {row.name} is on this disk.")
        elif row.source in ("demo", "own"):
            kept = "is part of the app" if row.source == "demo" else f"was trained here; its files are in {row.path}"
            self.lens.say(f"{row.name} {kept}.")
        else:

            def answered(answer: str | None) -> None:
                if answer == "remove":
                    self._remove(row)

            self.app.push_screen(_question(row), answered)

    def _in_use(self, row: ModelEntry | SAEEntry) -> bool:
        if row.path and any(row.path == sae.path for sae in self.session.saes):
            return True
        model = self.session.model
        named = getattr(row, "id", None)
        loading = self.lens.opening.going and self.lens.opening.model == named
        return named is not None and (loading or (model is not None and named in (model.name, model.path)))

    @work(thread=True, exit_on_error=False, group="remove")
    def _remove(self, row: ModelEntry | SAEEntry) -> None:
        try:
            freed = self.lens.catalog.remove(row)
        except LensError as error:
            self.app.call_from_thread(self.lens.show_error, error.message, error.hint)
            return
        self._saes.clear()
        said = f"{size(freed)} are free." if freed else "Its files stay."
        self.app.call_from_thread(self.lens.say, f"Removed {row.name}. {said}")
        self.app.call_from_thread(self._look)

    def action_filter(self) -> None:
        """Type a filter."""
        self._ask("filter", self._words, "part of a name, architecture or quantisation")

    def action_match(self, step: int) -> None:
        """The next of what the filter found, or the one before, going round."""
        if not self._words:
            self.lens.say(f"There is no filter: {self.lens.key_text('load.filter')} types one.")
        else:
            self._list.focus()
            self._list.go_round(step)

    def action_add(self) -> None:
        """Type a folder or a hub id."""
        self._ask("add", "", "a folder, or a Hugging Face id such as mlx-community/gemma-3-1b-it-4bit")

    def _ask(self, what: str, value: str, hint: str) -> None:
        self._typing = what
        entry = self.query_one("#entry", Input)
        entry.placeholder, entry.value = hint, value
        entry.add_class("-open")
        focus_now(entry)

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter works while it is typed."""
        if self._typing == "filter":
            self._words = event.value
            self._refill()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter, or load what was typed."""
        event.stop()
        what, text = self._typing, event.value.strip()
        self._close_entry()
        if what == "add" and text:
            self._check(text)

    @work(thread=True, exit_on_error=False, group="check", exclusive=True)
    def _check(self, typed: str) -> None:
        try:
            entry = self.lens.catalog.check(typed)
        except LensError as error:
            self.app.call_from_thread(self.lens.show_error, error.message, error.hint)
        else:
            self.app.call_from_thread(self._add, entry)

    def _add(self, entry: ModelEntry) -> None:
        if entry.id not in {known.id for known in self._entries}:
            self._entries.append(entry)
        self._words = ""
        self._refill(select=entry.id)
        self._open_model(entry)

    def _close_entry(self) -> None:
        self._typing = ""
        self.query_one("#entry", Input).remove_class("-open")
        self._list.focus()

    def leave_text(self) -> None:
        """Escape in the entry closes it; a filter is cleared."""
        if self._typing == "filter":
            self._words = ""
            self._refill()
        self._close_entry()
