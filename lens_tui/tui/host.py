"""What widgets and screens may ask of the app, so that they need not know the app itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.app import App
from textual.dom import DOMNode
from textual.message import Message
from textual.theme import Theme

from lens_tui.records.info import Dequantize
from lens_tui.tui.job_book import Handler, JobBook
from lens_tui.worker.events import JobFailed
from lens_tui.worker.jobs import Job
from lens_tui.worker.protocol import WorkerLike

from .session import SessionStore

if TYPE_CHECKING:
    from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry


class RunWanted(Message):
    """The comparison is to run: to the Generate screen."""


class Catalog(Protocol):
    """Lists and checks; each call may take a while and is made off the screen's thread."""

    def models(self) -> Sequence[ModelEntry]:
        """Models that can be loaded."""

    def saes(self, model: str) -> Sequence[SAEEntry]:
        """SAEs available for a model, by its id."""

    def check(self, typed: str) -> ModelEntry:
        """What was typed, as a model; raises ``LensError`` if it is none."""

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        """What it would need."""


class Opens(Protocol):
    """What loads models and SAEs, and how far it is."""

    model: str
    wanted_sae: str
    arming: bool
    going: bool
    failure: JobFailed | None
    stages: list[str]

    def load(self, model: str, sae: str = "") -> None:
        """Load a model, and then an SAE if one is named."""

    def load_sae(self, path: str) -> None:
        """Load an SAE beside the model."""

    def unload(self) -> None:
        """Free the model and its SAEs."""


class LensHost(App[None]):
    """The app as its screens, panes and widgets see it: what they may read, and what :class:`LensApp` does for them."""

    worker: WorkerLike
    store: SessionStore
    opening: Opens
    catalog: Catalog
    book: JobBook
    activity: Any
    tint: Any
    themes: dict[str, Theme]
    history: Path | None
    dequantize: Dequantize
    clock: Callable[[], float]
    wall: Callable[[], float]

    def submit(self, job: Job, slot: str, handler: Handler) -> int:
        """Ask the worker for something; ``handler`` gets its events. A slot holds one job: a new one stops the old."""
        raise NotImplementedError

    def key_text(self, key_id: str) -> str:
        """The key of an action as it is shown."""
        raise NotImplementedError

    def say(self, message: str) -> None:
        """A short remark, for something that happened out of sight."""

    def copy(self, text: str, what: str) -> None:
        """Copy ``text`` through the terminal (OSC 52, over ssh too) and, where one is there, the system's own tool.

        ``what`` says in the remark what it was.
        """
        self.copy_to_clipboard(text)
        self.run_worker(lambda: _handed_over(text), thread=True, exit_on_error=False, group="clip")
        self.notify(f"Copied {what} ({len(text)} characters).", markup=False, timeout=3)

    def tell(self, text: str) -> None:
        """Something to know that a remark would pass too quickly."""

    def remark(self, text: str) -> None:
        """What the status line says."""

    def show_error(self, message: str, hint: str = "", detail: str = "") -> None:
        """An error with its next step."""

    def keep_theme(self, name: str) -> None:
        """Use a theme from now on."""

    def after_first_frame(self, callback: Callable[[], object]) -> None:
        """Call it once the first frame is up."""

    def armed(self) -> None:
        """A model's weights and the bench it opens with are there: a run that was asked for begins."""

    def opened(self, ready: bool) -> None:
        """A model and all it opens with are there, or could not be loaded."""

    def action_show(self, mode: str) -> None:
        """Go to a screen."""

    def action_run(self) -> None:
        """Run the comparison."""


def host(node: DOMNode) -> LensHost:
    """The running app, as what it is to its screens."""
    return cast("LensHost", node.app)


_TOOLS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))


def _handed_over(text: str) -> bool:
    """Hand the text to the first tool there is; true if it took it."""
    for command in _TOOLS:
        if shutil.which(command[0]):
            try:
                done = subprocess.run(command, input=text.encode(), timeout=2, capture_output=True, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return True
    return False
