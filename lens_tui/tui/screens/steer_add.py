"""Vectors onto the bench and off to files: from a feature, texts, chance or a file. What Steer mixes in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from lens_tui import demo
from lens_tui.records import LensError, SteeringVector
from lens_tui.records.sanitise import one_line
from lens_tui.tui.screens.form import Choice, ChoiceScreen, Field, FormScreen, filled, number, whole
from lens_tui.tui.screens.vector_files import VectorFileScreen
from lens_tui.tui.session import Steer
from lens_tui.worker.events import Event, VectorMade
from lens_tui.worker.jobs import Job, RandomVector, VectorFromFeature, VectorFromFile, VectorFromPrompts

if TYPE_CHECKING:
    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object

SLOT = "vector"


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
        choices = [
            Choice("feature", "an SAE feature", "its decoder direction", no_sae),
            Choice("prompts", "two sets of texts", "the mean difference of their residuals"),
            Choice("random", "a random direction", "the control every effect is held against"),
            Choice("file", "a file", "ready, saved here, or by repeng and others"),
        ]
        self.app.push_screen(ChoiceScreen("Add a direction made from", choices), self._chosen)

    def _chosen(self, kind: str | None) -> None:
        forms = {
            "feature": self._from_feature,
            "prompts": self._from_prompts,
            "random": self._random,
            "file": self._file,
        }
        if kind in forms:
            forms[kind]()

    def _from_feature(self) -> None:
        sae = next((sae for sae in self.session.saes if sae.id == self.session.sae), None)
        if sae is None:
            return
        fields = [Field("feature", "feature", hint=f"0 to {sae.width - 1}", check=whole(0, sae.width - 1))]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self._make(VectorFromFeature(sae.id, int(values["feature"])))

        self.app.push_screen(FormScreen("From an SAE feature", fields, sae.name), done)

    def _from_prompts(self) -> None:
        model = self.session.model
        if model is None:
            return
        fields = [
            Field("name", "name", hint="what the direction stands for", check=filled),
            Field("positive", "toward", hint="a text with it; several with | between", check=filled),
            Field("negative", "away from", hint="a text without it", check=filled),
            Field("layer", "layer", str(model.n_layers // 2), check=whole(0, model.n_layers - 1)),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                job = VectorFromPrompts(
                    one_line(values["name"], 60),
                    texts(values["positive"]),
                    texts(values["negative"]),
                    int(values["layer"]),
                )
                self._make(job)

        note = "The mean residual of the first texts minus that of the second, over all tokens but BOS."
        self.app.push_screen(FormScreen("From two sets of texts", fields, note), done)

    def _random(self) -> None:
        model = self.session.model
        if model is None:
            return
        used = self._row
        layer = used.layer if used else model.n_layers // 2
        fields = [
            Field("layer", "layer", str(layer), check=whole(0, model.n_layers - 1)),
            Field("seed", "seed", "0", check=whole(0)),
            Field("scale", "scale", f"{used.scale:g}" if used else "", hint="empty: half of ‖h‖", check=_maybe_number),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                name = f"random {values['seed'].strip()}"
                scale = float(values["scale"]) if values["scale"].strip() else None
                self._make(RandomVector(name, int(values["layer"]), int(values["seed"])), scale)

        note = "A random direction at the same scale shows how much of an effect is any push at all."
        self.app.push_screen(FormScreen("A random direction", fields, note), done)

    def _file(self) -> None:
        model = self.session.model
        ready = demo.vectors() if model is not None and model.name == demo.NAME else ()
        self.app.push_screen(VectorFileScreen(ready), self._from_file)

    def _from_file(self, chosen: str | None) -> None:
        if chosen is None:
            return
        if chosen:
            ready = demo.ready_vector(chosen)
            self._make(VectorFromFile(chosen), ready.scale if ready else None)
            return
        fields = [
            Field("path", "file", hint=".safetensors .gguf .npy .npz .json .pt", check=a_file),
            Field("layer", "layer", hint="empty: what the file says", check=_maybe_layer),
        ]

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                layer = values["layer"].strip()
                self._make(VectorFromFile(values["path"].strip(), int(layer) if layer else None))

        self.app.push_screen(FormScreen("From a file", fields, "Its width must be the model's."), done)

    def action_save(self) -> None:
        """Save the row's vector to a file."""
        row = self._row
        if row is None:
            return
        fields = [
            Field("path", "file", hint="empty: the vectors folder; or .safetensors .gguf .npy .npz .json", check=free)
        ]

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

    def _make(self, job: Job, scale: float | None = None) -> None:
        def handle(event: Event) -> None:
            if isinstance(event, VectorMade):
                self.lens.store.add_steer(
                    event.vector,
                    scale=scale,
                    residual_norm=event.residual_norm,
                    promoted=event.promoted,
                    suppressed=event.suppressed,
                )

        self.lens.submit(job, SLOT, handle)


def texts(typed: str) -> tuple[str, ...]:
    """Texts separated by ``|``, blanks around them dropped, empty ones left out."""
    return tuple(part.strip() for part in typed.split("|") if part.strip())


def _maybe_number(text: str) -> str:
    return number()(text) if text.strip() else ""


def _maybe_layer(text: str) -> str:
    return whole(0)(text) if text.strip() else ""


def a_file(text: str) -> str:
    """A check for the path of a file that is there."""
    return "" if text.strip() and Path(text.strip()).expanduser().is_file() else "a file that is there"


def free(text: str) -> str:
    """A check for a path to write to: nothing, or one where no file is yet, in a folder that is there."""
    path = Path(text.strip()).expanduser()
    if not text.strip():
        return ""
    return "" if path.parent.is_dir() and not path.exists() else "a new name in a folder that is there"
