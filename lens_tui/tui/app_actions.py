"""What the keys that work everywhere do. What the app mixes in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from textual.app import App

if TYPE_CHECKING:
    from textual.reactive import reactive

    from lens_tui.tui.opening import Opening
    from lens_tui.tui.recovery import Recovery
    from lens_tui.tui.session import SessionStore
    from lens_tui.tui.widgets.entry import Entry
    from lens_tui.worker.protocol import WorkerLike

    _Base = App[None]
else:
    _Base = object

TINTS = ("tint", "bars", "digits", "off")


class AppActions(_Base):
    """Needs ``store``, ``opening``, ``worker``, ``busy``, ``say`` and ``key_text`` of the app."""

    if TYPE_CHECKING:
        store: SessionStore
        opening: Opening
        recovery: Recovery
        worker: WorkerLike
        tint: reactive[str]

        @property
        def busy(self) -> bool:
            """Whether the worker has anything to do for us."""

        def say(self, message: str) -> None:
            """A short remark."""

        def key_text(self, key_id: str) -> str:
            """The first key of an id."""
            return key_id

    _run_when_ready = False
    _last_interrupt = float("-inf")

    def on_entry_shortened(self, event: Entry.Shortened) -> None:
        """A field outside of a form did not take all that was pasted."""
        self.say(event.said)

    def action_show(self, mode: str) -> None:
        """Go to a screen."""
        self.switch_mode(mode)
        self.call_after_refresh(self.refresh_bindings)

    def action_run(self) -> None:
        """Run the comparison, on the Generate screen; if the model is still loading, as soon as it is there."""
        if self.store.session.model is not None and not self.opening.going:
            self.action_show("generate")
            self.call_after_refresh(lambda: cast("Any", self.screen).start_run())
        elif self.busy:
            self._run_when_ready = True
            self.say("It runs as soon as the model is ready.")
        else:
            self.action_show("load")
            self.say("Load a model first.")

    def opened(self, ready: bool) -> None:
        """A model and all it opens with are there, or, if not ``ready``, could not be loaded."""
        self.recovery.opened(ready)
        wanted, self._run_when_ready = self._run_when_ready, False
        if wanted and ready:
            self.action_run()

    def action_stop(self) -> None:
        """Stop what runs and what waits."""
        self._run_when_ready = False
        self.worker.stop()

    def action_undo(self) -> None:
        """Take back the last steering edit."""
        if not self.store.undo():
            self.say("Nothing to undo.")

    def action_redo(self) -> None:
        """Do the last undone edit again."""
        if not self.store.redo():
            self.say("Nothing to redo.")

    def action_tint(self) -> None:
        """The next way of showing values."""
        self.tint = TINTS[(TINTS.index(self.tint) + 1) % len(TINTS)]
        self.say(f"Values show as: {self.tint}")

    def action_theme(self) -> None:
        """Choose a theme."""
        from lens_tui.tui.screens.themes import ThemeScreen

        self.push_screen(ThemeScreen())

    def action_command_palette(self) -> None:
        """Everything that can be done here, by name."""
        from lens_tui.tui.palette import Palette

        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    def action_keys(self) -> None:
        """Show every key that works here."""
        from lens_tui.tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.screen))

    def action_maximize(self) -> None:
        """Give the focused pane the whole screen, or give it back."""
        from lens_tui.tui.widgets.pane import Pane

        screen = self.screen
        if screen.maximized is not None:
            screen.minimize()
        elif screen.focused is not None:
            pane = next((node for node in screen.focused.ancestors_with_self if isinstance(node, Pane)), None)
            if pane is not None:
                screen.maximize(pane, container=False)

    def action_suspend(self) -> None:
        """Stop here and give the terminal to the shell; ``fg`` comes back."""
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
        """Copy what is selected; with nothing selected, the second press within two seconds quits."""
        if selected := self.screen.get_selected_text():
            self.copy_to_clipboard(selected)
            return
        now = time.monotonic()
        if now - self._last_interrupt < 2:
            self.exit()
        self._last_interrupt = now
        self.say(f"Press it again to quit, or {self.key_text('app.quit')}.")
