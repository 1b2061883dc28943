"""What could be loaded, and opening a model: load it, then what belongs to it, so that the first run is one key away.

The bundled model comes with a prompt, an SAE and ready steers
(``lens_tui.demo.starter``); others come as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui import demo
from lens_tui.records.arm_syntax import Term
from lens_tui.records.info import Dequantize
from lens_tui.worker.events import Event, JobDone, JobFailed, ModelLoaded, Progress, VectorMade
from lens_tui.worker.jobs import (
    BareVectors,
    LoadModel,
    LoadSAE,
    UnloadModel,
    VectorFromFeature,
    VectorFromFile,
    VectorGiven,
)

from .format import model_name
from .host import QUIET, LensHost
from .preferences import preferences

if TYPE_CHECKING:
    from lens_tui.records import SteeringVector
    from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry


SLOT = "load"


class DiskCatalog:
    """The bundled demo, the Hugging Face cache and recent folders; ``dequantize`` is how models will be loaded."""

    def __init__(self, dequantize: Dequantize = "auto") -> None:
        self._dequantize = dequantize

    def models(self) -> Sequence[ModelEntry]:
        """Models on this disk, and in the folders that the settings name."""
        from lens_tui.tasks.models import list_models

        return list_models(folders=preferences().folders)

    def saes(self, model: str) -> Sequence[SAEEntry]:
        """SAEs that are meant for the model: on this disk, then those at the hub that are known."""
        from lens_tui.tasks.models import list_saes, saes_at_hub

        here = list_saes(model)
        return [*here, *saes_at_hub(model, here)]

    def remove(self, entry: ModelEntry | SAEEntry) -> int:
        """Take it out of the hub's cache, or off the list of recent folders."""
        from lens_tui.tasks.models import remove

        return remove(entry)

    def check(self, typed: str) -> ModelEntry:
        """A folder, a hub id or ``demo``."""
        from lens_tui.tasks.models import check_model

        return check_model(typed)

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        """A comparison of four arms over a thousand tokens with four layers captured."""
        from lens_tui.tasks.models import estimate_memory

        return estimate_memory(entry, tokens=1024, arms=4, captured_layers=4, dequantize=self._dequantize)


class Opening:
    """Loads models and SAEs for the app.

    ``arming`` is true until weights and bench are there, which a run waits for, and ``going`` until all that belongs
    to the model is: its SAE comes behind, and then what there is to say of the bench's vectors.
    """

    def __init__(self, app: LensHost) -> None:
        self._app = app
        self._waiting: list[Term] = []
        self._unsaid: list[tuple[SteeringVector, SteeringVector]] = []
        self.going = self.arming = False
        self.failure: JobFailed | None = None
        self.model = ""
        self.stages: list[str] = []
        self.wanted_sae = ""
        """The path of the SAE that belongs to the model, until it is unloaded."""

    def load(self, model: str, sae: str = "") -> None:
        """Load a model by ``"demo"``, a folder or a hub id, and then, if one is named, an SAE by its path."""
        self.wanted_sae = sae or (demo.default_sae() if model == demo.NAME else "")
        self.model, self.failure, self.stages, self._waiting, self._unsaid = model, None, [], [], []
        self.going = self.arming = True
        self._app.store.update(loading=True)
        if model == demo.NAME and not self._app.store.session.prompt:
            starter = demo.starter()
            self._app.store.update(prompt=starter.prompt, sampling=starter.sampling)

        self._app.submit(
            LoadModel(model, dequantize=self._app.dequantize), SLOT, lambda event: self._model(model, event)
        )

    def load_sae(self, path: str) -> None:
        """Load an SAE beside the model."""

        self._app.submit(LoadSAE(path), SLOT, self._sae)

    def unload(self) -> None:
        """Free the model and its SAEs."""

        self.model = self.wanted_sae = ""
        self._unsaid = []
        self._app.submit(UnloadModel(), SLOT, lambda event: False)

    def _model(self, name: str, event: Event) -> bool:
        if isinstance(event, Progress) and event.stage not in self.stages:
            self.stages.append(event.stage)
        if isinstance(event, ModelLoaded) and name == demo.NAME:
            self._waiting = list(demo.starter().steers) if not self._app.store.session.steers else []
        if isinstance(event, JobDone):
            self._app.store.forget_edits()  # those of another model's bench; what is edited from now on can be undone
            if event.stopped:
                self._finish()
            else:
                self._make_bench()
        return self._failed(event)

    def _sae(self, event: Event) -> bool:
        if isinstance(event, JobDone) and self.going:
            self._finish()
        return self._failed(event)

    def _make_bench(self) -> None:
        """Ask for all vectors at once, as they are: what is to be said of each need not be known for a run."""
        if not self._waiting:
            self._armed()
            return
        of = tuple(
            VectorFromFile(steer.source) if steer.kind == "file" else VectorFromFeature(steer.sae, steer.feature)
            for steer in self._waiting
        )
        self._app.submit(BareVectors(of), SLOT, self._vector)

    def _vector(self, event: Event) -> bool:
        if isinstance(event, VectorMade):
            steer = self._waiting.pop(0)
            row = steer.row("", event.vector)
            vector = replace(event.vector, name=steer.name, layer=row.layer)
            added = self._app.store.add_made(replace(event, vector=vector), scale=row.scale)
            self._app.store.comes_with_the_model(added)
            self._unsaid.append((vector, event.vector))
        if isinstance(event, JobDone):
            self._armed()
        return self._failed(event)

    def _say_next(self) -> None:
        """Ask what the next vector promotes and what its scales are read against."""
        if self._unsaid and self._app.store.session.model is not None:
            bare = self._unsaid[0]
            self._app.submit(VectorGiven(bare[1]), QUIET, lambda event: self._said(bare, event))

    def _said(self, bare: tuple[SteeringVector, SteeringVector], event: Event) -> bool:
        if isinstance(event, VectorMade):
            self._app.store.describe(bare[0], event)
        if isinstance(event, JobDone | JobFailed):
            stopped = isinstance(event, JobDone) and event.stopped  # with a run that it waited for: it is asked again
            if not stopped and self._unsaid and self._unsaid[0] is bare:
                del self._unsaid[0]
            self._say_next()
        return False

    def _failed(self, event: Event) -> bool:
        if isinstance(event, JobFailed):
            self.failure = event
            self._finish()
        return False

    def _armed(self) -> None:
        """Weights and bench are there: a run may begin, and the SAE is loaded behind it."""
        self.arming = False
        if self._app.store.session.model is not None:
            self._app.armed()
        if self.wanted_sae:
            self.load_sae(self.wanted_sae)
        else:
            self._finish()

    def _finish(self) -> None:
        self.going, self.arming, self._waiting = False, False, []
        self._app.store.update(loading=False)
        ready = self.failure is None and self._app.store.session.model is not None
        run = self._app.key_text("app.run")
        self._app.opened(ready, f"{model_name(self.model)} is ready · {run} runs the comparison")
        self._say_next()
