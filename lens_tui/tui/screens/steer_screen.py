"""The vector bench: rows that act, the direction of the one under the cursor, its dose-response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from textual import events, work
from textual.app import ComposeResult, RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget
from textual.widgets import Input

from lens_tui import demo
from lens_tui.records import LensError, SAEInfo, SteeringVector
from lens_tui.records.interventions import BenchRow, mode_of, modes_of, next_positions
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import save_vectors
from lens_tui.records.wording import many
from lens_tui.tui.bench_text import too_strong
from lens_tui.tui.bindings import bindings
from lens_tui.tui.chat_text import roles_of
from lens_tui.tui.host import focus_now
from lens_tui.tui.session import MAX_ARMS, Session
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.frame import Divider, LensScreen, Pane, Scroll
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.events import Event, JobFailed, LayersRanked, ProbesTrained, VectorMade
from lens_tui.worker.jobs import Job, VectorFromFile, VectorGiven

from . import steer_forms as forms
from .direction_text import bench_row, direction
from .dose_pane import DosePane
from .form import Choice, ChoiceScreen, Field, FormScreen
from .monitors import ask_gate
from .probe_forms import ask_layer, probe_file_form, probe_form
from .steer_forms import LayersScreen, VectorFileScreen

SLOT = "vector"
Again = Callable[[str], None]
"""Asks again with what was typed; given what was wrong with it."""


class DirectionFacts(Widget):
    """The direction under the cursor, laid out in the width there is."""

    DEFAULT_CSS = "DirectionFacts { height: auto; }"

    def __init__(self) -> None:
        super().__init__()
        self._row: BenchRow | None = None
        self._saes: tuple[SAEInfo, ...] = ()

    def show(self, row: BenchRow | None, saes: tuple[SAEInfo, ...]) -> None:
        """The direction of this row; without one, nothing."""
        self._row, self._saes = row, saes
        self.refresh(layout=True)

    def _laid_out(self, width: int) -> Content:
        if self._row is None:
            return Content("")
        return direction(self._row, width, self.screen.has_class("-narrow"), self._saes)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as it takes in this width."""
        return self._laid_out(width).get_height(self.styles.get_rules(), width) if width else 0

    def render(self) -> RenderResult:
        """The direction in the width there is."""
        return self._laid_out(self.size.width)


class SteerScreen(LensScreen):
    """The rows of the bench on the left, the direction under the cursor on the right, its dose-response below."""

    mode: ClassVar[str] = "steer"
    CSS_PATH = "steer_screen.tcss"
    BINDINGS = bindings("steer")

    def __init__(self) -> None:
        super().__init__()
        self.dose = DosePane()
        self._words = self._shown = ""

    def body(self) -> ComposeResult:
        """Bench, dose and direction."""
        with Vertical(id="left"):
            rows = RowList[BenchRow](bench_row, row_height=2, id="rows")
            yield Pane("Vectors", rows, Entry(placeholder="a part of a row's name", id="find"), id="bench")
            yield Divider(id="dose-rule")
            yield self.dose
        yield Divider(id="rule")
        with Pane("Direction", id="direction"), Scroll():
            yield DirectionFacts()

    @property
    def _rows(self) -> RowList[BenchRow]:
        return self.query_one("#rows", RowList)

    @property
    def _row(self) -> BenchRow | None:
        return self._rows.row

    # ---- showing

    def on_mount(self) -> None:
        """Say what to do while there is nothing."""
        super().on_mount()
        self._rows.empty = self._nothing()

    def _nothing(self) -> str:
        key = self.lens.key_text
        if self.session.model is None:
            return (
                self.lens.no_model()
                if self.lens.opening.going
                else f"Load a model first: {key('app.load')} goes there."
            )
        adds = f"No vectors yet. {key('steer.add')} adds one"
        finds = f"; {key('app.features')} finds a feature to steer with" if self.session.saes else ""
        return f"{adds}{finds}."

    def session_changed(self, old: Session, new: Session) -> None:
        """Rows came, went or changed."""
        rows = self._rows
        rows.empty = self._nothing()
        if old.steers != new.steers or old.model != new.model:
            added = [row.id for row in new.steers if row.id not in {known.id for known in old.steers}]
            cursor = len(new.steers) - 1 if added else None
            if self.lens.opening.arming or not old.steers:
                cursor = 0 if self.lens.opening.arming else self.lens.store.newest
            rows.show(new.steers, cursor)
            arms = len(new.arms()) - 1
            note = f"{many(arms, 'arm')} against the baseline" if arms else "baseline only"
            self.query_one("#bench", Pane).note = note if new.steers else ""
            self._show_direction()
        if old.model != new.model:
            self.dose.forget()
        if (old.steers, old.prompt, old.model) != (new.steers, new.prompt, new.model):
            self.dose.show(self._row)

    def on_row_list_moved(self) -> None:
        """Show the direction under the cursor, and its dose."""
        self._show_direction()
        self.dose.show(self._row)

    def on_resize(self) -> None:
        """The columns follow the width; rows have space between them where there is room."""
        self._rows.row_height = 3 if self.app.size.height >= 30 else 2
        self.call_after_refresh(lambda: self.dose.show(self._row))

    def on_key(self, event: events.Key) -> None:
        """Escape leaves the dose; where it has the screen to itself, that closes it."""
        if event.key == "escape" and self.dose.open and self.dose.chart.has_focus and self.maximized is None:
            event.stop()
            event.prevent_default()
            if self.query_one("#bench").display:
                self.focus_first()
            else:
                self.dose.close()

    def on_dose_pane_turned(self) -> None:
        """Make room for the dose, or give it back to the bench."""
        self.set_class(self.dose.open, "-dose")
        if self.dose.open:
            self.dose.enter()
        else:
            self.focus_first()

    def _show_direction(self) -> None:
        self.query_one(DirectionFacts).show(self._row, self.session.saes)
        if self._row is None or self._row.id != self._shown:
            self._shown = self._row.id if self._row is not None else ""
            self.query_one("#direction Scroll", Scroll).scroll_home(animate=False)

    # ---- editing

    def _here(self) -> BenchRow | None:
        """The row under the cursor; where there is none, what to do about it is said."""
        if self._row is None:
            self.lens.say(self._nothing())
        return self._row

    def _edit(self, row: BenchRow, stays: str, **changes: Any) -> None:
        """Change the row, or say why it stays as it is."""
        if all(getattr(row, name) == value for name, value in changes.items()):
            self.lens.say(stays)
        else:
            self.lens.store.edit_steer(row.id, **changes)

    def action_switch(self) -> None:
        """Switch the row on or off."""
        if (row := self._here()) is not None:
            self._edit(row, "", enabled=not row.enabled)

    def action_scale(self, steps: int) -> None:
        """Move the scale by whole steps."""
        if (row := self._here()) is not None:
            self._edit(row, "This row has no scale to move.", scale=row.moved(steps).scale)

    def action_zero(self) -> None:
        """No push at all; the row stays."""
        if (row := self._here()) is not None:
            self._edit(row, "The scale is zero already.", scale=0.0)

    def action_flip(self) -> None:
        """The same push the other way."""
        if (row := self._here()) is not None:
            self._edit(row, "The scale is zero: it has no sign to turn.", scale=-row.scale)

    def action_layer(self, steps: int) -> None:
        """Steer at another layer, within the model."""
        if (row := self._here()) is not None:
            if row.rest:
                self.lens.say("A set acts at the layers that its vectors were made at.")
                return
            last = self.session.model.n_layers - 1 if self.session.model else row.layer
            layer = max(0, min(last, row.layer + steps))
            self._edit(row, f"Layer {layer} is the {'first' if steps < 0 else 'last'} of the model.", layer=layer)

    def action_arm(self, steps: int) -> None:
        """Put the row in another arm."""
        if (row := self._here()) is not None:
            arm = max(1, min(MAX_ARMS, row.arm + steps))
            self._edit(row, f"Arm {arm} is the {'first' if steps < 0 else 'last'} there can be.", arm=arm)

    def action_delete(self) -> None:
        """Take the row off the bench."""
        if (row := self._here()) is not None:
            self.lens.store.remove_steer(row.id)

    def action_copy(self) -> None:
        """The same vector again, in the next free arm."""
        if (row := self._here()) is not None:
            self.lens.store.add_like(row, row.scale, self.session.free_arm())

    def action_mode(self) -> None:
        """The next way to act."""
        if (row := self._here()) is not None:
            names = [mode.id for mode in modes_of(row.vector)]
            if len(names) == 1:
                self.lens.say("There is one mode for this row.")
            self._replace(row.turned_to(names[(names.index(row.mode) + 1) % len(names)]))

    def action_positions(self) -> None:
        """The next positions."""
        if (row := self._here()) is not None:
            self._edit(row, "", positions=next_positions(row.positions, roles=roles_of(self.session)))

    def _replace(self, row: BenchRow) -> None:
        self.lens.store.edit_steer(row.id, mode=row.mode, scale=row.scale)

    def action_gate(self) -> None:
        """Choose what lets the row act."""
        if self._row is not None:
            ask_gate(self.lens, [self._row])

    def action_edit(self) -> None:
        """Type scale, layer, arm and name, choose mode and positions."""
        if (row := self._here()) is not None:
            self._ask_row(row, {})

    def _ask_row(self, row: BenchRow, typed: Mapping[str, str]) -> None:
        """The form of a row, with what was typed in it before; a scale beyond reason is asked back."""
        model = self.session.model
        fields = [
            replace(field, value=typed.get(field.id, field.value))
            for field in forms.row_fields(row, model.n_layers - 1 if model else None)
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is None:
                return
            edited = forms.edited(row, values)

            def keep() -> None:
                rows = self.session.steers
                self.lens.store.update(steers=tuple(edited if known.id == row.id else known for known in rows))

            doubt = too_strong(edited) if edited.scale != row.scale else ""
            self._doubted(doubt, keep, lambda: self._ask_row(row, values))

        amount = mode_of(row.mode).amount or "not used"
        note = f"The scale is {amount}; one step of + is {row.step:g}."
        self.app.push_screen(FormScreen(row.vector.name, fields, note), done)

    def _doubted(self, doubt: str, keep: Callable[[], object], again: Callable[[], object]) -> None:
        """Do it, or where there is a doubt ask before; ``again`` is for another number."""
        if not doubt:
            keep()
            return
        choices = [Choice("again", "type another scale"), Choice("keep", "use it all the same")]

        def answered(answer: str | None) -> None:
            if answer == "keep":
                keep()
            elif answer == "again":
                again()

        self.app.push_screen(ChoiceScreen(doubt, choices), answered)

    def action_dose(self) -> None:
        """Measure the row, or show what was measured; in the pane: close it."""
        if (row := self._here()) is not None:
            self.dose.measure(row)

    def action_dose_form(self) -> None:
        """Choose scales, tokens and controls, and measure."""
        if (row := self._here()) is not None:
            self.dose.ask(row)

    def action_find(self) -> None:
        """Choose a target and search the scale that reaches it."""
        if (row := self._here()) is not None:
            self.dose.find(row)

    def action_add(self) -> None:
        """Choose what to make a direction from."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        no_sae = "" if self.session.sae else "no SAE is loaded: see the Load screen"
        single = [row for row in self.session.steers if not row.rest]
        no_rows = "" if single else "there is no row on the bench yet"
        choices = [
            Choice("feature", "an SAE feature", "its decoder direction", no_sae),
            Choice("pairs", "contrasting texts", "at one layer, or the best of all"),
            Choice("file of pairs", "a file of pairs", "the same from JSONL or tab-separated texts"),
            Choice("token", "a token", "its row of the unembedding or embedding"),
            Choice("rows", "rows of the bench", "sum, difference, one without another", no_rows),
            Choice("random", "a random direction", "the control every effect is held against"),
            Choice("file", "a vector file", "ready, saved here, or by repeng and others"),
            Choice("probe", "a probe", "what tells texts A from texts B, by layer"),
            Choice("probe file", "a file of labels", "the same from JSONL with text and label"),
        ]
        self.app.push_screen(ChoiceScreen("Add a direction made from", choices), self._chosen)

    def _chosen(self, kind: str | None) -> None:
        if kind == "file":
            model = self.session.model
            ready = demo.vectors() if model is not None and model.name == demo.NAME else ()
            self.app.push_screen(VectorFileScreen(ready), self._from_file)
        elif kind is not None and (form := self._form(kind)) is not None:
            self._ask(form)

    def _form(self, kind: str) -> forms.Form | None:
        model = self.session.model
        if model is None:
            return None
        if kind == "feature":
            sae = self.session.sae_in_use
            return forms.feature(sae) if sae else None
        makers: dict[str, Callable[[], forms.Form]] = {
            "pairs": lambda: forms.pairs(model),
            "file of pairs": lambda: forms.pairs_file(model),
            "token": lambda: forms.token(model, self._row),
            "rows": lambda: forms.arithmetic([row for row in self.session.steers if not row.rest]),
            "random": lambda: forms.random(model, self._row),
            "probe": lambda: probe_form(model),
            "probe file": lambda: probe_file_form(model),
        }
        return makers[kind]()

    def _ask(self, form: forms.Form, typed: Mapping[str, str] | None = None, problem: str = "") -> None:
        """Ask for the fields; what fails comes back with what was typed."""
        known = typed or {}
        fields = [replace(item, value=known.get(item.id, item.value)) for item in form.fields]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._make(form.job(values), form.scale(values), lambda said: self._ask(form, values, said))

        self.app.push_screen(FormScreen(form.title, fields, form.note, problem), done)

    def _from_file(self, chosen: str | None) -> None:
        if chosen:
            ready = demo.ready_vector(chosen)
            typed = {"path": chosen}  # what the file leaves open can be added
            again = None if ready else lambda said: self._ask(forms.vector_file(), typed, said)
            self._make(VectorFromFile(chosen), ready.scale if ready else None, again)
        elif chosen is not None:
            self._ask(forms.vector_file())

    def _make(self, job: Job, scale: float | None = None, again: Again | None = None) -> None:
        def handle(event: Event) -> bool:
            if isinstance(event, VectorMade):
                asked = BenchRow(
                    "",
                    event.vector,
                    event.vector.layer,
                    scale or 0.0,
                    residual_norm=event.residual_norm,
                    rest=event.rest,
                )
                self._doubted(too_strong(asked), lambda: self._add(event, scale), lambda: again("") if again else None)
            elif isinstance(event, LayersRanked):
                self._choose_layer(event, again)
            elif isinstance(event, ProbesTrained):
                ask_layer(self.lens, event.report, self._row, self._given, lambda: again("") if again else None)
            elif isinstance(event, JobFailed) and again is not None and self.is_current:
                again(f"{event.message} {event.hint}".strip())
                return True
            return False

        self.lens.submit(job, SLOT, handle)

    def _add(self, made: VectorMade, scale: float | None) -> None:
        self.lens.store.add_made(made, scale=scale)

    def _given(self, vector: SteeringVector) -> None:
        """A vector that is there goes on the bench."""
        self._make(VectorGiven(vector))

    def _choose_layer(self, ranked: LayersRanked, again: Again | None) -> None:
        def done(place: int | None) -> None:
            if place is not None:
                self._make(VectorGiven(ranked.layers[place].vector))
            elif again is not None:
                again("")

        self.app.push_screen(LayersScreen(ranked.layers[0].vector.name, ranked.layers, ranked.n_pairs), done)

    def action_copy_text(self) -> None:
        """Copy what is known of the direction: the row, its origin, and the tokens it moves."""
        row = self._row
        if row is None:
            self.lens.say(f"There is no vector to copy yet: {self.lens.key_text('steer.add')} makes one.")
        else:
            first = [line.plain.strip() for line in bench_row(row, 72)]
            known = direction(row, 72, False, self.session.saes).plain.split("\n")
            self.lens.copy("\n".join([*first, "", *(line.rstrip() for line in known)]), row.vector.name)

    def action_row(self) -> None:
        """Type a part of a row's name; the cursor goes there."""
        find = self.query_one("#find", Entry)
        find.value = ""
        find.add_class("-open")
        focus_now(find)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Go to the first row whose name has what is typed."""
        self._words = event.value.casefold()
        if found := self._found_rows():
            self._rows.cursor = found[0]

    def _found_rows(self) -> list[int]:
        """The places of the rows whose names have what was typed last."""
        names = (row.vector.name.casefold() for row in self._rows.rows)
        return [place for place, name in enumerate(names) if self._words and self._words in name]

    def action_match(self, step: int) -> None:
        """The next row whose name has what was typed last, or the one before, going round."""
        found, here = self._found_rows(), self._rows.cursor
        if not found:
            self.lens.say(f"No row is searched for: {self.lens.key_text('steer.row')} finds one by its name.")
            return
        after = [place for place in found if (place > here if step > 0 else place < here)] or found
        self._rows.cursor = after[0] if step > 0 else after[-1]

    def on_input_submitted(self) -> None:
        """Stay at the row that was found."""
        self.leave_text()

    def leave_text(self) -> None:
        """Close the field."""
        self.query_one("#find", Entry).remove_class("-open")
        self.set_focus(self._rows)

    def action_save(self) -> None:
        """Save the row's vector to a file."""
        row = self._row
        if row is None:
            return
        hint = "empty: the vectors folder; or .safetensors .gguf .npy .npz .json"
        fields = [Field("path", "file", hint=hint, check=forms.free)]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._write((replace(row.vector, layer=row.layer), *row.rest), values["path"].strip())

        note = "The unit direction, its layer and how it was made; the scale is not part of a vector."
        self.app.push_screen(FormScreen(f"Save {row.vector.name}", fields, note), done)

    @work(thread=True, exit_on_error=False, group="save")
    def _write(self, vectors: Sequence[SteeringVector], path: str) -> None:
        try:
            file = save_vectors(vectors, expanded(path) if path else None)
        except LensError as error:
            self.app.call_from_thread(self.lens.show_error, error.message, error.hint)
        else:
            self.app.call_from_thread(self.lens.say, f"Saved to {one_line(str(file))}")
