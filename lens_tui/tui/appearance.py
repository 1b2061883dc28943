"""Theme and keys of the app: what the user's settings say of them, and what of it can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import App
from textual.binding import Binding
from textual.filter import LineFilter

from lens_tui.records.sanitise import one_line
from lens_tui.tui import themes
from lens_tui.tui.guard import NoControls
from lens_tui.tui.keys import by_id, check_keymap
from lens_tui.tui.preferences import remember_theme

if TYPE_CHECKING:
    from textual.theme import Theme

    _Base = App[None]
else:
    _Base = object


class Appearance(_Base):
    """What the app mixes in. :meth:`begin_look` comes before Textual's own ``__init__``, which reads variables."""

    if TYPE_CHECKING:
        problems: list[str]

        def tell(self, text: str) -> None:
            """Say something that should not be missed."""

    def begin_look(self) -> None:
        """Have what Textual asks for while the app is made."""
        self._guard = NoControls()
        self._defaults = themes.default_variables()
        self.themes: dict[str, Theme] = {}

    def use_themes(self, theme: str, folders: tuple[Path, ...]) -> None:
        """Know the app's and the user's themes and begin with one; what cannot be used joins the problems."""
        self.themes, problems = themes.load_themes((themes.bundled_dir(), *folders))
        for found in self.themes.values():
            self.register_theme(found)
        if theme not in self.themes:
            problems.append(f"There is no theme {one_line(theme, 60)!r}; there are {', '.join(self.themes)}.")
            theme = themes.DEFAULT_THEME
        self._begin_with(theme)
        self.problems += problems

    def _begin_with(self, theme: str) -> None:
        """Have the theme before anything is parsed: setting it as usual parses every style sheet twice over."""
        self.set_reactive(App.theme, theme)
        dark = self.themes[theme].dark
        self.set_class(dark, "-dark-mode", update=False)
        self.set_class(not dark, "-light-mode", update=False)
        self.stylesheet.set_variables(self.get_css_variables())

    def use_keymap(self, user: Mapping[str, str]) -> None:
        """Take the user's keys; what of them cannot be used joins the problems."""
        good, problems = check_keymap(user)
        self.set_keymap({name: keys or "unbound" for name, keys in good.items()})
        self.problems += problems

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for a theme that does not set them."""
        return self._defaults

    def keep_theme(self, name: str) -> None:
        """Use a theme and remember it in the settings."""
        self.theme = name

        def remember() -> None:
            if refused := remember_theme(name):
                self.call_later(self.tell, refused)

        self.run_worker(remember, thread=True, exit_on_error=False, group="settings")

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters and, last of all, ours."""
        return [*super().get_line_filters(), self._guard]

    def key_text(self, key_id: str) -> str:
        """The first key of an id as it is now, written as on a key cap."""
        keys = self._keymap.get(key_id) or by_id()[key_id].keys
        return self.get_key_display(Binding(keys.split(",")[0], ""))
