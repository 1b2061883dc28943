"""Jobs from the screens to the worker, events from the worker to the screen that asked.

Events are drained thirty times a second while there are any, and nothing is done when there are none.

A defect in a handler does not end the session, and no control character leaves it (``guards.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

from textual.binding import Binding
from textual.dom import DOMNode
from textual.driver import Driver
from textual.filter import LineFilter
from textual.message import Message
from textual.notifications import Notify
from textual.reactive import reactive
from textual.screen import Screen
from textual.theme import Theme
from textual.widget import Widget

from lens_tui.tui.widgets.frame import LensScreen, Pane
from lens_tui.worker.events import Event, JobFailed, Notice
from lens_tui.worker.jobs import Job
from lens_tui.worker.thread import WorkerLike

from . import themes
from .bindings import bindings
from .driver import leaving_driver
from .guards import Defects, NoControls
from .host import BUSY, IDLE, QUIET, Activity, Catalog, Handler, JobBook, LensHost, RunWanted, advance
from .keys import SCREENS, by_id, check_keymap
from .opening import DiskCatalog, Opening
from .preferences import Start
from .recovery import Recovery
from .screens.form import ErrorScreen
from .session import Session, SessionStore, absorb
from .themes import Looks
from .tour import Tour
from .widgets.entry import Entry

FRAME = 1 / 30
REMARK = 4.0
"""How long a remark stands, in seconds; a second ctrl+c within it quits."""
NEWS = 30.0
"""Seconds after which the status row drops what was done last."""
RUNS = ("run", "set")
"""The slots of what writes texts."""


class WorkerWake(Message):
    """The worker has events waiting."""


class FrameDue(Message):
    """A frame has passed since the last drain, and events wait."""


class NewsPast(Message):
    """What was done last is news no more."""


TINTS = ("tint", "bars", "digits", "off")


_log = logging.getLogger(__name__)

_CLASSES = {
    "load": "load_screen:LoadScreen",
    "steer": "steer_screen:SteerScreen",
    "generate": "generate_screen:GenerateScreen",
    "features": "features_screen:FeaturesScreen",
    "lens": "lens_screen:ReadoutScreen",
    "causes": "causes_screen:CausesScreen",
}
_HERE = Path(__file__).parent
# The screens' sheets with the app's: one read when a screen opens would parse every sheet again.
_STYLES = (_HERE / "lens.tcss", *sorted((_HERE / "screens").glob("*.tcss")))


def _screen_factory(mode: str) -> Callable[[], Screen[Any]]:
    module, _, name = _CLASSES[mode].partition(":")

    def make() -> Screen[Any]:
        return cast("Screen[Any]", getattr(import_module(f"lens_tui.tui.screens.{module}"), name)())

    return make


class LensApp(LensHost, inherit_bindings=False):
    """The terminal app over any :class:`~lens_tui.worker.thread.WorkerLike`.

    Args:
        worker: does what takes a model; it is started once the first frame is up.
        start: what the app opens with.
        catalog: what could be loaded; by default what is on this machine's disk.
        clock: seconds on a steady clock.
        wall: the time of day, in seconds since 1970.
    """

    TITLE = "mlx-lens-tui"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {mode: _screen_factory(mode) for mode, _ in SCREENS}
    BINDINGS = bindings("app")
    CSS_PATH = list(_STYLES)
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Any]] = {lambda: import_module("lens_tui.tui.screens.palette").AppCommands}

    looks: Looks
    activity: reactive[Activity] = reactive(Activity(), repaint=False)
    tint: reactive[str] = reactive("tint", repaint=False)
    tour_step: reactive[int] = reactive(-1, repaint=False)

    def __init__(
        self,
        worker: WorkerLike,
        start: Start | None = None,
        *,
        catalog: Catalog | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.start_with = start = start or Start()
        self.DEFAULT_MODE = start.screen  # type: ignore[misc]  # the mode Textual starts in
        self.defects = Defects(self)
        self.begin_look()
        super().__init__()
        self.begin_exchange(worker)
        self.clock, self.wall = clock, wall
        self.history, self.log_path, self.dequantize = start.history, start.log_path, start.dequantize
        self.catalog: Catalog = catalog or DiskCatalog(start.dequantize)
        self.store = SessionStore(Session(sampling=start.sampling))
        self.opening = Opening(self)
        self.recovery = Recovery(self)
        self.tour = Tour(self, start.tour)
        self._first_frame = False
        self._after_first_frame: list[Callable[[], object]] = []
        self.problems = list(start.problems)
        self.last_words = ""
        self.looks = Looks(self, start.theme_folders, start.dark)
        self.problems += self.looks.begin(start.theme)
        self.use_keymap(start.keys)
        self.reduced_motion = start.reduced_motion
        if start.reduced_motion:
            self.animation_level = "none"
        self.set_reactive(LensApp.tint, "bars" if self.no_color and start.tint == "tint" else start.tint)

    # ---- start and end

    def get_driver_class(self) -> type[Driver]:
        """The terminal's driver, made to leave at once."""
        return leaving_driver(super().get_driver_class())

    def on_ready(self) -> None:
        """The first frame is up: start the worker and what the command line asked for."""
        self._first_frame = True
        for waiting in self._after_first_frame:
            waiting()
        start = self.start_with
        self.worker.start(self.wake)
        self.looks.watch()
        self.tour.invite()
        if self.problems:
            self.call_after_refresh(self.show_problems)
        if start.model:
            self.opening.load(start.model)
        if start.autosave:
            self.recovery.follow()
        if start.notices:
            self.call_after_refresh(self.tell, " ".join(start.notices))
        found = start.cut_off()
        if start.resume:
            self.recovery.resume(found)
        elif found:
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
        if not isinstance(self.screen, ErrorScreen):
            self.push_screen(ErrorScreen(message, hint, detail, self.log_path))

    def say(self, message: str) -> None:
        """A short remark, for something that happened out of sight."""
        self.notify(message, markup=False, timeout=REMARK)

    def _on_notify(self, event: Notify) -> None:
        """Let what is said again take the place of the same words before it: Textual would show both, and then adds."""
        for old in [note for note in self._notifications if note.message == event.notification.message]:
            self._unnotify(old, refresh=False)
            if self.screen_stack:
                self.screen.query(f"#--textual-toast-{old.identity}").remove()

    def end(self, status: int) -> None:
        """End because of something outside, with an exit status that is not 0: the session is kept."""
        if not self._exit:  # Textual has no public word for "told to exit"; a second exit would take the first's status
            self.exit(return_code=status)

    # ---- when it breaks

    @property
    def goes_on(self) -> bool:
        """Whether the session continues after a defect. A test without a terminal should see it instead."""
        return not self.is_headless

    def _register_child(self, parent: DOMNode, child: Widget, before: int | None, after: int | None) -> None:
        if child not in self._registry:
            self.defects.watch(child)
            if self.reduced_motion and hasattr(type(child), "cursor_blink"):
                child.cursor_blink = False  # type: ignore[attr-defined]
        super()._register_child(parent, child, before, after)

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
            self._exit_renderables.clear()  # Textual's traceback: only the sentence is to stand there

    _run_when_ready = False
    _said_by_run = ""

    _last_interrupt = float("-inf")

    def on_entry_shortened(self, event: Entry.Shortened) -> None:
        """A field outside of a form did not take all that was pasted."""
        self.say(event.said)

    def action_show(self, mode: str) -> None:
        """Go to a screen; on it already, say so."""
        if mode == self.current_mode and self._running and not self._exit:
            self.say(f"This is {dict(SCREENS)[mode]}.")
        self.go_to(mode)

    def go_to(self, mode: str) -> None:
        """Show a screen, or stay on it."""
        if self._exit or not self._running:  # a key that came with the one to quit
            return
        if mode != self.current_mode:
            self.drop_news()
        self.switch_mode(mode)
        self.call_after_refresh(self.refresh_bindings)
        self.tour.went(mode)

    def action_run(self) -> None:
        """Run the comparison, on the Generate screen; if the model is still loading, as soon as it is there."""
        if self.store.session.model is not None and not self.opening.arming:
            here = self.current_mode == "generate"
            self.go_to("generate")
            # Where it shows already there is nothing to be waited for, a picture least of all.
            self._want_run() if here else self.call_after_refresh(self._want_run)
        elif self.busy:
            self._run_when_ready = True
            self.say("It runs as soon as the model is ready.")
        else:
            self.go_to("load")
            self.say("Load a model first.")

    def _want_run(self) -> None:
        # Not to ``self.screen``: a key that came with the one for the run may have put another on top.
        self.get_screen_stack("generate")[0].post_message(RunWanted())

    def opened(self, ready: bool, remark: str = "") -> None:
        """A model and all it opens with are there, or, if not ``ready``, could not be loaded.

        ``remark`` is what the status row says then, unless a run was made meanwhile: what that said stands.
        """
        self._run_when_ready = False
        said, self._said_by_run = self._said_by_run, ""
        if ready and all(self.book.in_slot(slot) is None for slot in RUNS):
            self.remark(said or remark)
        self.recovery.opened(ready)

    def armed(self) -> None:
        """A model's weights and the bench it opens with are there: a run that was asked for begins."""
        wanted, self._run_when_ready = self._run_when_ready, False
        if wanted:
            self.action_run()

    def action_stop(self) -> None:
        """Stop what runs and what waits."""
        self._run_when_ready = False
        if not self.busy:
            self.say("Nothing is running.")
        self.worker.stop()

    def action_undo(self) -> None:
        """Take back the last steering edit."""
        self._edited(self.store.undo(), "Undone", "Nothing to undo.")

    def action_redo(self) -> None:
        """Do the last undone edit again."""
        self._edited(self.store.redo(), "Done again", "Nothing to redo.")

    def _edited(self, done: bool, what: str, none: str) -> None:
        """Say what became of the bench where it cannot be seen."""
        if not done:
            self.say(none)
        elif self.current_mode not in ("steer", "generate"):
            self.say(f"{what}, on the bench: {self.key_text('app.steer')} shows it.")

    def action_focus_next(self) -> None:
        """The next pane."""
        self._focus(self.screen.focus_next)

    def action_focus_previous(self) -> None:
        """The pane before."""
        self._focus(self.screen.focus_previous)

    def _focus(self, move: Callable[[], Widget | None]) -> None:
        before = self.screen.focused
        if move() is before and isinstance(self.screen, LensScreen):
            self.say("There is no other pane here.")

    def action_tint(self) -> None:
        """The next way of showing values."""
        self.tint = TINTS[(TINTS.index(self.tint) + 1) % len(TINTS)]
        self.say(f"Values show as: {self.tint}")

    def action_theme(self) -> None:
        """Choose a theme."""
        from lens_tui.tui.screens.everywhere import ThemeScreen

        self.push_screen(ThemeScreen())

    def action_command_palette(self) -> None:
        """Everything that can be done here, by name."""
        from lens_tui.tui.screens.palette import Palette

        if not isinstance(self.screen, Palette):
            self.push_screen(Palette())  # without an id: the last one may still be on its way out

    def action_keys(self) -> None:
        """Show every key that works here."""
        from lens_tui.tui.screens.everywhere import HelpScreen

        self.push_screen(HelpScreen(self.screen))

    def action_tour(self) -> None:
        """Begin the tour, leave it, or go on with it."""
        self.tour.toggle()

    def action_jump(self) -> None:
        """Letters on the panes and rows in sight; typing one goes there."""
        from lens_tui.tui.screens.jump_screen import JumpScreen

        self.push_screen(JumpScreen(self.screen))

    def action_maximize(self) -> None:
        """Give the focused pane the whole screen, or give it back."""

        screen = self.screen
        if screen.maximized is not None:
            screen.minimize()
        elif screen.focused is not None:
            pane = next((node for node in screen.focused.ancestors_with_self if isinstance(node, Pane)), None)
            if pane is not None:
                screen.maximize(pane, container=False)

    def action_suspend(self) -> None:
        """Stop here and give the terminal to the shell; ``fg`` comes back."""
        # Not Textual's own ``suspend``, which would start the driver twice when the process continues.
        suspend = getattr(self._driver, "suspend", None)
        if suspend is None or not suspend():
            self.say("There is no shell here to go back to.")

    def action_quit_idle(self) -> None:
        """Quit, unless something runs."""
        if self.busy:
            stop, leave = self.key_text("app.stop"), self.key_text("app.quit")
            self.say(f"Still working: {stop} stops, {leave} quits at once.")
        else:
            self.exit()

    def action_interrupt(self) -> None:
        """Copy what is selected; with nothing selected, a second press while the remark stands quits."""
        if selected := self.screen.get_selected_text():
            self.copy_to_clipboard(selected)
            return
        now = time.monotonic()
        if now - self._last_interrupt < REMARK:
            self.exit()
        self._last_interrupt = now
        self.say(f"Press it again to quit, or {self.key_text('app.quit')}.")

    def begin_look(self) -> None:
        """Have what Textual asks for while the app is made."""
        self._guard = NoControls()
        self._defaults = themes.default_variables()
        self.themes: dict[str, Theme] = {}

    def use_keymap(self, user: Mapping[str, str]) -> None:
        """Take the user's keys; what of them cannot be used joins the problems."""
        good, problems = check_keymap(user)
        self._own_keys = {name: keys or "unbound" for name, keys in good.items()}
        self.set_keymap(self._own_keys)
        self.problems += problems

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for a theme that does not set them."""
        return self._defaults

    def terminal_is(self, dark: bool) -> None:
        """The terminal says whether its background is dark."""
        if not self._exit:
            self.looks.terminal_is(dark)

    def keep_theme(self, name: str) -> None:
        """Use a theme, or ``auto``, and remember it in the settings."""
        self.looks.keep(name)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters and, last of all, ours."""
        return [*super().get_line_filters(), self._guard]

    def key_text(self, key_id: str) -> str:
        """The first key of an id as it is now, written as on a key cap."""
        keys = self._own_keys.get(key_id) or by_id()[key_id].keys
        return self.get_key_display(Binding(keys.split(",")[0], ""))

    def begin_exchange(self, worker: WorkerLike) -> None:
        """Have an empty book and this worker."""
        self.worker = worker
        self.book = JobBook()
        self._last_drain = 0.0
        self._remark = ""
        self._news: asyncio.TimerHandle | None = None

    def submit(self, job: Job, slot: str, handler: Handler) -> int:
        """Ask the worker for a job. ``handler`` gets its events until it ends or ``slot`` is taken by another.

        The job that was in the slot is stopped. Returns the job's id.
        """
        number = self.worker.submit(job)
        replaced = self.book.open(number, slot, handler)
        if replaced is not None:
            self.worker.stop(replaced)
        return number

    def forget(self, slot: str) -> None:
        """Stop the job in a slot and drop what it still sends."""
        old = self.book.drop(slot)
        if old is not None:
            self.worker.stop(old)
            if not self.book.busy:
                self.activity = Activity()

    def wake(self) -> None:
        """Events wait; called from any thread."""
        self.post_message(WorkerWake())

    def on_worker_wake(self) -> None:
        """Drain now, or when a frame has passed since the last drain."""
        wait = self._last_drain + FRAME - time.monotonic()
        if wait > 0:
            # Not set_timer: Textual drops a one-shot timer that is due before its task first runs.
            asyncio.get_running_loop().call_later(wait, self.post_message, FrameDue())
        else:
            self.drain()

    def on_frame_due(self) -> None:
        """A frame has passed."""
        self.drain()

    def drain(self) -> None:
        """Take every waiting event to whom it concerns, then repaint once."""
        if self._exit or not self._running:  # the screens are on their way out
            return
        self._last_drain = time.monotonic()
        activity = self.activity
        with self.batch_update():
            for event in self.worker.drain():
                try:
                    activity = self._deliver(event, activity)
                except Exception as error:  # the events behind it have their own screens
                    self._handle_exception(error)
            if self._remark and activity.state == IDLE:
                activity, self._remark = replace(activity, note=self._remark), ""
            self.activity = activity

    def remark(self, text: str) -> None:
        """What the status row says once the current work is done."""
        self._remark = text

    def watch_activity(self, old: Activity, new: Activity) -> None:
        """What was done last is news for a while, on the screen where it was done."""
        if (new.note, new.state) == (old.note, old.state):
            return
        if self._news is not None:
            self._news.cancel()
        worth = new.note and new.state != BUSY
        # Not set_timer: a timer of Textual's is a task that wakes up as long as it lasts.
        loop = asyncio.get_running_loop()
        self._news = loop.call_later(NEWS, self.post_message, NewsPast()) if worth else None

    def on_news_past(self) -> None:
        """The news have been there for long enough."""
        self.drop_news()

    def drop_news(self) -> None:
        """Say no more what was done last."""
        if self.activity.state != BUSY and self.activity.note:
            self.activity = Activity()

    def tell(self, text: str) -> None:
        """Say something that should not be missed: for some seconds over the screen, then in the status row."""
        self.notify(text, markup=False, timeout=12)
        if self.activity.state == IDLE:
            self.activity = replace(self.activity, note=text)
        else:
            self.remark(text)

    def _deliver(self, event: Event, activity: Activity) -> Activity:
        owned = self.book.take(event)
        if owned is None:
            return Activity() if activity.state == BUSY and not self.book.busy else activity
        absorb(self.store, event)
        was_shown = owned.handler(event)
        if isinstance(event, Notice):
            said = " ".join(part for part in (event.message, event.hint) if part)
            self.notify(said, markup=False, timeout=12)
            self.remark(said)
        if isinstance(event, JobFailed) and was_shown is not True:
            self.show_error(event.message, event.hint, event.detail)
        silent = owned.slot == QUIET and not isinstance(event, JobFailed)
        after = activity if silent else advance(activity, event, self.clock())
        if owned.slot in RUNS and self.opening.going and after.state != BUSY:
            self._said_by_run = after.note
        return after

    @property
    def busy(self) -> bool:
        """Whether the worker has anything to do for us."""
        return self.book.busy
