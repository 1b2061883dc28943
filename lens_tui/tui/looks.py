"""Which theme shows: the one chosen, or one that follows the terminal; a user's theme again when its file is saved."""

from __future__ import annotations

import logging
from pathlib import Path

from textual.theme import Theme
from textual.timer import Timer

from lens_tui.records.sanitise import one_line

from . import themes
from .host import LensHost
from .preferences import remember_theme

_log = logging.getLogger(__name__)

FOLLOW = "auto"
"""The name of what is no theme of its own: ``ink`` in a dark terminal, ``paper`` in a light one."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the files of the user's themes, while one of them shows. No other theme is watched."""


class Looks:
    """The theme of one app.

    Args:
        app: whose theme it is; its ``themes`` are filled.
        folders: where the user's theme files are, besides those of the app.
        dark: whether the terminal is taken for a dark one until it says what it is.
    """

    def __init__(self, app: LensHost, folders: tuple[Path, ...], dark: bool = True) -> None:
        self._app, self._folders = app, folders
        self._dark = dark
        self._timer: Timer | None = None
        self._seen: dict[Path, int] = {}
        self._said: tuple[str, ...] = ()
        self.following = False

    def begin(self, wanted: str) -> list[str]:
        """Know all themes and have the wanted one before anything is parsed; what could not be used, as sentences.

        Set as usual, it has every sheet parsed a second time.
        """
        app, problems = self._app, self._read()
        self._said = tuple(problems)
        self.following = wanted in ("", FOLLOW)
        name = self.theme_of(FOLLOW) if self.following else wanted
        if name not in app.themes:
            known = ", ".join((FOLLOW, *app.themes))
            problems.append(f"There is no theme {one_line(name, 60)!r}; there are {known}.")
            name = self.theme_of(FOLLOW)
        app.set_reactive(type(app).theme, name)
        app._refresh_truecolor_filter(app.ansi_theme)  # made with Textual's own theme, before there was ours
        dark = app.themes[name].dark
        app.set_class(dark, "-dark-mode", update=False)
        app.set_class(not dark, "-light-mode", update=False)
        app.stylesheet.set_variables(app.get_css_variables())
        return problems

    @property
    def names(self) -> list[str]:
        """What can be chosen."""
        return [FOLLOW, *self._app.themes]

    @property
    def chosen(self) -> str:
        """What is chosen: a theme, or that it follows the terminal."""
        return FOLLOW if self.following else self._app.theme

    def theme_of(self, name: str) -> str:
        """The theme that a choice shows now."""
        if name != FOLLOW:
            return name
        return themes.DEFAULT_THEME if self._dark else themes.LIGHT_THEME

    def show(self, name: str) -> None:
        """Show a choice without keeping it."""
        self.following = name == FOLLOW
        self._app.theme = self.theme_of(name)
        self.watch()

    def keep(self, name: str) -> None:
        """Show a choice and remember it in the settings."""
        self.show(name)

        def remember() -> None:
            if refused := remember_theme(name):
                self._app.call_later(self._app.tell, refused)

        self._app.run_worker(remember, thread=True, exit_on_error=False, group="settings")

    def terminal_is(self, dark: bool) -> None:
        """The terminal says whether its background is dark."""
        if dark != self._dark:
            self._dark = dark
            if self.following:
                self._app.theme = self.theme_of(FOLLOW)

    # ---- a user's theme, saved while it shows

    def watch(self) -> None:
        """Look at the theme files from now on if the theme that shows is the user's, else no more."""
        own = {theme.name for theme in self._own_themes()}
        if self._app.theme in own and self._timer is None:
            self._timer = self._app.set_interval(LOOK_EVERY, self.look_again)
        elif self._app.theme not in own and self._timer is not None:
            self._timer.stop()
            self._timer = None

    def look_again(self) -> None:
        """Take up theme files that have been written since the last look; what is wrong in one is said once."""
        if self._written() == self._seen:
            return
        problems = tuple(self._read())
        if fresh := [problem for problem in problems if problem not in self._said]:
            self._app.tell(" ".join(fresh))
        self._said = problems
        if self._app.theme in self._app.themes:
            self._app.mutate_reactive(type(self._app).theme)
        else:
            self.show(FOLLOW)

    def _own_themes(self) -> list[Theme]:
        return list(themes.load_themes(self._folders)[0].values()) if self._files() else []

    def _files(self) -> list[Path]:
        return [path for folder in self._folders if folder.is_dir() for path in sorted(folder.glob("*.toml"))]

    def _written(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for path in self._files():
            try:
                found[path] = path.stat().st_mtime_ns
            except OSError:  # deleted this moment
                continue
        return found

    def _read(self) -> list[str]:
        """Read all theme files; a theme whose file is broken now stays as it was."""
        app = self._app
        self._seen = self._written()
        found, problems = themes.load_themes((themes.bundled_dir(), *self._folders))
        app.themes.update(found)
        for theme in found.values():
            app.register_theme(theme)
        return problems
