"""Themes: TOML files read into Textual themes, with the ramps that carry data; and which of them shows.

A theme file names its colours, an eight-step ``heat`` ramp for activations and
a nine-step ``sign`` ramp for signed effects. The app's own files and the user's
have the same format; a file that cannot be used is reported, never fatal.

CSS and widgets read: ``$muted``, ``$hairline``, ``$accent``, ``$heat-0`` to
``$heat-7`` with ``$heat-text-0`` to ``-7`` (text that reads on that step), and
``$sign-0`` to ``$sign-8`` with ``$sign-text-0`` to ``-8``. ``$sign-neg`` and
``$sign-pos`` are the two ends.

A colour is written as ``#rrggbb`` or as one of the terminal's own 16: ``ansi_default``, ``ansi_red``,
``ansi_bright_blue``. What those look like nobody knows here, so a theme that has any gives its ramps a list ``text``
as well: the colour of the text on each step.

The one that shows is the one chosen, or follows the terminal; a user's theme shows again when its file is saved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from textual.color import Color, rgb_to_lab
from textual.theme import Theme
from textual.timer import Timer

from lens_tui.records import LensError
from lens_tui.records.read_files import explained, read_toml
from lens_tui.records.sanitise import one_line

from .host import LensHost
from .preferences import remember_theme

DEFAULT_THEME, LIGHT_THEME = "ink", "paper"
HEAT_STEPS = 8
SIGN_STEPS = 9
_MAX_NAME = 60
CLEARLY = 20.0
"""How far apart in CIE L*a*b* two grounds are that nobody takes for one another."""
_COLORS = (
    "background", "surface", "panel", "foreground", "muted", "hairline", "accent", "success", "warning", "error",
)  # fmt: skip


def bundled_dir() -> Path:
    """Where the app's own theme files are: in the package when installed, beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_themes"
    return installed if installed.is_dir() else package.parent / "themes"


def read_theme(path: Path) -> Theme:
    """Read one theme file. Raises :class:`LensError` naming the file and what is wrong in it."""
    name = one_line(path.name, 80)
    try:
        data = read_toml(path)
    except LensError as error:
        raise LensError(f"The theme {name} cannot be read: {error.message}", error.hint) from error
    with explained(path, "Correct it."):
        return theme_from(data, name)


def theme_from(data: Mapping[str, Any], source: str) -> Theme:
    """Build a Textual theme from a theme file's data; ``source`` names the file in errors."""
    name = data.get("name")
    if not isinstance(name, str) or len(name) > _MAX_NAME or not name.replace("-", "").isalnum():
        raise LensError(f"The theme {source} has no usable name.", 'Give it one, for example name = "dusk".')
    colors = {key: _color(data.get("colors", {}), key, source) for key in _COLORS}
    ramps = {
        name: (_ramp(data, name, "steps", count, source), _texts(data, name, count, source))
        for name, count in (("heat", HEAT_STEPS), ("sign", SIGN_STEPS))
    }
    every = (*colors.values(), *ramps["heat"][0], *ramps["sign"][0])
    native = any(color.startswith("ansi_") for color in every)
    if native and not all(texts for _, texts in ramps.values()):
        raise LensError(
            f"The theme {source} uses the terminal's own colours and lacks heat.text or sign.text.",
            "Add the colour of the text on each step.",
        )
    return Theme(
        name=name,
        primary=colors["accent"],
        secondary=colors["accent"],
        warning=colors["warning"],
        error=colors["error"],
        success=colors["success"],
        accent=colors["accent"],
        foreground=colors["foreground"],
        background=colors["background"],
        surface=colors["surface"],
        panel=colors["panel"],
        dark=bool(data.get("dark", True)),
        variables=variables(colors, ramps),
        ansi=native,
    )


Ramp = tuple[Sequence[str], Sequence[str]]
"""The steps, and the text on each; the latter empty where it is to be found by contrast."""


def variables(colors: Mapping[str, str], ramps: Mapping[str, Ramp]) -> dict[str, str]:
    """The CSS variables of a theme beyond Textual's own; ``ramps`` are ``heat`` and ``sign``."""
    ends = (colors["background"], colors["foreground"])
    accent = colors["accent"]
    out = {
        "muted": colors["muted"],
        "hairline": colors["hairline"],
        "block-cursor-background": colors["panel"],
        "block-cursor-foreground": colors["foreground"],
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": colors["background"],
        "block-cursor-blurred-foreground": colors["foreground"],
        "block-cursor-blurred-text-style": "none",
        "block-hover-background": colors["surface"],
        "input-selection-background": accent if accent.startswith("ansi_") else f"{accent} 30%",
        "input-cursor-background": colors["foreground"],
        "input-cursor-foreground": colors["background"],
        "scrollbar": colors["hairline"],
        "scrollbar-hover": colors["muted"],
        "scrollbar-active": colors["muted"],
        "scrollbar-background": colors["background"],
        "scrollbar-background-hover": colors["background"],
        "scrollbar-background-active": colors["background"],
        "scrollbar-corner-color": colors["background"],
    }
    if colors["background"].startswith("ansi_"):
        out |= {"ansi-background": colors["background"], "ansi-foreground": colors["foreground"]}
    for prefix, (steps, texts) in ramps.items():
        for index, step in enumerate(steps):
            out[f"{prefix}-{index}"] = step
            out[f"{prefix}-text-{index}"] = texts[index] if texts else readable_on(step, ends)
    out["sign-neg"], out["sign-pos"] = out["sign-0"], out[f"sign-{SIGN_STEPS - 1}"]
    native = any(color.startswith("ansi_") for color in (*colors.values(), *ramps["heat"][0]))
    out["cursor"] = ends[1] if native else _unlike(ramps["heat"][0], (ends[1], accent, *ends[:1]))
    out["cursor-text"] = ends[0] if native else readable_on(out["cursor"], ends)
    return out


def difference(first: str, second: str) -> float:
    """How far apart two colours look: their distance in CIE L*a*b*, about 2.3 where one begins to see it."""
    (l1, a1, b1), (l2, a2, b2) = rgb_to_lab(Color.parse(first)), rgb_to_lab(Color.parse(second))
    return float(((l1 - l2) ** 2 + (a1 - a2) ** 2 + (b1 - b2) ** 2) ** 0.5)


def _unlike(steps: Sequence[str], choices: Sequence[str]) -> str:
    """The first choice that is clearly unlike every step; if none is, the one that is most unlike."""
    least = {choice: min(difference(choice, step) for step in steps) for choice in choices}
    return next((choice for choice in choices if least[choice] >= CLEARLY), max(choices, key=least.__getitem__))


def luminance(color: str) -> float:
    """Relative luminance of a colour, 0 (black) to 1 (white), as WCAG defines it."""
    rgb = Color.parse(color)
    channels = [(value / 255) for value in (rgb.r, rgb.g, rgb.b)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def readable_on(color: str, choices: Iterable[str]) -> str:
    """The choice with the most contrast on ``color``; black or white if none of them reaches 4.5."""
    best = max(choices, key=lambda choice: contrast(color, choice))
    if contrast(color, best) >= 4.5:
        return best
    return max(("#000000", "#ffffff"), key=lambda choice: contrast(color, choice))


def load_themes(folders: Iterable[Path]) -> tuple[dict[str, Theme], list[str]]:
    """Every theme in the folders, later ones winning, and a sentence for each file that could not be used."""
    themes: dict[str, Theme] = {}
    problems: list[str] = []
    for folder in folders:
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            try:
                theme = read_theme(path)
            except LensError as error:
                problems.append(str(error))
            else:
                themes[theme.name] = theme
    return themes, problems


def default_variables() -> dict[str, str]:
    """The variables for a theme that is not ours, so that our style sheets parse under any theme."""
    return dict(read_theme(bundled_dir() / "ink.toml").variables)


def _color(table: object, key: str, source: str) -> str:
    value = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(value, str):
        raise LensError(f"The theme {source} lacks colors.{key}.", 'Add it as a colour like "#a0b0c0".')
    return _checked(value, f"colors.{key}", source)


def _ramp(data: Mapping[str, Any], name: str, part: str, count: int, source: str) -> list[str]:
    table = data.get(name)
    steps = table.get(part) if isinstance(table, Mapping) else None
    if not isinstance(steps, list) or len(steps) != count or not all(isinstance(step, str) for step in steps):
        raise LensError(f"The theme {source} needs {name}.{part}: a list of {count} colours.")
    return [_checked(step, f"{name}.{part}", source) for step in steps]


def _texts(data: Mapping[str, Any], name: str, count: int, source: str) -> list[str]:
    """The text on each step of a ramp, if the file gives it."""
    table = data.get(name)
    given = isinstance(table, Mapping) and "text" in table
    return _ramp(data, name, "text", count, source) if given else []


def _checked(value: str, where: str, source: str) -> str:
    try:
        return Color.parse(value[: _MAX_NAME + 1]).hex  # no colour is that long; one of the terminal's keeps its name
    except Exception as error:
        named = one_line(repr(value[:_MAX_NAME]), _MAX_NAME)
        raise LensError(f"The theme {source} has no colour {named} at {where}.", "Write it as #rrggbb.") from error


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
        return DEFAULT_THEME if self._dark else LIGHT_THEME

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
        return list(load_themes(self._folders)[0].values()) if self._files() else []

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
        found, problems = load_themes((bundled_dir(), *self._folders))
        app.themes.update(found)
        for theme in found.values():
            app.register_theme(theme)
        return problems
