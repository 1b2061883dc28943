"""Vectors onto the bench and off to files, from texts, features, tokens, rows, chance. What Steer mixes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from lens_tui import demo
from lens_tui.records import LensError, SteeringVector
from lens_tui.records.sanitise import one_line
from lens_tui.tui.screens import steer_forms as forms
from lens_tui.tui.screens.form import Choice, ChoiceScreen, Field, FormScreen
from lens_tui.tui.screens.vector_files import VectorFileScreen
from lens_tui.tui.screens.vector_layers import LayersScreen
from lens_tui.tui.session import Steer
from lens_tui.worker.events import Event, JobFailed, LayersRanked, VectorMade
from lens_tui.worker.jobs import Job, VectorFromFile, VectorGiven

if TYPE_CHECKING:
    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object

SLOT = "vector"
Again = Callable[[str], None]
"""Asks again with what was typed; given what was wrong with it."""


class AddActions(_Base):
    """Needs ``_row`` of the screen: the row under the cursor."""

    if TYPE_CHECKING:

        @property
        def _row(self) -> Steer | None: ...

    def action_add(self) -> None:
        """Choose what to make a direction from."""
        if self.session.model is None:
            self.lens.say("Load a model first.")
            return
        no_sae = "" if self.session.sae else "no SAE is loaded: see the Load screen"
        no_rows = "" if self.session.steers else "there is no row on the bench yet"
        choices = [
            Choice("feature", "an SAE feature", "its decoder direction", no_sae),
            Choice("pairs", "contrasting texts", "at one layer, or the best of all"),
            Choice("file of pairs", "a file of pairs", "the same from JSONL or tab-separated texts"),
            Choice("token", "a token", "its row of the unembedding or embedding"),
            Choice("rows", "rows of the bench", "sum, difference, one without another", no_rows),
            Choice("random", "a random direction", "the control every effect is held against"),
            Choice("file", "a vector file", "ready, saved here, or by repeng and others"),
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
            sae = next((sae for sae in self.session.saes if sae.id == self.session.sae), None)
            return forms.feature(sae) if sae else None
        makers: dict[str, Callable[[], forms.Form]] = {
            "pairs": lambda: forms.pairs(model),
            "file of pairs": lambda: forms.pairs_file(model),
            "token": lambda: forms.token(model, self._row),
            "rows": lambda: forms.arithmetic(self.session.steers),
            "random": lambda: forms.random(model, self._row),
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
                self.lens.store.add_steer(
                    event.vector,
                    scale=scale,
                    residual_norm=event.residual_norm,
                    promoted=event.promoted,
                    suppressed=event.suppressed,
                )
            elif isinstance(event, LayersRanked):
                self._choose_layer(event, again)
            elif isinstance(event, JobFailed) and again is not None and self.is_current:
                again(f"{event.message} {event.hint}".strip())
                return True
            return False

        self.lens.submit(job, SLOT, handle)

    def _choose_layer(self, ranked: LayersRanked, again: Again | None) -> None:
        def done(place: int | None) -> None:
            if place is not None:
                self._make(VectorGiven(ranked.layers[place].vector))
            elif again is not None:
                again("")

        self.app.push_screen(LayersScreen(ranked.layers[0].vector.name, ranked.layers, ranked.n_pairs), done)

    def action_save(self) -> None:
        """Save the row's vector to a file."""
        row = self._row
        if row is None:
            return
        hint = "empty: the vectors folder; or .safetensors .gguf .npy .npz .json"
        fields = [Field("path", "file", hint=hint, check=forms.free)]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._write(replace(row.vector, layer=row.layer), values["path"].strip())

        note = "The unit direction, its layer and how it was made; the scale is not part of a vector."
        self.app.push_screen(FormScreen(f"Save {row.vector.name}", fields, note), done)

    @work(thread=True, exit_on_error=False, group="save")
    def _write(self, vector: SteeringVector, path: str) -> None:
        from lens_tui.records.vector_formats import save_vectors
        from lens_tui.records.vectors_io import save_vector

        try:
            file = save_vectors(vector, Path(path).expanduser()) if path else save_vector(vector)
        except LensError as error:
            self.app.call_from_thread(self.lens.show_error, error.message, error.hint)
        else:
            self.app.call_from_thread(self.lens.say, f"Saved to {one_line(str(file))}")
