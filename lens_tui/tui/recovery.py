"""The session on disk: saved at each change, offered again after a crash, forgotten after a proper end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_tui.tui.keys import SCREENS
from lens_tui.tui.session import Session, Steer

if TYPE_CHECKING:
    from lens_tui.records.session_file import Autosaver, SavedSession, SavedSteer
    from lens_tui.tui.app import LensApp


def saved(session: Session, model: str, screen: str) -> SavedSession:
    """What of a session is worth taking up again; ``model`` is the id it was loaded by."""
    from lens_tui.records.session_file import SavedSession, SavedSteer

    sae = next((sae.path for sae in session.saes if sae.id == session.sae), "")
    rows = tuple(SavedSteer(row.id, *_facts(row)) for row in session.steers)
    return SavedSession(model, sae, screen, session.prompt, session.sampling, rows)


def steers_of(session: SavedSession) -> tuple[Steer, ...]:
    """The bench of a saved session."""
    return tuple(Steer(f"r{place}", *_facts(row)) for place, row in enumerate(session.steers))


def _facts(row: Steer | SavedSteer) -> tuple[Any, ...]:
    measured = (row.residual_norm, row.promoted, row.suppressed)
    return row.vector, row.layer, row.scale, row.enabled, row.arm, *measured, row.mode, row.positions


class Recovery:
    """Keeps the session file of one running app."""

    def __init__(self, app: LensApp) -> None:
        self._app = app
        self._saver: Autosaver | None = None
        self._open = False

    def follow(self) -> None:
        """Save at every change from now on."""
        self._open = True
        self._app.store.subscribe(self._changed)

    def _changed(self, old: Session, new: Session) -> None:
        from lens_tui.records.session_file import Autosaver

        if new != old and self._open:
            self._saver = self._saver or Autosaver()
            self._saver.save(saved(new, self._app.opening.model, self._app.current_mode))

    def end(self, *, well: bool) -> None:
        """The app ends; if ``well``, there is nothing to take up."""
        self._open = False
        if self._saver is not None:
            self._saver.close(forget=well)
            self._saver = None

    def offer(self, session: SavedSession) -> None:
        """Ask whether to take up a session that was cut off."""
        from lens_tui.tui.screens.form import Choice, ChoiceScreen

        arms = len({row.arm for row in session.steers})
        what = f"{session.model or 'no model'}, {len(session.steers)} vectors in {arms} arms" if arms else session.model
        choices = [Choice("take", "take it up", what), Choice("leave", "start afresh", "and forget it")]

        def chosen(choice: str | None) -> None:
            if choice == "take":
                self.take_up(session)

        self._app.push_screen(ChoiceScreen("The last session was cut off", choices), chosen)

    def take_up(self, session: SavedSession) -> None:
        """Put prompt, settings and bench back, and load the model and SAE again."""
        app = self._app
        app.store.update(prompt=session.prompt, sampling=session.sampling, steers=steers_of(session))
        app.store.forget_edits()
        if session.screen in dict(SCREENS):
            app.action_show(session.screen)
        if session.model:
            app.opening.load(session.model, sae=session.sae)
