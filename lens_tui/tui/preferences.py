"""What the app starts with, and what of it comes from the user's settings. Without a file nothing heavy is imported."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui.records import LensError, Sampling, paths
from lens_tui.records.info import Dequantize

if TYPE_CHECKING:
    from lens_tui.records.session_file import CutOff

_log = logging.getLogger(__name__)

_COLORS = re.compile(r"(?:[0-9]{1,3}|default);(?:(?:[0-9]{1,3}|default);)?([0-9]{1,2})")
_DARK = {0, 1, 2, 3, 4, 5, 6, 8}
_SIXTEEN = 16


@dataclass(frozen=True, slots=True)
class Start:
    """What the app opens with.

    Attributes:
        screen: the screen it opens on, by its mode.
        model: what is loaded once the first frame is up: a folder, a hub id or ``"demo"``; ``""`` for nothing.
        dequantize: how models are loaded.
        sampling: the settings of a run.
        theme: a theme's name; ``""`` for the usual one.
        theme_folders: where to look for more themes.
        dark: whether the terminal is taken for a dark one until it says what it is.
        tint: how values show.
        keys: the user's ``[keys]``.
        problems: sentences to show at the start, before those about theme and keys.
        notices: things to know from the start on.
        tour: the file that keeps how far the tour is; ``None`` keeps nothing.
        reduced_motion: nothing moves or blinks by itself.
        resume: take up the newest session that is found, without asking.
        cut_off: finds the sessions that were cut off, to be offered.
        autosave: whether this session is kept on disk while it runs.
        history: the database that runs are kept in.
        log_path: where the details of an error are found.
    """

    screen: str = "load"
    model: str = ""
    dequantize: Dequantize = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    theme: str = ""
    theme_folders: tuple[Path, ...] = ()
    dark: bool = True
    tint: str = "tint"
    keys: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    tour: Path | None = None
    reduced_motion: bool = False
    resume: bool = False
    cut_off: Callable[[], Sequence[CutOff]] = tuple
    autosave: bool = False
    history: Path | None = None
    log_path: Path | None = None


@dataclass(frozen=True, slots=True)
class Preferences:
    """The settings the app reads at its start; ``problems`` says what in the file could not be used."""

    theme: str = ""
    tint: str = "tint"
    motion: str = "full"
    keys: Mapping[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None
    model: str = ""
    keep_session: bool = True
    keep_history: bool = True
    folders: tuple[str, ...] = ()
    dequantize: Dequantize = "auto"
    problems: tuple[str, ...] = ()


def preferences() -> Preferences:
    """The user's settings, or the defaults with the reason why they could not be read."""
    if not paths.settings_file().exists():
        return Preferences()
    from lens_tui.records.settings import load_settings

    try:
        settings = load_settings()
    except LensError as error:
        return Preferences(problems=(str(error),))
    return Preferences(
        settings.look.theme,
        settings.look.tint,
        settings.look.motion,
        settings.keys,
        settings.generate.sampling(),
        settings.models.open,
        settings.keep.session,
        settings.keep.history,
        tuple(settings.models.folders),
        settings.models.dequantize,
    )


def dark_by_variable(colors: str) -> bool:
    """Whether the terminal that wrote ``COLORFGBG`` has a dark background; dark where it says nothing of use.

    Args:
        colors: Text, sometimes one more, and background, as numbers of the terminal's 16 colours: ``0;15``. Black,
            the six dull colours and dark grey (8) are dark grounds, light grey (7) and the bright ones light.
    """
    found = _COLORS.fullmatch(colors)
    ground = int(found[1]) if found else 0
    return ground in _DARK or ground >= _SIXTEEN


def remember_theme(name: str) -> str:
    """Write the theme into the user's settings, leaving the rest of the file as it is; says why if it cannot."""
    from lens_tui.records.settings import set_one

    try:
        set_one("look", "theme", name)
    except (LensError, OSError) as error:
        _log.warning("the theme could not be remembered: %s", error)
        return f"The theme is not remembered. {error}"
    return ""
