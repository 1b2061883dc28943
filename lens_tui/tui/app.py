"""The app: screens over one worker and one session.

How it looks is in ``appearance``, what its keys do in ``app_actions``, and how jobs
and events go between the screens and the worker in ``exchange``. What two screens
both need is in the session; what a screen shows is its own affair.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import App
from textual.reactive import reactive
from textual.screen import Screen

from lens_tui.records import Sampling
from lens_tui.tui import themes
from lens_tui.tui.activity import Activity
from lens_tui.tui.app_actions import AppActions
from lens_tui.tui.appearance import Appearance
from lens_tui.tui.catalog import Catalog, DiskCatalog
from lens_tui.tui.defects import Defects
from lens_tui.tui.exchange import Exchange
from lens_tui.tui.keys import SCREENS
from lens_tui.tui.keys.bindings import bindings
from lens_tui.tui.opening import Opening
from lens_tui.tui.recovery import Recovery
from lens_tui.tui.session import Session, SessionStore

_log = logging.getLogger(__name__)
if TYPE_CHECKING:
    from textual.driver import Driver
    from textual.message import Message
    from textual.widget import Widget

    from lens_tui.records.info import Dequantize
    from lens_tui.records.session_file import CutOff
    from lens_tui.worker.protocol import WorkerLike

_CLASSES = {
    "load": "load:LoadScreen",
    "steer": "steer:SteerScreen",
    "generate": "generate:GenerateScreen",
    "features": "features:FeaturesScreen",
    "lens": "lens:ReadoutScreen",
}
_HERE = Path(__file__).parent
# The screens' sheets with the app's: one read when a screen opens would parse every sheet again.
_STYLES = (_HERE / "lens.tcss", *sorted((_HERE / "screens").glob("*.tcss")))


def _screen_factory(mode: str) -> Callable[[], Screen[Any]]:
    module, _, name = _CLASSES[mode].partition(":")

    def make() -> Screen[Any]:
        return cast("Screen[Any]", getattr(import_module(f"lens_tui.tui.screens.{module}"), name)())

    return make


class LensApp(AppActions, Appearance, Exchange, App[None], inherit_bindings=False):
    """The terminal app over any :class:`~lens_tui.worker.protocol.WorkerLike`.

    ``start`` is the screen it opens on, ``keymap`` the user's ``[keys]``,
    ``theme`` a theme's name, ``theme_folders`` where to look for more themes.
    ``open_model`` is loaded once the first frame is up; ``cut_off`` finds the sessions
    that were cut off, to be offered; ``notices`` are things to know from the start on;
    ``problems`` are sentences to show at the start, before those about theme and keys;
    with ``autosave`` this session is kept on disk while it runs. ``history`` is the database that
    runs are kept in, ``dequantize`` how models are loaded. ``clock`` is seconds on a steady clock and ``wall`` the
    time of day; tests give their own.
    """

    TITLE = "mlx-lens-tui"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {mode: _screen_factory(mode) for mode, _ in SCREENS}
    BINDINGS = bindings("app")
    CSS_PATH = list(_STYLES)
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Any]] = {lambda: import_module("lens_tui.tui.palette").LensCommands}

    activity: reactive[Activity] = reactive(Activity(), repaint=False)
    tint: reactive[str] = reactive("tint", repaint=False)

    def __init__(
        self,
        worker: WorkerLike,
        *,
        start: str = "load",
        keymap: Mapping[str, str] | None = None,
        theme: str = themes.DEFAULT_THEME,
        theme_folders: tuple[Path, ...] = (),
        open_model: str | None = None,
        cut_off: Callable[[], Sequence[CutOff]] = tuple,
        sampling: Sampling | None = None,
        tint: str = "tint",
        problems: Sequence[str] = (),
        notices: Sequence[str] = (),
        autosave: bool = False,
        log_path: Path | None = None,
        history: Path | None = None,
        catalog: Catalog | None = None,
        dequantize: Dequantize = "auto",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.DEFAULT_MODE = start  # type: ignore[misc]  # the mode Textual starts in
        self.defects = Defects(self)
        self.begin_look()
        super().__init__()
        self.begin_exchange(worker)
        self.clock, self.wall = clock, wall
        self.log_path, self.history = log_path, history
        self.catalog: Catalog = catalog or DiskCatalog(dequantize)
        self.dequantize = dequantize
        self.store = SessionStore(Session(sampling=sampling or Sampling()))
        self.opening = Opening(self)
        self.recovery = Recovery(self)
        self._open_model, self._cut_off, self._autosave = open_model, cut_off, autosave
        self._first_frame = False
        self._after_first_frame: list[Callable[[], object]] = []
        self.problems, self._notices = list(problems), tuple(notices)
        self.last_words = ""
        self.use_themes(theme, theme_folders)
        self.use_keymap(keymap or {})
        self.set_reactive(LensApp.tint, "bars" if self.no_color and tint == "tint" else tint)

    # ---- start and end

    def get_driver_class(self) -> type[Driver]:
        """The terminal's driver, made to leave at once."""
        from lens_tui.tui.driver import leaving_driver

        return leaving_driver(super().get_driver_class())

    def on_ready(self) -> None:
        """The first frame is up: start the worker and what the command line asked for."""
        self._first_frame = True
        for waiting in self._after_first_frame:
            waiting()
        self.worker.start(self.wake)
        if self.problems:
            self.call_after_refresh(self.show_problems)
        if self._open_model:
            self.opening.load(self._open_model)
        if self._autosave:
            self.recovery.follow()
        if self._notices:
            self.call_after_refresh(self.tell, " ".join(self._notices))
        if found := self._cut_off():
            self.recovery.offer(found)
        if self.goes_on:
            self.call_later(self.defects.begin)

    def after_first_frame(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once the first frame is up, at once if it is: for what would hold it back."""
        if self._first_frame:
            callback()
        else:
            self._after_first_frame.append(callback)

    def show_problems(self) -> None:
        """Show what in the settings could not be used."""
        self.show_error("Some settings could not be used.", "\n".join(self.problems))

    def show_error(self, message: str, hint: str = "", detail: str = "") -> None:
        """Show an error with its next step; the text is plain, never markup."""
        from lens_tui.tui.screens.error import ErrorScreen

        if not isinstance(self.screen, ErrorScreen):
            self.push_screen(ErrorScreen(message, hint, detail, self.log_path))

    def say(self, message: str) -> None:
        """A short remark, for something that happened out of sight."""
        self.notify(message, markup=False, timeout=4)

    def end(self, status: int) -> None:
        """End because of something outside, with an exit status that is not 0: the session is kept."""
        if not self._exit:
            self.exit(return_code=status)

    # ---- when it breaks

    @property
    def goes_on(self) -> bool:
        """Whether the session goes on after a defect. A test without a terminal is to see it."""
        return not self.is_headless

    def _start_widget(self, parent: Widget, widget: Widget) -> None:
        self.defects.watch(widget)
        super()._start_widget(parent, widget)

    async def _dispatch_message(self, message: Message) -> None:
        await self.defects.around(super()._dispatch_message, message)

    def _handle_exception(self, error: Exception) -> None:
        """A defect. Where it ends the app, one sentence goes to the terminal once it is ours no more."""
        if self.defects.survived(error):
            return
        super()._handle_exception(error)
        _log.error("a defect", exc_info=error)
        self.last_words = f"mlx-lens-tui ran into a defect ({type(error).__name__}). "
        self.last_words += f"The log has the details: {self.log_path}" if self.log_path else str(error)
        if not self.is_headless:
            self._exit_renderables.clear()
