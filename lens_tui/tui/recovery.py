"""The session on disk: saved at each change, offered again after a crash, after a proper end only on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui.records import LensError
from lens_tui.records.interventions import BenchRow
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many

from .format import ago, model_name
from .host import LensHost
from .keys import SCREENS
from .screens.form import Choice, ChoiceScreen
from .session import Session

if TYPE_CHECKING:
    from lens_tui.records.session_file import Autosaver, CutOff, SavedSession


def saved(session: Session, model: str, screen: str, wanted_sae: str = "") -> SavedSession:
    """What of a session is worth taking up again; ``model`` is the id it was loaded by.

    ``wanted_sae`` is the path of the SAE that is to be loaded beside it, for as long as none is.
    """
    from lens_tui.records.session_file import SavedSession

    sae = next((sae.path for sae in session.saes if sae.id == session.sae), wanted_sae)
    asked = {"prompt": session.prompt, "turns": session.turns, "chat": session.chat, "sampling": session.sampling}
    bench = {"steers": session.steers, "monitors": session.monitors}
    return SavedSession(model, sae, screen, **asked, **bench)  # type: ignore[arg-type]


def steers_of(session: SavedSession) -> tuple[BenchRow, ...]:
    """The bench of a saved session; its rows get ids that a new session gives to no other."""
    return tuple(replace(row, id=f"r{place}") for place, row in enumerate(session.steers))


class Recovery:
    """Keeps the session file of one running app, and offers those of apps that were cut off."""

    def __init__(self, app: LensHost) -> None:
        self._app = app
        self._saver: Autosaver | None = None
        self._open = False
        self._waiting: list[CutOff] = []
        self._taking: CutOff | None = None

    def follow(self) -> None:
        """Save at every change from now on."""
        self._open = True
        self._app.store.subscribe(self._changed)

    def _changed(self, old: Session, new: Session) -> None:
        if new != old and self._open and self._taking is None:
            self._save(new)

    def _save(self, session: Session, in_place_of: Path | None = None) -> None:
        from lens_tui.records.session_file import Autosaver

        app = self._app
        self._saver = self._saver or Autosaver(refused=self._refused)
        session_now = saved(session, app.opening.model, app.current_mode, app.opening.wanted_sae)
        self._saver.save(session_now, in_place_of=in_place_of)

    def _refused(self, error: LensError) -> None:
        """The disk refuses, said from the saver's thread."""
        self._app.call_later(self._app.tell, f"This session is not being kept. {error}")

    def end(self, *, well: bool) -> None:
        """The app ends; if ``well``, there is nothing to offer at the next start."""
        store = self._app.store
        if self._open and not well and store.writing is not None and (now := store.writing()) != store.session.prompt:
            self._save(replace(store.session, prompt=now))
        self._open = False
        if self._saver is not None:
            self._saver.close(forget=False)
            self._saver = None
            if well:
                from lens_tui.records.session_file import end_session

                end_session()

    def offer(self, found: Sequence[CutOff]) -> None:
        """Ask whether to take up the newest session that was cut off; say which ones cannot be read."""
        if problems := [item.problem for item in found if item.problem]:
            self._app.call_after_refresh(self._app.tell, " ".join(problems))
        self._waiting = [item for item in found if item.session is not None]
        self._offer_next()

    def resume(self, found: Sequence[CutOff]) -> None:
        """Take up the newest session that can be read, unasked; say so if there is none."""
        usable = [item for item in found if item.session is not None]
        if usable:
            self.take_up(usable[0])
            self._app.call_after_refresh(self._app.tell, f"Taken up: {_summary(usable[0])}.")
        else:
            why = "".join(f" {item.problem}" for item in found if item.problem)
            self._app.call_after_refresh(self._app.tell, f"There is no session to take up.{why}")

    def _offer_next(self) -> None:
        if not self._waiting:
            return

        newest, more = self._waiting[0], len(self._waiting) - 1
        what = f"{_summary(newest)} · {ago(newest.changed, self._app.wall())}" if newest.changed else _summary(newest)
        choices = [
            Choice("take", "take it up", what),
            Choice("forget", "start afresh", "and forget it"),
            Choice("later", "not now", "keep it and ask again at the next start"),
        ]

        def chosen(choice: str | None) -> None:
            if choice == "take":
                self.take_up(newest)
            elif choice == "forget":
                forget(newest.path)
                self._waiting.pop(0)
                self._offer_next()

        title = f"The last session was cut off, and {more} before it" if more else "The last session was cut off"
        self._app.push_screen(ChoiceScreen(title, choices), chosen)

    def take_up(self, item: CutOff) -> None:
        """Put prompt, settings and bench back, and load the model and SAE again.

        Until all of that is there, what is on the disk is the old file, whole.
        """
        app, session = self._app, item.session
        if session is None:
            return
        self._taking = item
        asked = {"prompt": session.prompt, "turns": session.turns, "chat": session.chat}
        app.store.update(**asked, sampling=session.sampling, steers=steers_of(session), monitors=session.monitors)
        app.store.forget_edits()
        if session.screen in dict(SCREENS):
            app.go_to(session.screen)
        if session.model:
            app.opening.load(session.model, sae=session.sae)
        else:
            self.opened(True)

    def opened(self, ready: bool) -> None:
        """What was to be loaded is there, or could not be: then the old file is kept beside the new one."""
        item, self._taking = self._taking, None
        if item is None:
            return
        if self._open:
            self._save(self._app.store.session, item.path if ready else None)
        elif ready:
            forget(item.path)


def forget(path: Path) -> None:
    """Delete the file of a session that nobody wants."""
    from lens_tui.records.session_file import forget_session

    forget_session(path)


def _summary(item: CutOff) -> str:
    """What a session was about, in a few words."""
    session = item.session
    if session is None:
        return ""
    arms = len({row.arm for row in session.steers})
    bench = f", {many(len(session.steers), 'vector')} in {many(arms, 'arm')}" if arms else ""
    return one_line(f"{model_name(session.model or 'no model')}{bench}", 60)
